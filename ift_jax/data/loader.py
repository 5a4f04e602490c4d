"""Rows and batches by number: `rows(seed, r)` and `batches[s]` compute nothing before them."""

from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np
from numpy.typing import NDArray

from ift_jax.batch import Batch
from ift_jax.data.packing import Examples, Plan, deal, plan_rows


class RowSource:
    """Packed rows of all epochs, one after the other, as a random-access source for grain.

    `prefix` leading tokens, the same in all examples, stay out of the rows; positions count on
    from them. Row r is row r % rows_per_epoch of epoch r // rows_per_epoch.
    """

    def __init__(
        self,
        examples: Examples,
        row_length: int,
        *,
        seed: int,
        pack: bool = True,
        shuffle: bool = True,
        prefix: int = 0,
    ):
        self.examples = examples = examples.without(prefix)
        self.prefix = prefix
        self.plan: Plan = plan_rows(examples.lengths, examples.num_targets, row_length, pack=pack)
        self.seed, self.shuffle = seed, shuffle
        self._deal = lru_cache(maxsize=2)(self._deal_epoch)

    @property
    def rows_per_epoch(self) -> int:
        return self.plan.num_rows

    @property
    def utilisation(self) -> float:
        """Share of row positions that hold a token."""
        return len(self.examples.ids) / (self.plan.num_rows * self.plan.row_length)

    def summary(self) -> str:
        """What was packed, in one line."""
        return (
            f"{len(self.examples.lengths)} examples in {self.rows_per_epoch} rows of "
            f"{self.plan.row_length} tokens, {self.utilisation:.1%} used"
        )

    def __getitem__(self, index: int) -> Batch:
        return fill_row(self.examples, self.members(index), self.plan, self.prefix)

    def padding(self) -> Batch:
        """A row without an example."""
        return fill_row(self.examples, np.zeros(0, np.int64), self.plan, self.prefix)

    def members(self, index: int) -> NDArray[np.int64]:
        """The numbers of the examples in a row."""
        epoch, position = divmod(index, self.plan.num_rows)
        dealt, rows = self._deal(epoch)
        return dealt[self.plan.rows[rows[position]]]

    def _deal_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.shuffle:
            return deal(self.plan, self.seed, epoch)
        return self.plan.order, np.arange(self.plan.num_rows)


def fill_row(
    examples: Examples, members: NDArray[np.int64], plan: Plan, first_position: int = 0
) -> Batch:
    """One row (arrays without the B axis) of these examples, padded to the plan's sizes.

    The last token of an example predicts nothing, and the first is no target: no position
    of its own example comes before it.
    """
    size, room = plan.row_length, plan.row_targets
    tokens, positions, segment_ids = np.zeros((3, size), np.int32)
    target_positions, targets = np.zeros((2, room), np.int32)
    weights = np.zeros(room, np.float32)
    at = used = 0
    for segment, member in enumerate(members.tolist(), start=1):
        begin, end = examples.starts[member], examples.starts[member + 1]
        length = int(end - begin)
        tokens[at : at + length] = examples.ids[begin:end]
        positions[at : at + length] = first_position + np.arange(length)
        segment_ids[at : at + length] = segment
        trained = np.flatnonzero(examples.trained[begin + 1 : end])
        count = len(trained)
        target_positions[used : used + count] = at + trained
        targets[used : used + count] = examples.ids[begin + 1 + trained]
        weights[used : used + count] = 1.0
        at, used = at + length, used + count
    # Made by _make, since the fields are NumPy arrays until they are placed on devices.
    return Batch._make((tokens, positions, segment_ids, target_positions, targets, weights))


@dataclass(frozen=True)
class Batches:
    """Batch s of a run, for any s.

    Rows past the last epoch are padding, so that the last batch is full and whole epochs show
    every example equally often.

    Attributes:
        source: the rows.
        batch_size: B, rows per batch over all devices.
        num_epochs: how often every example is seen; 0 means without end.
    """

    source: RowSource
    batch_size: int
    num_epochs: float

    @property
    def num_rows(self) -> int:
        """Rows of the whole run that hold examples."""
        if not self.num_epochs:
            return 2**62
        return max(1, round(self.num_epochs * self.source.rows_per_epoch))

    @property
    def num_steps(self) -> int:
        """Steps until all epochs are seen."""
        return -(-self.num_rows // self.batch_size)

    def row(self, index: int) -> Batch:
        """Row `index` of the run."""
        return self.source[index] if index < self.num_rows else self.source.padding()

    def __getitem__(self, step: int) -> Batch:
        """Batch `step`, computed here and now."""
        rows = [self.row(step * self.batch_size + i) for i in range(self.batch_size)]
        return Batch._make(np.stack(arrays) for arrays in zip(*rows, strict=True))

    def from_step(self, step: int) -> grain.IterDataset:
        """Batches `step`, `step + 1`, ... made ahead by a thread; nothing before is computed."""
        rows = grain.MapDataset.range(step * self.batch_size, 2**62).map(self.row)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * self.batch_size)
        return rows.to_iter_dataset(options).batch(self.batch_size)
