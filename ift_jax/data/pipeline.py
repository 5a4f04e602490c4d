"""From records to examples: read, render, check, split, choose; and the card that counts it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ift_jax.data.chat import Chat, Encoded, UnusableTurns
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.examples import (
    Example,
    from_conversations,
    from_templates,
    load_task_templates,
)
from ift_jax.data.packing import Examples
from ift_jax.data.records import Record, Rejected
from ift_jax.data.sources import read_records
from ift_jax.data.splits import assign_split, take_subset
from ift_jax.data.templates import Template, lint
from ift_jax.errors import InputError

LINT_RECORDS = 200
_ELLIPSIS = " ... "


@dataclass(frozen=True)
class TaskData:
    """A task's examples by split, and what was counted on the way."""

    config: TaskConfig
    splits: Mapping[str, list[Example]]
    rejected: list[Rejected] = field(default_factory=list)
    num_records: int = 0
    num_duplicates: int = 0
    num_truncated: int = 0


@dataclass(frozen=True)
class DataSet:
    """All tasks, tokenized with one chat format."""

    config: DataConfig
    tasks: tuple[TaskData, ...]
    chat: Chat

    def examples(self, split: str) -> list[Example]:
        """All tasks' examples of a split, one task behind the other."""
        return [example for task in self.tasks for example in task.splits[split]]

    def tokens(self, split: str) -> Examples:
        """The same, tokenized, with what is trained marked."""
        encoded = encode_examples(self.chat, self.examples(split))
        return Examples.join([(e.ids, e.trained) for e in encoded])


def encode_examples(chat: Chat, examples: Iterable[Example]) -> list[Encoded]:
    """Token ids of examples and what of them is trained."""
    return chat.encode_layouts(chat.layout(example.turns) for example in examples)


def build(config: DataConfig, chat: Chat) -> DataSet:
    """Reads and prepares every task.

    Raises:
        InputError: for what concerns a whole file or template, and where more than
            `max_rejected` of a task's records were rejected. Single bad records are kept in
            `TaskData.rejected`.
    """
    built = [_build_task(task, source, config, chat) for task, source in _sourced(config)]
    return DataSet(config, tuple(built), chat)


def lint_tasks(config: DataConfig) -> list[str]:
    """What is doubtful about each task's templates, judged with its first records.

    Raises:
        InputError: as `build`.
    """
    findings = []
    for task, source in _sourced(config):
        rows = islice(_read(task, source), LINT_RECORDS)
        records = [row.fields for row in rows if isinstance(row, Record)]
        columns = sorted({name for fields in records for name in fields})
        templates = {template.name: template for template in load_task_templates(task)}
        findings += lint(templates, columns, records)
    return findings


def _sourced(config: DataConfig) -> list[tuple[TaskConfig, str | tuple[str, ...]]]:
    """Each task with its source."""
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


def _read(task: TaskConfig, source: str | tuple[str, ...]) -> Iterator[Record | Rejected]:
    return read_records(
        source,
        file_format=task.file_format,
        encoding=task.encoding,
        columns=task.columns,
        delimiter=task.delimiter,
        quoted=task.quoted,
        records_at=task.records_at,
        line_pattern=task.line_pattern,
        subset=task.subset,
        split=task.split,
    )


def _build_task(
    task: TaskConfig, source: str | tuple[str, ...], config: DataConfig, chat: Chat
) -> TaskData:
    templates = load_task_templates(task)
    rejected: list[Rejected] = []
    records: list[Record] = []
    for row in _read(task, source):
        rejected.append(row) if isinstance(row, Rejected) else records.append(row)
    num_records = len(records) + len(rejected)
    _refuse_missing_columns(task, templates, records, rejected)
    if templates:
        made = from_templates(task, templates, records, config.seed, rejected)
    else:
        made = from_conversations(task, records, rejected)
    fitting, num_truncated = _fit(made, config, chat, rejected)
    _refuse_too_many(task, config, num_records, rejected)
    kept, num_duplicates = _without_repeats(fitting)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in kept:
        splits[assign_split(example.key, task.fractions)].append(example)
    for name in SPLITS:
        splits[name] = _subset(task, name, splits[name], config.seed)
    return TaskData(task, splits, rejected, num_records, num_duplicates, num_truncated)


