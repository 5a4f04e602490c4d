"""Second half of a build: which examples are kept, and in which split, by digests and text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.collect import OWN_SPLITS, Collected, hex_digest
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.duplicates import contaminated, near_duplicates
from ift_jax.data.splits import assign_split, take_subset
from ift_jax.errors import InputError

# Of text that stands in two splits the later gives way; also the codes of splits.
_PRECEDENCE = ("test", "validation", "train")
_DROPPED = -1

TextOf = Callable[[int], str]


@dataclass(frozen=True)
class Selected:
    """One task's kept examples.

    Attributes:
        numbers: split -> int64 [n]; numbers in the store, in their final order.
        removed: why -> how many records were removed.
    """

    numbers: Mapping[str, NDArray[np.int64]]
    removed: Mapping[str, int]


class _Texts(Sequence[str]):
    """The text of each of some examples, fetched when it is asked for."""

    def __init__(self, numbers: NDArray[np.int64], text_of: TextOf) -> None:
        self.numbers, self.text_of = numbers, text_of

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.text_of(int(self.numbers[index]))


def select(
    tasks: Sequence[TaskConfig],
    collected: Sequence[Collected],
    config: DataConfig,
    text_of: TextOf,
) -> list[Selected]:
    """Splits every task, and drops repeats, near-repeats and leaks between splits.

    In this order: records that say the same as an earlier one of their task; near-duplicates;
    text that a split of any task with precedence holds too; training text that
    contaminates the tasks of `config.decontaminate`; what exceeds the sizes asked for. All
    of it depends on content, so that the order of the records decides nothing.

    Args:
        text_of: the text of the example with this number.

    Raises:
        InputError: if a split has fewer records than its size asks for.
    """
    # From here on examples stand in the order of their content.
    indices = [found.index[_by_content(found.index)] for found in collected]
    splits = [_assign(task, index) for task, index in zip(tasks, indices, strict=True)]
    removed: list[dict[str, int]] = [{} for _ in tasks]
    for number, (task, index, split) in enumerate(zip(tasks, indices, splits, strict=True)):
        removed[number]["duplicates"] = _drop(index, split, _repeats(index))
        removed[number]["near_duplicates"] = _drop(index, split, _near(task, index, split, text_of))
    for number, leaked in enumerate(_leaks(indices, splits)):
        removed[number]["in_other_split"] = _drop(indices[number], splits[number], leaked)
    for number, leaked in enumerate(_contaminated(tasks, indices, splits, config, text_of)):
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
    content = index["content"]
    return np.lexsort((np.arange(len(index)), content[:, 1], content[:, 0]))


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


def _repeats(index: NDArray[Any]) -> NDArray[np.bool_]:
    """Examples of records whose content stands in an earlier record, in the source's order.

    Of a text in two of the set's own splits, each keeps one here; `_leaks` decides between them.
    """
    order = np.lexsort(
        (index["record"], index["own_split"], index["content"][:, 1], index["content"][:, 0])
    )
    ordered = index[order]
    same = (ordered["content"][1:] == ordered["content"][:-1]).all(axis=1)
    same &= ordered["own_split"][1:] == ordered["own_split"][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])[: len(index)])
    lengths = np.diff(np.append(starts, len(index)))
    first_record = np.repeat(ordered["record"][starts], lengths)
    repeated = np.zeros(len(index), bool)
    repeated[order] = ordered["record"] != first_record
    return repeated


def _near(
    task: TaskConfig, index: NDArray[Any], split: NDArray[np.int8], text_of: TextOf
) -> NDArray[np.bool_]:
    dropped = np.zeros(len(index), bool)
    if task.near_duplicates:
        rows = _first_of_records(index, split != _DROPPED)
        texts = _Texts(index["number"][rows], text_of)
        found = near_duplicates(texts, threshold=task.near_duplicates)
        dropped[rows[[pair.dropped for pair in found]]] = True
    return dropped


def _first_of_records(index: NDArray[Any], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of one example of each record among those that are wanted."""
    places = np.flatnonzero(wanted)
    _, firsts = np.unique(index["record"][places], return_index=True)
    return places[np.sort(firsts)]


def _leaks(
    indices: Sequence[NDArray[Any]], splits: Sequence[NDArray[np.int8]]
) -> list[NDArray[np.bool_]]:
    """Examples whose text stands in a split with precedence, of whatever task."""
    keys = np.concatenate([index["key"] for index in indices])
    codes = np.concatenate(splits).astype(np.int64)
    _, texts = np.unique(keys, axis=0, return_inverse=True)
    texts = texts.reshape(-1)
    kept = codes != _DROPPED
    foremost = np.full(len(codes), len(_PRECEDENCE))
    np.minimum.at(foremost, texts[kept], codes[kept])
    leaked = kept & (codes > foremost[texts])
    ends = np.cumsum([len(index) for index in indices])
    return np.split(leaked, ends[:-1])


def _contaminated(
    tasks: Sequence[TaskConfig],
    indices: Sequence[NDArray[Any]],
    splits: Sequence[NDArray[np.int8]],
    config: DataConfig,
    text_of: TextOf,
) -> list[NDArray[np.bool_]]:
    dropped = [np.zeros(len(index), bool) for index in indices]
    if not config.decontaminate:
        return dropped
    train = _PRECEDENCE.index("train")
    held_out = [
        index["number"][_first_of_records(index, (split != _DROPPED) & (split != train))]
        for task, index, split in zip(tasks, indices, splits, strict=True)
        if task.name in config.decontaminate
    ]
    rows = [_first_of_records(i, s == train) for i, s in zip(indices, splits, strict=True)]
    trained = [index["number"][places] for index, places in zip(indices, rows, strict=True)]
    found = contaminated(
        _Texts(np.concatenate(trained), text_of),
        _Texts(np.concatenate(held_out), text_of),
        ngram=config.decontaminate_ngram,
        min_overlap=config.decontaminate_overlap,
    )
    task_of = np.repeat(np.arange(len(rows)), [len(places) for places in rows])
    places_of = np.concatenate(rows)
    for leak in found:
        dropped[task_of[leak.train]][places_of[leak.train]] = True
    return dropped


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
