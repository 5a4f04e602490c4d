"""First half of a build: records become tokenized examples in a store, chunk by chunk.

What the second half decides by (digests, lengths, labels) goes into an index of numbers, so that
neither half needs more memory for a larger set than about a hundred bytes an example. Several
hosts can each take their part of the chunks; joined, the parts are what one host would make.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.chat import Chat
from ift_jax.data.config import DataConfig, TaskConfig
from ift_jax.data.examples import (
    conversation_format,
    from_conversations,
    from_templates,
    load_task_templates,
    of_a_class,
)
from ift_jax.data.fitting import Fitted, fit_examples
from ift_jax.data.leaks import MARKS, Marks
from ift_jax.data.records import Record, Rejected
from ift_jax.data.sources import read_records
from ift_jax.data.store import Store
from ift_jax.data.template_sandbox import Timeouts
from ift_jax.data.templates import Template
from ift_jax.errors import InputError

CHUNK = 2048  # records; what one host takes at a time,
CHUNK_CHARACTERS = 2**25  # or fewer, as soon as they have so many
INDEX = np.dtype(
    [
        ("number", "i8"),  # in the store
        ("record", "i8"),  # chunk * 2^32 + place in it: the order of the source
        ("content", "u8", 2),
        ("exact", "u8", 2),
        ("key", "u8", 2),
        ("asked", "u8"),  # half a digest
        ("group", "u8", 2),
        ("whole", "u8"),
        ("label", "i4"),  # in Collected.labels
        ("own_split", "i1"),  # in OWN_SPLITS
        ("truncated", "?"),
        ("leaves_out_reasoning", "?"),
    ]
)
OWN_SPLITS = ("", "validation", "test")  # "" is split by digest


@dataclass
class Collected:
    """One task's examples as numbers, and what was counted.

    Attributes:
        index: INDEX [n], in the order of the source.
        marks: MARKS [m], of the records in the index.
        labels: the values that `index["label"]` points at.
        rejected: (chunk, rejection).
        num_records: of the whole source, whatever part of it was taken.
        columns: of all records of the source.
        first_origin: of the first record.
        chunks: (first, end) of each source's chunks, by the split that it is for.
    """

    index: NDArray[Any] = field(default_factory=lambda: np.zeros(0, INDEX))
    marks: NDArray[Any] = field(default_factory=lambda: np.zeros(0, MARKS))
    labels: list[str] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)
    num_records: int = 0
    columns: set[str] = field(default_factory=set)
    first_origin: str = ""
    chunks: dict[str, tuple[int, int]] = field(default_factory=dict)


Source = str | tuple[str, ...]


def read_task(task: TaskConfig, source: Source, split: str) -> Iterator[Record | Rejected]:
    """The records of a task's source, with `-` in their columns' names made `_`, and renamed.

    A template cannot name a column with `-`; promptsource's readers replace it too.

    Raises:
        InputError: as `read_records`, and if a renamed column takes the place of another.
    """
    renamed = task.renamed
    for row in read_records(
        source,
        file_format=task.file_format,
        encoding=task.encoding,
        columns=task.columns,
        delimiter=task.delimiter,
        quoted=task.quoted,
        records_at=task.records_at,
        line_pattern=task.line_pattern,
        subset=task.subset if _on_hub(source) else "",
        split=split,
    ):
        if isinstance(row, Record) and "-" in "".join(row.fields):
            row = replace(row, fields=_underscored(row.fields))
        if isinstance(row, Record) and renamed:
            if taken := set(renamed.values()) & row.fields.keys():
                raise InputError(
                    f"{row.origin}: has a column {min(taken)!r} already; see "
                    f"config.data.tasks: {task.name}.rename"
                )
            new_names = {_as_read(old, row.fields): new for old, new in renamed.items()}
            fields = {new_names.get(name, name): value for name, value in row.fields.items()}
            row = replace(row, fields=fields)
        yield row


def _on_hub(source: Source) -> bool:
    names = [source] if isinstance(source, str) else source
    return any(name.startswith("hub:") for name in names)


def _as_read(name: str, fields: Mapping[str, Any]) -> str:
    """The name that a source's column has by now."""
    return name if name in fields else name.replace("-", "_")


