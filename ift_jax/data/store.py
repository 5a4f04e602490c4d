"""Where built examples are kept: in memory, or in a file for sets larger than memory."""

import os
import pickle
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.chat import Encoded
from ift_jax.data.examples import Example
from ift_jax.data.packing import Tokens
from ift_jax.errors import InputError


class Stored(NamedTuple):
    """An example with its tokens.

    Attributes:
        example: the texts.
        ids: int32 [n].
        trained: bool [n]; True where token i is a target.
    """

    example: Example
    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


class Store:
    """Examples by number, in the order in which they were added.

    Args:
        path: a file that takes them, so that memory holds eight bytes an example; without it
            they stay in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: BinaryIO | None = path.open("w+b") if path else None
        self._places = array("Q", [0])
        self._kept: list[Stored] = []
        self.lengths, self.num_targets = array("I"), array("I")

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, example: Example, tokens: Encoded) -> int:
        """Adds an example; returns its number."""
        stored = Stored(example, tokens.ids, tokens.trained)
        self.lengths.append(len(tokens.ids))
        self.num_targets.append(int(tokens.trained[1:].sum()))
        if self._file is None:
            self._kept.append(stored)
        else:
            data = pickle.dumps(stored, protocol=5)
            self._file.seek(self._places[-1])
            self._file.write(data)
            self._places.append(self._places[-1] + len(data))
        return len(self) - 1

    def __getitem__(self, number: int) -> Stored:
        if self._file is None:
            return self._kept[number]
        self._file.flush()
        first, end = self._places[number], self._places[number + 1]
        return pickle.loads(os.pread(self._file.fileno(), end - first, first))

    def save_places(self, path: Path) -> None:
        """Writes what memory holds of the examples, for `extend`."""
        assert self._file is not None
        self._file.flush()
        np.savez(path, places=self._places, lengths=self.lengths, num_targets=self.num_targets)

    def extend(self, examples: Path, places: Path) -> int:
        """Adds all examples of another store's files; returns the number of the first."""
        if self._file is None:
            raise ValueError("a store in memory takes examples one by one")
        first, end = len(self), self._places[-1]
        self._file.seek(end)
        with examples.open("rb") as file:
            shutil.copyfileobj(file, self._file)
        with np.load(places) as saved:
            self._places.extend((saved["places"][1:] + np.uint64(end)).tolist())
            self.lengths.extend(saved["lengths"].tolist())
            self.num_targets.extend(saved["num_targets"].tolist())
        return first

    def close(self) -> None:
        """Closes the file; the store is of no use from then on."""
        if self._file is not None:
            self._file.close()


class Chosen(Sequence[Example]):
    """Some examples of a store, in a given order; read when they are asked for.

    Attributes:
        numbers: int64 [n]; theirs in the store.
    """

    def __init__(self, store: Store, numbers: NDArray[np.int64]) -> None:
        self.store, self.numbers = store, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Chosen": ...
    def __getitem__(self, index: int | slice) -> "Example | Chosen":
        if isinstance(index, slice):
            return Chosen(self.store, self.numbers[index])
        return self.store[int(self.numbers[index])].example

    def stored(self, index: int) -> Stored:
        """Example `index` with its tokens."""
        return self.store[int(self.numbers[index])]


class StoredTokens(Tokens):
    """The tokens of chosen examples, several choices one behind the other.

    Args:
        skipped: leading tokens of each example that are left out.

    Raises:
        InputError: if there is no example.
    """

    def __init__(self, chosen: Sequence[Chosen], skipped: int = 0) -> None:
        if not any(len(one) for one in chosen):
            raise InputError("no example is left to train on")
        self._chosen, self._skipped = chosen, skipped
        self._store = next(one.store for one in chosen if len(one))
        self._numbers = np.concatenate([one.numbers for one in chosen])

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array(self._store.lengths, np.int64)[self._numbers] - self._skipped

    @property
    def num_targets(self) -> NDArray[np.int64]:
        return np.array(self._store.num_targets, np.int64)[self._numbers]

    def get(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        _, ids, trained = self._store[int(self._numbers[number])]
        return ids[self._skipped :], trained[self._skipped :]

    def without(self, prefix: int) -> "StoredTokens":
        return StoredTokens(self._chosen, self._skipped + prefix)
