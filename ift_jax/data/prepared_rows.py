"""The rows of a prepared set: their bytes in shards, and the order in which epochs visit them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from ift_jax.batch import Batch
from ift_jax.data.loader import fill_row
from ift_jax.data.packing import Pair
from ift_jax.errors import InputError, one_line


def encode_row(members: Sequence[Pair]) -> bytes:
    """The examples of a row as bytes: their number, lengths, ids, and a bit a token."""
    lengths = [len(ids) for ids, _ in members]
    head = np.array([len(members), *lengths], "<i4")
    ids = b"".join(ids.astype("<i4", copy=False).data for ids, _ in members)
    bits = np.packbits(np.concatenate([trained for _, trained in members]))
    return head.tobytes() + ids + bits.tobytes()


def decode_row(data: bytes) -> list[Pair]:
    """The inverse of `encode_row`."""
    count = int(np.frombuffer(data, "<i4", 1)[0])
    lengths = np.frombuffer(data, "<i4", count, offset=4)
    total = int(lengths.sum())
    ids = np.frombuffer(data, "<i4", total, offset=4 + 4 * count).astype(np.int32)
    bits = np.frombuffer(data, np.uint8, offset=4 + 4 * (count + total))
    trained = np.unpackbits(bits, count=total).astype(bool)
    edges = np.cumsum(lengths)[:-1]
    return list(zip(np.split(ids, edges), np.split(trained, edges), strict=True))


def prepared_summary(index: Mapping[str, Any]) -> str:
    """What was packed, in one line."""
    used = index["tokens"] / (index["rows"] * index["row_length"])
    return (
        f"{index['examples']} examples in {index['rows']} prepared rows of "
        f"{index['row_length']} tokens, {used:.1%} used"
    )


class PreparedRows:
    """The rows of a prepared set, all epochs one after the other.

    Row r is the one that a keyed permutation of the rows has at r % rows_per_epoch, in epoch
    r // rows_per_epoch; see `ift_jax.data.loader.Rows`.

    Raises:
        InputError: for a shard that does not hold as many rows as the index says.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any], seed: int) -> None:
        self._folder, self._index, self._seed = folder, index, seed
        paths = [str(folder / shard["name"]) for shard in index["shards"] if shard["rows"]]
        try:
            self._source = grain.sources.ArrayRecordDataSource(paths)
            found = len(self._source)
        except Exception as error:
            raise InputError(f"{folder}: a shard cannot be read: {one_line(error)}") from error
        if found != index["rows"]:
            raise InputError(
                f"{folder}: the shards hold {found} rows, index.json says {index['rows']}; "
                "prepare the set anew"
            )

    @property
    def rows_per_epoch(self) -> int:
        return self._index["rows"]

    def summary(self) -> str:
        """What was packed, in one line."""
        return prepared_summary(self._index)

    def __getitem__(self, index: int) -> Batch:
        epoch, position = divmod(index, self.rows_per_epoch)
        row = permuted(position, self.rows_per_epoch, f"{self._seed} {epoch}")
        try:
            members = decode_row(self._source[row])
        except RuntimeError as error:  # damaged since it was opened
            raise InputError(f"{self._shard_of(row)}: cannot be read: {one_line(error)}") from error
        return fill_row(
            members, self._index["row_length"], self._index["row_targets"], self._first_position
        )

    def _shard_of(self, row: int) -> Path:
        ends = np.cumsum([shard["rows"] for shard in self._index["shards"]])
        number = int(np.searchsorted(ends, row, side="right"))
        return self._folder / self._index["shards"][number]["name"]

    def padding(self) -> Batch:
        """A row without an example."""
        return fill_row([], self._index["row_length"], self._index["row_targets"])

    @property
    def _first_position(self) -> int:
        return len(self._index["prefix"])


def permuted(position: int, size: int, key: str) -> int:
    """What stands at a position of a permutation of 0 ... size - 1, found without the others.

    A Feistel network of four rounds over the next power of four, walked until it lands below
    `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Example:
        >>> sorted(permuted(position, 10, "seed 0") for position in range(10)) == list(range(10))
        True
    """
    bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & mask
        for round_number in range(4):
            text = f"{key} {round_number} {right}".encode()
            mixed = hashlib.blake2b(text, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "little") & mask)
        position = left << bits | right
        if position < size:
            return position