def _underscored(fields: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {name.replace("-", "_"): value for name, value in fields.items()}
    return renamed if len(renamed) == len(fields) else dict(fields)


def sourced_tasks(config: DataConfig) -> list[tuple[TaskConfig, Source]]:
    """Each task with its source.

    Raises:
        InputError: for tasks without a name or source, and names that are given twice.
    """
    if not config.tasks:
        raise InputError("config.data.tasks: no task is given")
    names = [task.name for task in config.tasks]
    for name in names:
        if not name or names.count(name) > 1:
            raise InputError(f"config.data.tasks: names must be given and differ, got {names}")
    sources = [config.path or config.tasks[0].source, *(t.source for t in config.tasks[1:])]
    for name, source in zip(names, sources, strict=True):
        if not source:
            hint = "; set its source, or config.data.path" if name == names[0] else ""
            raise InputError(f"config.data.tasks: {name} has no source{hint}")
    return list(zip(config.tasks, sources, strict=True))


def task_sources(task: TaskConfig, source: Source) -> list[tuple[str, Source, str]]:
    """(split that it is for, source, the hub's name of the split) of each source of a task."""
    found = [("", source, task.split)]
    for split in ("validation", "test"):
        if task.has_own(split):
            own = getattr(task, f"{split}_source") or source
            found.append((split, own, getattr(task, f"{split}_split")))
    return found


def collect(
    task: TaskConfig,
    source: Source,
    config: DataConfig,
    chat: Chat,
    store: Store,
    part: tuple[int, int] = (0, 1),
) -> Collected:
    """Reads, renders and tokenizes a task; its examples go to the store.

    Args:
        part: (i, n): takes chunks i, i + n, i + 2 n, ... only.

    Raises:
        InputError: for what concerns a whole file or template, or all records.
    """
    templates = load_task_templates(task)
    found = Collected()
    label_codes: dict[str, int] = {}
    timeouts: Timeouts = Counter()  # of all chunks: a template that often hangs is given up
    pieces, mark_pieces = [np.zeros(0, INDEX)], [np.zeros(0, MARKS)]
    fmt, chunk = "", 0
    for split, where, hub_split in task_sources(task, source):
        rows, first_chunk = read_task(task, where, hub_split), chunk
        while taken := _chunk(rows):
            records = [row for row in taken if isinstance(row, Record)]
            for record in records:
                found.columns.update(record.fields)
            if records and not found.first_origin:
                found.first_origin = records[0].origin
                fmt = "" if templates else conversation_format(task, records[0])
            found.num_records += sum(_num_records(row, fmt) for row in taken)
            if chunk % part[1] == part[0]:
                rejected = [row for row in taken if isinstance(row, Rejected)]
                records = of_a_class(task, records, rejected)
                marks: dict[str, Marks] = {}
                if templates:
                    made = from_templates(
                        task, templates, records, config.seed, rejected, marks,
                        chat.most_characters(config.max_length), timeouts,
                    )  # fmt: skip
                else:
                    made = from_conversations(task, fmt, records, rejected, marks)
                fitted = fit_examples(made, config, chat, rejected)
                pieces.append(_index(fitted, chunk, split, label_codes, store))
                mark_pieces.append(_marks(fitted, pieces[-1], marks))
                found.rejected += [(chunk, one) for one in rejected]
            chunk += 1
        found.chunks[split] = first_chunk, chunk
    found.index, found.marks = np.concatenate(pieces), np.concatenate(mark_pieces)
    found.labels = list(label_codes)
    _refuse_missing_columns(task, templates, found)
    return found


def _chunk(rows: Iterator[Record | Rejected]) -> list[Record | Rejected]:
    """The next CHUNK rows, or fewer that hold very much text."""
    taken: list[Record | Rejected] = []
    room = CHUNK_CHARACTERS
    while room > 0 and len(taken) < CHUNK and (row := next(rows, None)):
        taken.append(row)
        room -= _num_characters(row.fields) if isinstance(row, Record) else 0
    return taken


def _num_characters(fields: Mapping[str, Any]) -> int:
    """Of all texts in a record, however deep."""
    total, waiting = 0, list(fields.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return total


def _num_records(row: Record | Rejected, fmt: str) -> int:
    """How many records a row stands for: a Super-NaturalInstructions file has one an instance."""
    if fmt != "superni" or isinstance(row, Rejected):
        return 1
    instances = row.fields.get("Instances")
    return max(1, len(instances)) if isinstance(instances, list) else 1


def _index(
    fitted: Sequence[Fitted], chunk: int, split: str, label_codes: dict[str, int], store: Store
) -> NDArray[Any]:
    index = np.zeros(len(fitted), INDEX)
    places: dict[str, int] = {}
    own = OWN_SPLITS.index(split)
    rows = []
    for one in fitted:
        example = one.example
        rows.append(
            (
                store.append(example, one.tokens),
                chunk << 32 | places.setdefault(example.origin, len(places)),
                _halves(example.content),
                _halves(example.exact),
                _halves(example.key),
                _halves(example.asked)[0],
                _halves(example.group),
                example.whole,
                label_codes.setdefault(example.label, len(label_codes)),
                own,
                one.truncated,
                one.leaves_out_reasoning,
            )
        )
    index[:] = rows
    return index


def _marks(
    fitted: Sequence[Fitted], index: NDArray[Any], marks: Mapping[str, Marks]
) -> NDArray[Any]:
    records = dict(zip((one.example.origin for one in fitted), index["record"], strict=True))
    rows = [
        (record, digest, kind)
        for origin, record in records.items()
        for digest, kind in marks[origin].items()
    ]
    return np.array(rows, MARKS)


def _halves(digest: str) -> tuple[int, int]:
    return int(digest[:16], 16), int(digest[16:], 16)


def hex_digest(halves: NDArray[Any]) -> str:
    """The digest that an index holds as two numbers."""
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"


def _refuse_missing_columns(
    task: TaskConfig, templates: Sequence[Template], found: Collected
) -> None:
    """A column that no record has is a mistake of the config, not of the records."""
    if not found.first_origin:
        first = found.rejected[0][1] if found.rejected else None
        detail = f"; first: {first.origin}: {first.detail}" if first else ""
        raise InputError(f"task {task.name}: no record could be read{detail}")
    asked: list[tuple[str, str]] = []
    if task.template_mode == "strict":  # promptsource prints nothing for a missing column
        asked += [(c, f"template {t.name!r}") for t in templates for c in sorted(t.columns)]
    asked += [(c, "split_by") for c in task.split_by]
    asked += [(c, "group_by") for c in task.group_by]
    asked += [
        (column, name)
        for name in ("balance_by", "stratify_by", "template_column")
        if (column := getattr(task, name))
    ]
    for old, new in task.renamed.items():
        if new not in found.columns:
            raise InputError(
                f"{found.first_origin}: no column {old!r}, which task {task.name}.rename names; "
                f"there are {sorted(found.columns)}"
            )
    for column, user in asked:
        if column not in found.columns:
            raise InputError(
                f"{found.first_origin}: no column {column!r}, which {user} of task {task.name} "
                f"reads; there are {sorted(found.columns)}. If one of them is meant, set the "
                f"task's rename=('its_name={column}',)"
            )


def join_parts(parts: Sequence[Collected], firsts: Sequence[int]) -> Collected:
    """One task's parts as one host would have collected them.

    Args:
        parts: of n hosts, in any order.
        firsts: what to add to each part's numbers in the store.
    """
    labels = list(dict.fromkeys(label for part in parts for label in part.labels))
    codes = {label: code for code, label in enumerate(labels)}
    indices = []
    for part, first in zip(parts, firsts, strict=True):
        index = part.index.copy()
        index["number"] += first
        if len(index):
            index["label"] = np.array([codes[label] for label in part.labels])[index["label"]]
        indices.append(index)
    index = np.concatenate(indices)
    return Collected(
        index=index[np.argsort(index["record"], kind="stable")],
        marks=np.concatenate([part.marks for part in parts]),
        labels=labels,
        rejected=sorted((r for part in parts for r in part.rejected), key=lambda pair: pair[0]),
        num_records=parts[0].num_records,
        columns=parts[0].columns,
        first_origin=parts[0].first_origin,
        chunks=parts[0].chunks,
    )
