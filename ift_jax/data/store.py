"""Where built examples are kept: in memory, or in files for sets larger than memory."""

import hashlib
import os
import pickle
import shutil
from array import array
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.examples import Example
from ift_jax.data.packing import Pair, Tokens
from ift_jax.data.tokenization import Encoded
from ift_jax.errors import InputError

_FIELDS = tuple(Example.__slots__)
_VALUES = attrgetter(*_FIELDS)
_COLUMNS = {
    "lengths": "I", "targets": "I", "trained": "I", "origins": "Q", "digests": "Q",
    "templates": "I", "answers": "I", "shots": "H",
}  # fmt: skip


class Names:
    """Numbers for texts of which there are few: 0, 1, ... in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The number of a text."""
        if text not in self._codes:
            self._codes[text] = len(self.texts)
            self.texts.append(text)
        return self._codes[text]


class Numbers:
    """What is kept in memory of each example, whatever is on disk.

    Attributes:
        lengths: tokens.
        targets: trained tokens but for the first.
        trained: trained tokens.
        origins: digest of the origin; equal for examples of one record.
        digests: of what the example says as rendered, and of what its answer is judged by.
        templates: code in the store's `template_names`.
        answers: code in the store's `answer_names` plus 1; 0 for examples without choices.
        shots: solved examples before the question.
    """

    def __init__(self) -> None:
        self.columns = {name: array(kind) for name, kind in _COLUMNS.items()}

    def append(self, *values: int) -> None:
        """Adds one value to each column, in the order above."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def get(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """A column's values for some examples."""
        return np.frombuffer(self.columns[name], self.columns[name].typecode)[numbers]


class Store:
    """Examples by number, in the order in which they were added.

    Args:
        folder: takes them in files, so that memory holds some fifty bytes an example; without it
            they stay in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.numbers = Numbers()
        self.template_names, self.answer_names = Names(), Names()
        self._examples: list[Example] = []
        self._tokens: list[Pair] = []
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._places = array("Q", [0]), array("Q", [0])
        if folder:
            self._files = (folder / "examples.bin").open("w+b"), (folder / "tokens.bin").open("w+b")

    def __len__(self) -> int:
        return len(self.numbers.columns["lengths"])

    def append(self, example: Example, tokens: Encoded) -> int:
        """Adds an example; returns its number."""
        ids, trained = tokens.ids, tokens.trained
        num_trained = int(np.count_nonzero(trained))
        self.numbers.append(
            len(ids),
            num_trained - int(trained[:1].sum()),
            num_trained,
            _digest(example.origin),
            _digest("\0".join([*example.turns.texts(), *example.choices, *example.references])),
            self.template_names.code(example.template),
            1 + self.answer_names.code(example.completion) if example.choices else 0,
            example.shots,
        )
        if self._files is None:
            self._examples.append(example)
            self._tokens.append((ids, trained))
        else:
            data = pickle.dumps(_VALUES(example), protocol=5), _pack(ids, trained)
            for file, places, written in zip(self._files, self._places, data, strict=True):
                file.write(written)
                places.append(places[-1] + len(written))
        return len(self) - 1

    def example(self, number: int) -> Example:
        """The example with this number."""
        if self._files is None:
            return self._examples[number]
        return Example(*pickle.loads(self._read(0, number)))

    def tokens(self, number: int) -> Pair:
        """(int32 ids, bool trained) of an example."""
        if self._files is None:
            return self._tokens[number]
        return _unpack(self._read(1, number), self.numbers.columns["lengths"][number])

    def _read(self, which: int, number: int) -> bytes:
        assert self._files is not None
        file, places = self._files[which], self._places[which]
        file.flush()
        return os.pread(file.fileno(), places[number + 1] - places[number], places[number])

    def save(self, path: Path) -> None:
        """Writes what memory holds of the examples, for `extend`."""
        assert self._files is not None
        for file in self._files:
            file.flush()
        np.savez(
            path,
            example_places=self._places[0],
            token_places=self._places[1],
            template_names=np.array(self.template_names.texts, object),
            answer_names=np.array(self.answer_names.texts, object),
            **self.numbers.columns,  # type: ignore[arg-type]
        )

    def extend(self, folder: Path, saved: Path) -> int:
        """Adds all examples of another store's files; returns the number of the first."""
        assert self._files is not None
        first = len(self)
        with np.load(saved, allow_pickle=True) as values:
            for file, places, names in zip(
                self._files, self._places, ("example", "token"), strict=True
            ):
                end = places[-1]
                with (folder / f"{names}s.bin").open("rb") as other:
                    shutil.copyfileobj(other, file)
                places.extend((values[f"{names}_places"][1:] + np.uint64(end)).tolist())
            templates = [self.template_names.code(name) for name in values["template_names"]]
            answers = [0, *(1 + self.answer_names.code(name) for name in values["answer_names"])]
            for name, column in self.numbers.columns.items():
                added = values[name]
                if name in ("templates", "answers") and len(added):
                    added = np.array(templates if name == "templates" else answers)[added]
                column.extend(added.tolist())
        return first

    def close(self) -> None:
        """Closes the files; the store is of no use from then on."""
        for file in self._files or ():
            file.close()


def _digest(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _pack(ids: NDArray[np.int32], trained: NDArray[np.bool_]) -> bytes:
    return ids.astype("<i4").tobytes() + np.packbits(trained).tobytes()


def _unpack(data: bytes, length: int) -> Pair:
    ids = np.frombuffer(data, "<i4", length).astype(np.int32, copy=False)
    bits = np.frombuffer(data, np.uint8, offset=4 * length)
    return ids, np.unpackbits(bits, count=length).view(bool)


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
        return self.store.example(int(self.numbers[index]))

    def column(self, name: str) -> NDArray[np.int64]:
        """[n]; one of the store's numbers of each example."""
        return self.store.numbers.get(name, self.numbers)

    def of_template(self, name: str, count: int | None = None) -> "Chosen":
        """The first `count` of those that a template made, or all."""
        is_its = self.column("templates") == self.store.template_names.code(name)
        return Chosen(self.store, self.numbers[np.flatnonzero(is_its)[:count]])

    def templates(self) -> dict[str, int]:
        """How many examples each template made, in the order of their first use."""
        return _counted(self.column("templates"), self.store.template_names)

    def answers(self) -> dict[str, int]:
        """How often each choice is the answer, among examples that have choices."""
        codes = self.column("answers")
        return _counted(codes[codes > 0] - 1, self.store.answer_names)


def _counted(codes: NDArray[np.int64], names: Names) -> dict[str, int]:
    found, firsts, counts = np.unique(codes, return_index=True, return_counts=True)
    order = np.argsort(firsts)
    return {names.texts[int(found[i])]: int(counts[i]) for i in order}


def stored_tokens(chosen: Sequence[Chosen]) -> Tokens:
    """The tokens of chosen examples of one store, several choices one behind the other.

    Raises:
        InputError: if there is no example.
    """
    if not any(len(one) for one in chosen):
        raise InputError("no example is left to train on")
    store = next(one.store for one in chosen if len(one))
    numbers = np.concatenate([one.numbers for one in chosen])
    return Tokens(
        store.numbers.get("lengths", numbers).astype(np.int64),
        store.numbers.get("targets", numbers).astype(np.int64),
        lambda number: store.tokens(int(numbers[number])),
    )