def _without_repeats(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The examples of records that say something new; how many do not.

    Ordered by content, so that the order of the records decides nothing after it.
    """
    first_with: dict[str, str] = {}
    for example in examples:
        first_with.setdefault(example.content, example.origin)
    first = set(first_with.values())
    kept = [example for example in examples if example.origin in first]
    num_repeats = len({example.origin for example in examples}) - len(first)
    return sorted(kept, key=lambda example: example.content), num_repeats


def _refuse_missing_columns(
    task: TaskConfig,
    templates: Sequence[Template],
    records: Sequence[Record],
    rejected: Sequence[Rejected],
) -> None:
    """A column that no record has is a mistake of the config, not of the records."""
    if not records:
        first = f"; first: {rejected[0].origin}: {rejected[0].detail}" if rejected else ""
        raise InputError(f"task {task.name}: no record could be read{first}")
    present = {name for record in records for name in record.fields}
    asked = [(c, f"template {t.name!r}") for t in templates for c in sorted(t.columns)]
    asked += [(c, "split_by") for c in task.split_by]
    asked += [(task.balance_by, "balance_by")] if task.balance_by else []
    for column, user in asked:
        if column not in present:
            raise InputError(
                f"{records[0].origin}: no column {column!r}, which {user} of task {task.name} "
                f"reads; there are {sorted(present)}"
            )


def _fit(
    examples: Sequence[Example], config: DataConfig, chat: Chat, rejected: list[Rejected]
) -> tuple[list[Example], int]:
    """Drops, cuts or refuses examples over `max_length`, and those with special tokens as text."""
    fitting, num_truncated = [], 0
    clean, layouts = [], []
    for example in examples:
        texts = (*(m["content"] for m in example.messages), example.completion)
        if token := chat.special_token_in(*texts):
            detail = f"the text holds the special token {token!r}"
            rejected.append(Rejected(example.origin, "special_token", detail))
            continue
        try:
            layouts.append(chat.layout(example.turns))
        except UnusableTurns as error:
            rejected.append(Rejected(example.origin, "chat_template", str(error)))
        else:
            clean.append(example)
    encoded = chat.encode_layouts(layouts)
    # Ranking puts each choice behind the prompt, so there must be room for the longest.
    counts = chat.count_tokens({choice for e in clean for choice in e.choices})
    for example, tokens in zip(clean, encoded, strict=True):
        more = [counts[choice] - counts[example.completion] for choice in example.choices]
        room = config.max_length - max(more, default=0)
        length = len(tokens.ids) + max(more, default=0)
        if length <= config.max_length:
            fitting.append(example)
            continue
        detail = f"{length} tokens, max_length is {config.max_length}"
        if config.on_too_long == "error":
            raise InputError(f"{example.origin}: {detail}; see config.data.on_too_long")
        cut = None
        if config.on_too_long == "truncate":
            cut = _truncated(example, tokens, room, chat)
        if cut is None:
            rejected.append(Rejected(example.origin, "too_long", detail))
        else:
            fitting.append(cut)
            num_truncated += 1
    return fitting, num_truncated


def _truncated(example: Example, tokens: Encoded, max_length: int, chat: Chat) -> Example | None:
    """Cuts the middle of the last user turn until the example fits; None if it cannot."""
    if not example.messages:
        return None
    content = example.messages[-1]["content"]
    for margin in (4, 12, 40):
        start = tokens.text.rfind(content)
        inside = np.flatnonzero(
            (tokens.spans[:, 0] >= start) & (tokens.spans[:, 1] <= start + len(content))
        )
        excess = len(tokens.ids) - max_length + margin
        if start < 0 or len(inside) <= excess:
            return None
        middle = (len(inside) - excess) // 2
        first = int(tokens.spans[inside[middle], 0]) - start
        last = int(tokens.spans[inside[middle + excess - 1], 1]) - start
        shorter = content[:first].rstrip() + _ELLIPSIS + content[last:].lstrip()
        messages = (*example.messages[:-1], {**example.messages[-1], "content": shorter})
        shortened = example.with_messages(messages)
        if len(encode_examples(chat, [shortened])[0].ids) <= max_length:
            return shortened
    return None


def _refuse_too_many(
    task: TaskConfig, config: DataConfig, num_records: int, rejected: Sequence[Rejected]
) -> None:
    bad = len({r.origin for r in rejected})
    if bad > config.max_rejected * num_records:
        first = rejected[0]
        raise InputError(
            f"task {task.name}: {bad} of {num_records} records were rejected, more than "
            f"config.data.max_rejected={config.max_rejected}; first: {first.origin}: "
            f"{first.reason}: {first.detail}"
        )


def _subset(task: TaskConfig, split: str, examples: list[Example], seed: int) -> list[Example]:
    """The split's first `size` records in hash order, with all their templates."""
    by_origin: dict[str, list[Example]] = {}
    for example in examples:
        by_origin.setdefault(example.origin, []).append(example)
    groups = list(by_origin.values())
    if task.size(split) > len(groups):
        raise InputError(
            f"config.data.tasks: {task.name}.{split}_size is {task.size(split)}, "
            f"but the split has {len(groups)} records"
        )
    balance = bool(task.balance_by and task.size(split))
    try:
        chosen = take_subset(
            [group[0].key for group in groups],
            task.size(split) or len(groups),
            labels=[group[0].label for group in groups],
            balance=balance,
            seed=seed,
        )
    except InputError as error:
        raise InputError(f"config.data.tasks: {task.name}.{split}_size: {error}") from error
    return [example for index in chosen for example in groups[index]]


def card(data: DataSet) -> dict[str, Any]:
    """Counts and hashes per task and split, as data/card.json holds them."""
    return {
        "max_length": data.config.max_length,
        "tasks": {task.config.name: _task_card(task, data.chat) for task in data.tasks},
    }


def _task_card(task: TaskData, chat: Chat) -> dict[str, Any]:
    return {
        "config": asdict(task.config),
        "records": task.num_records,
        "rejected": dict(Counter(r.reason for r in task.rejected)),
        "duplicates": task.num_duplicates,
        "truncated": task.num_truncated,
        "splits": {name: _split_card(task.splits[name], chat) for name in SPLITS},
    }


def _split_card(examples: Sequence[Example], chat: Chat) -> dict[str, Any]:
    encoded = encode_examples(chat, examples)
    digest = hashlib.blake2b(digest_size=16)
    for e in examples:
        content = [[m["content"] for m in e.messages], e.completion]
        digest.update(json.dumps(content).encode())
    choices = Counter(e.completion for e in examples if e.choices)
    return {
        "records": len({e.origin for e in examples}),
        "examples": len(examples),
        "tokens": int(sum(len(e.ids) for e in encoded)),
        "trained_tokens": int(sum(e.trained.sum() for e in encoded)),
        "longest": int(max((len(e.ids) for e in encoded), default=0)),
        "templates": dict(Counter(e.template for e in examples)),
        "answers": dict(sorted(choices.items())),
        "content_hash": digest.hexdigest(),
    }


def write_card(data: DataSet, folder: Path) -> dict[str, Any]:
    """Writes card.json and rejected.jsonl into a folder, and returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    counted = card(data)
    text = json.dumps(counted, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "rejected.jsonl").open("w", encoding="utf-8") as file:
        for task in data.tasks:
            for r in task.rejected:
                line = {"task": task.config.name, **asdict(r)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return counted
