"""Rows and batches by number: `rows(seed, r)` and `batches[s]` compute nothing before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import grain
import numpy as np
from numpy.typing import NDArray

from ift_jax.batch import Batch
from ift_jax.data.mixture import Slots
from ift_jax.data.packing import Packing, Pair, Plan, Tokens, deal, plan_rows
from ift_jax.errors import InputError


class Rows(Protocol):
    """Packed rows of all epochs, one after the other: a random-access source for grain."""

    @property
    def rows_per_epoch(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def padding(self) -> Batch:
        """A row without an example."""
        ...

    def summary(self) -> str:
        """What was packed, in one line."""
        ...


class RowSource:
    """Rows packed from examples.

    `prefix` leading tokens, the same in all examples, stay out of the rows; positions count on
    from them. Row r is row r % rows_per_epoch of epoch r // rows_per_epoch.

    Args:
        slots: what an epoch holds; default every example once.
        shorter: see `plan_rows`.
    """

    def __init__(
        self,
        examples: Tokens,
        row_length: int,
        *,
        seed: int,
        packing: Packing = "best_fit",
        shuffle: bool = True,
        prefix: int = 0,
        slots: Slots | None = None,
        shorter: bool = False,
    ):
        self.examples = examples = examples.without(prefix)
        self.prefix = prefix
        self.slots = slots or Slots.all_of(len(examples.lengths))
        self.plan: Plan = plan_rows(
            self.slots.largest(examples.lengths),
            self.slots.largest(examples.num_targets),
            row_length,
            packing=packing,
            shorter=shorter,
        )
        self.seed, self.shuffle = seed, shuffle
        self._deal = lru_cache(maxsize=2)(self._deal_epoch)

    @property
    def rows_per_epoch(self) -> int:
        return self.plan.num_rows

    @property
    def utilisation(self) -> float:
        """Share of row positions that hold a token, in the first epoch."""
        held = self.slots.at(np.arange(len(self.plan.order)), 0)
        used = int(self.examples.lengths[held].sum())
        return used / (self.plan.num_rows * self.plan.row_length)

    def summary(self) -> str:
        """What was packed, in one line."""
        return (
            f"{len(self.plan.order)} examples in {self.rows_per_epoch} rows of "
            f"{self.plan.row_length} tokens, {self.utilisation:.1%} used"
        )

    def __getitem__(self, index: int) -> Batch:
        members = [self.examples.get(number) for number in self.members(index).tolist()]
        return fill_row(members, self.plan.row_length, self.plan.row_targets, self.prefix)

    def padding(self) -> Batch:
        """A row without an example."""
        return fill_row([], self.plan.row_length, self.plan.row_targets)

    def members(self, index: int) -> NDArray[np.int64]:
        """The numbers of the examples in a row."""
        epoch, position = divmod(index, self.plan.num_rows)
        dealt, rows = self._deal(epoch)
        return self.slots.at(dealt[self.plan.rows[rows[position]]], epoch)

    def _deal_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.shuffle:
            return deal(self.plan, self.seed, epoch)
        return self.plan.order, np.arange(self.plan.num_rows)


def fill_row(
    members: Sequence[Pair],
    row_length: int,
    row_targets: int,
    first_position: int = 0,
) -> Batch:
    """One row (arrays without the B axis) of these examples (ids, trained), padded.

    The last token of an example predicts nothing, and the first is no target: no position
    of its own example comes before it.
    """
    tokens, positions, segment_ids = np.zeros((3, row_length), np.int32)
    target_positions, targets = np.zeros((2, row_targets), np.int32)
    weights = np.zeros(row_targets, np.float32)
    at = used = 0
    for segment, (ids, is_trained) in enumerate(members, start=1):
        length = len(ids)
        tokens[at : at + length] = ids
        positions[at : at + length] = first_position + np.arange(length)
        segment_ids[at : at + length] = segment
        trained = np.flatnonzero(is_trained[1:])
        count = len(trained)
        target_positions[used : used + count] = at + trained
        targets[used : used + count] = ids[1 + trained]
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
        part: (i, n): of each batch the rows of host i of n. The hosts' rows, one behind the
            other, are the batch that a single host would have.
    """

    source: Rows
    batch_size: int
    num_epochs: float
    part: tuple[int, int] = (0, 1)

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

    @property
    def local_size(self) -> int:
        """Rows of each batch that this host makes.

        Raises:
            InputError: if the batch does not divide over the hosts.
        """
        if self.batch_size % self.part[1]:
            raise InputError(
                f"config.train.batch_size={self.batch_size} does not divide over "
                f"{self.part[1]} hosts"
            )
        return self.batch_size // self.part[1]

    def local_row(self, number: int) -> Batch:
        """This host's row `number`, counted over all batches."""
        step, place = divmod(number, self.local_size)
        return self.row(step * self.batch_size + self.part[0] * self.local_size + place)

    def __getitem__(self, step: int) -> Batch:
        """Batch `step`, computed here and now."""
        first = step * self.local_size
        rows = [self.local_row(first + i) for i in range(self.local_size)]
        return Batch._make(np.stack(arrays) for arrays in zip(*rows, strict=True))

    def from_step(self, step: int) -> grain.IterDataset:
        """Batches `step`, `step + 1`, ... made ahead by a thread; nothing before is computed."""
        size = self.local_size
        rows = grain.MapDataset.range(step * size, 2**62).map(self.local_row)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * size)
        return rows.to_iter_dataset(options).batch(size)
