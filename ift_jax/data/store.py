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
from ift_jax.data.packing import Examples


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

    def __len__(self) -> int:
        return len(self._places) - 1 if self._file else len(self._kept)

    def append(self, example: Example, tokens: Encoded) -> int:
        """Adds an example; returns its number."""
        if self._file is None:
            self._kept.append(Stored(example, tokens.ids, tokens.trained))
            return len(self._kept) - 1
        data = pickle.dumps(Stored(example, tokens.ids, tokens.trained), protocol=5)
        self._file.seek(self._places[-1])
        self._file.write(data)
        self._places.append(self._places[-1] + len(data))
        return len(self._places) - 2

    def __getitem__(self, number: int) -> Stored:
        if self._file is None:
            return self._kept[number]
        self._file.flush()
        first, end = self._places[number], self._places[number + 1]
        return pickle.loads(os.pread(self._file.fileno(), end - first, first))

    def save_places(self, path: Path) -> None:
        """Writes where each example stands, for `extend`."""
        np.save(path, np.array(self._places, np.uint64))

    def extend(self, examples: Path, places: Path) -> int:
        """Adds all examples of another store's files; returns the number of the first."""
        if self._file is None:
            raise ValueError("a store in memory takes examples one by one")
        first, end = len(self), self._places[-1]
        self._file.seek(end)
        with examples.open("rb") as file:
            shutil.copyfileobj(file, self._file)
        self._places.extend((np.load(places)[1:] + np.uint64(end)).tolist())
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

    def tokens(self) -> Examples:
        """All of them as token ids, in memory.

        Raises:
            InputError: if there is none.
        """
        parts = [self.stored(i) for i in range(len(self))]
        return Examples.join([(one.ids, one.trained) for one in parts])
