"""The packed rows of a data set's split."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.loader import Rows, RowSource
from ift_jax.data.pipeline import DataSet


class Packed(NamedTuple):
    """A split's rows, and the tokens that all its examples begin with: int32 [n]."""

    rows: Rows
    prefix: NDArray[np.int32]


def packed_rows(data: DataSet, split: str, seed: int) -> Packed:
    """Packs a split; training is mixed, and shuffled by `seed`.

    Raises:
        InputError: if it has no example, or one that a row has no room for.
    """
    if split == "train" and data.prepared_rows:
        return Packed(*data.prepared_rows(seed))
    return Packed(*pack(data, split, seed))


def pack(data: DataSet, split: str, seed: int) -> tuple[RowSource, NDArray[np.int32]]:
    """As `packed_rows`, always from the examples themselves."""
    config = data.config
    examples, slots = data.mixed() if split == "train" else (data.tokens(split), None)
    prefix = examples.common_prefix() if config.share_prefix else np.zeros(0, np.int32)
    # Several examples should fit a row, but a generous max_length alone need not cost memory.
    longest = min(config.max_length, 4 * int(examples.lengths.max()))
    source = RowSource(
        examples,
        config.row_length or longest - len(prefix),
        seed=seed,
        packing=config.packing if config.pack else "none",
        shuffle=split == "train",
        prefix=len(prefix),
        slots=slots,
        shorter=not config.row_length,
    )
    return source, prefix
