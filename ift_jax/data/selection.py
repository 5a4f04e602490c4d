"""Second half of a build: which examples are kept, and in which split, by digests and text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.collect import OWN_SPLITS, Collected, hex_digest
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.duplicates import contaminated, near_duplicates, num_words
from ift_jax.data.examples import Example
from ift_jax.data.leaks import HELD, HELD_IF_ALONE, HELD_IF_OWN, SHOWN, leaking, own_texts
from ift_jax.data.splits import assign_split, take_subset
from ift_jax.errors import InputError

# Of text that stands in two splits the later gives way; also the codes of splits.
_PRECEDENCE = ("test", "validation", "train")
_DROPPED = -1
# Keep digests of keys and groups apart from those of texts.
_KEY, _GROUP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

_T = TypeVar("_T")
ExampleOf = Callable[[int], Example]


@dataclass(frozen=True)
class Selected:
    """One task's kept examples.

    Attributes:
        numbers: split -> int64 [n]; numbers in the store, in their final order.
        removed: why -> how many records were removed.
    """

    numbers: Mapping[str, NDArray[np.int64]]
    removed: Mapping[str, int]


class _Texts(Sequence[_T]):
    """Text of each of some examples, fetched when it is asked for."""

    def __init__(self, numbers: NDArray[np.int64], text_of: Callable[[int], _T]) -> None:
        self.numbers, self.text_of = numbers, text_of

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.text_of(int(self.numbers[index]))


def select(
    tasks: Sequence[TaskConfig],
    collected: Sequence[Collected],
    config: DataConfig,
    example_of: ExampleOf,
) -> list[Selected]:
    """Splits every task, and drops repeats, near-repeats and leaks between splits.

    In this order: records that repeat another of their task; near-duplicates; records that
    show what a split of any task with precedence holds out (see `leaks`); training records that
    contaminate the tasks of `config.decontaminate`; what exceeds the sizes asked for. All
    of it depends on content, so that the order of the records decides nothing.

    Args:
        example_of: the example with this number.

    Raises:
        InputError: if a split has fewer records than its size asks for.
    """
    # From here on examples stand in the order of their content.
    indices = [found.index[_by_content(found.index)] for found in collected]
    splits = [_assign(task, index) for task, index in zip(tasks, indices, strict=True)]
    removed: list[dict[str, int]] = [{} for _ in tasks]
    for number, (task, index, split) in enumerate(zip(tasks, indices, splits, strict=True)):
        removed[number]["duplicates"] = _drop(index, split, _repeats(task, index))
        near = _near(task, index, split, example_of)
        removed[number]["near_duplicates"] = _drop(index, split, near)
    for number, leaked in enumerate(_leaks(tasks, collected, indices, splits)):
        removed[number]["in_other_split"] = _drop(indices[number], splits[number], leaked)
    for number, leaked in enumerate(_contaminated(tasks, indices, splits, config, example_of)):
        removed[number]["contaminated"] = _drop(indices[number], splits[number], leaked)
    return [
        Selected(
            {
                name: _subset(
                    task, name, index[split == _PRECEDENCE.index(name)], found.labels, config.seed
                )
                for name in SPLITS
            },
            counts,
        )
        for task, found, index, split, counts in zip(
            tasks, collected, indices, splits, removed, strict=True
        )
    ]


def _by_content(index: NDArray[Any]) -> NDArray[np.int64]:
    content, exact = index["content"], index["exact"]
    return np.lexsort(
        (
            np.arange(len(index)), index["whole"],
            exact[:, 1], exact[:, 0], content[:, 1], content[:, 0],
        )
    )  # fmt: skip


def _assign(task: TaskConfig, index: NDArray[Any]) -> NDArray[np.int8]:
    """The code of each example's split."""
    groups, places = np.unique(index["group"], axis=0, return_inverse=True)
    fractions = task.fractions
    codes = np.array(
        [_PRECEDENCE.index(assign_split(hex_digest(group), fractions)) for group in groups],
        np.int8,
    )
    split = codes[places.reshape(-1)] if len(index) else np.zeros(0, np.int8)
    for number, name in enumerate(OWN_SPLITS):
        if name:
            split[index["own_split"] == number] = _PRECEDENCE.index(name)
    return split


def _drop(index: NDArray[Any], split: NDArray[np.int8], dropped: NDArray[np.bool_]) -> int:
    """Drops examples with all others of their records; returns how many records that were."""
    dropped = dropped & (split != _DROPPED)
    records = np.unique(index["record"][dropped])
    split[np.isin(index["record"], records)] = _DROPPED
    return len(records)


def _repeats(task: TaskConfig, index: NDArray[Any]) -> NDArray[np.bool_]:
    """Examples of records whose content another record has that stays.

    Which one stays is told by digests of what they say and of their other columns, not by their
    order. Of a text in two of the set's own splits, each keeps one here; `_leaks` decides between
    them.
    """
    if task.repeats == "keep":
        return np.zeros(len(index), bool)
    said = "exact" if task.repeats == "exact" else "content"
    exact = index["exact"]
    order = np.lexsort(
        (
            index["record"], index["whole"], exact[:, 1], exact[:, 0],
            index["own_split"], index[said][:, 1], index[said][:, 0],
        )
    )  # fmt: skip
    ordered = index[order]
    same = (ordered[said][1:] == ordered[said][:-1]).all(axis=1)
    same &= ordered["own_split"][1:] == ordered["own_split"][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])[: len(index)])
    lengths = np.diff(np.append(starts, len(index)))
    first_record = np.repeat(ordered["record"][starts], lengths)
    repeated = np.zeros(len(index), bool)
    repeated[order] = ordered["record"] != first_record
    return repeated


def _near(
    task: TaskConfig, index: NDArray[Any], split: NDArray[np.int8], example_of: ExampleOf
) -> NDArray[np.bool_]:
    """Near-repeats; of two in different splits the one without precedence.

    A set's own validation and test files are not thinned by what stands in themselves, so that
    scores on them compare with others'.
    """
    dropped = np.zeros(len(index), bool)
    if task.near_duplicates:
        rows = _first_of_records(index, split != _DROPPED)
        found = near_duplicates(
            _Texts(index["number"][rows], lambda number: "\n".join(example_of(number).texts)),
            parts=_Texts(index["number"][rows], lambda number: example_of(number).texts),
            threshold=task.near_duplicates,
            ranks=split[rows].tolist(),
            intact=[_PRECEDENCE.index(name) for name in OWN_SPLITS if name and task.has_own(name)],
        )
        dropped[rows[[pair.dropped for pair in found]]] = True
    return dropped


def _first_of_records(index: NDArray[Any], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of one example of each record among those that are wanted."""
    places = np.flatnonzero(wanted)
    _, firsts = np.unique(index["record"][places], return_index=True)
    return places[np.sort(firsts)]


def _leaks(
    tasks: Sequence[TaskConfig],
    collected: Sequence[Collected],
    indices: Sequence[NDArray[Any]],
    splits: Sequence[NDArray[np.int8]],
) -> list[NDArray[np.bool_]]:
    """Examples of records that show what a split with precedence holds out, of whatever task."""
    marks: list[tuple[NDArray[Any], ...]] = []
    split_of, place_of, first = [], [], 0
    for number, (task, found, index, split) in enumerate(
        zip(tasks, collected, indices, splits, strict=True)
    ):
        records, firsts, places = np.unique(index["record"], return_index=True, return_inverse=True)
        split_of.append(split[firsts].astype(np.int64))
        place_of.append(places.reshape(-1) + first)
        alike = [index["key"][firsts, 0] ^ _KEY]
        if task.group_by:  # another task's groups may be called the same
            alike.append(index["group"][firsts, 0] ^ _GROUP ^ np.uint64(number))
        for digest in alike:
            everywhere = np.ones(len(records), bool)
            marks.append((np.arange(len(records)) + first, digest, everywhere, everywhere))
        place = np.searchsorted(records, found.marks["record"])
        kind = found.marks["kind"]
        held = kind & HELD > 0
        keys = index["key"][firsts]
        asked = np.column_stack([keys, index["asked"][firsts]])
        for names, mark in ((keys, HELD_IF_OWN), (asked, HELD_IF_ALONE)):
            _, codes = np.unique(names, axis=0, return_inverse=True)
            held |= own_texts(found.marks, codes.reshape(-1)[place], mark)
        marks.append((place + first, found.marks["digest"], held, kind & SHOWN > 0))
        first += len(records)
    record, digest, held, shown = map(np.concatenate, zip(*marks, strict=True))
    leaks = leaking(record, digest, held, shown, np.concatenate(split_of))
    return [leaks[places] for places in place_of]


def _contaminated(
    tasks: Sequence[TaskConfig],
    indices: Sequence[NDArray[Any]],
    splits: Sequence[NDArray[np.int8]],
    config: DataConfig,
    example_of: ExampleOf,
) -> list[NDArray[np.bool_]]:
    """Training examples that hold runs of words of an evaluation text or of its answer."""
    dropped = [np.zeros(len(index), bool) for index in indices]
    if not config.decontaminate:
        return dropped
    train = _PRECEDENCE.index("train")
    held_out = [
        index["number"][(split != _DROPPED) & (split != train)]
        for task, index, split in zip(tasks, indices, splits, strict=True)
        if task.name in config.decontaminate
    ]
    # What is shorter than a run is compared whole by `_leaks`.
    evaluation = {
        text: None
        for number in np.concatenate(held_out).tolist()
        for text in _held_out(example_of(number))
        if num_words(text) >= config.decontaminate_ngram
    }
    rows = [np.flatnonzero(split == train) for split in splits]
    trained = [index["number"][places] for index, places in zip(indices, rows, strict=True)]
    found = contaminated(
        _Texts(np.concatenate(trained), lambda number: _shown(example_of(number))),
        list(evaluation),
        ngram=config.decontaminate_ngram,
        min_overlap=config.decontaminate_overlap,
    )
    task_of = np.repeat(np.arange(len(rows)), [len(places) for places in rows])
    places_of = np.concatenate(rows)
    for leak in found:
        dropped[task_of[leak.train]][places_of[leak.train]] = True
    return dropped


def _shown(example: Example) -> str:
    """All that training on an example shows: system turns, instructions and templates, too."""
    return "\n".join([*example.said(), *example.turns.texts()])


def _held_out(example: Example) -> list[str]:
    """What must not be trained, text by text: the share of one does not depend on the others."""
    return [*example.said(), *example.texts]


def _subset(
    task: TaskConfig, split: str, index: NDArray[Any], labels: Sequence[str], seed: int
) -> NDArray[np.int64]:
    """The split's first `size` records in the order of their digests, with all their templates."""
    records, firsts, inverse = np.unique(index["record"], return_index=True, return_inverse=True)
    # In the order of content, as `index` is, not of the source.
    order = np.argsort(firsts)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    size = task.size(split)
    if size > len(records):
        raise InputError(
            f"config.data.tasks: {task.name}.{split}_size is {size}, "
            f"but the split has {len(records)} records"
        )
    first = index[firsts[order]]
    try:
        chosen = take_subset(
            [hex_digest(key) for key in first["key"]],
            size or len(records),
            labels=[labels[code] for code in first["label"].tolist()],
            balance=bool(task.balance_by and size),
            stratify=bool(task.stratify_by and size),
            fill=task.balance_fill,
            seed=seed,
        )
    except InputError as error:
        raise InputError(f"config.data.tasks: {task.name}.{split}_size: {error}") from error
    position = np.full(len(records), -1, np.int64)
    position[chosen] = np.arange(len(chosen))
    place = position[rank[inverse.reshape(-1)]]
    kept = np.flatnonzero(place >= 0)
    return index["number"][kept[np.argsort(place[kept], kind="stable")]]
