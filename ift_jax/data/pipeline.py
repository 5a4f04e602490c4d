"""From records to examples: collect, select, mix; and the card that counts it."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.chat import Chat
from ift_jax.data.collect import OWN_SPLITS, Collected, collect, read_task, sourced_tasks
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.examples import Example, templates_to_lint
from ift_jax.data.loader import Rows
from ift_jax.data.mixture import MixtureConfig, Slots, epoch_counts, make_slots
from ift_jax.data.packing import Tokens
from ift_jax.data.records import Record, Rejected
from ift_jax.data.selection import select
from ift_jax.data.shots import add_shots
from ift_jax.data.store import Chosen, Store, stored_tokens
from ift_jax.data.templates import lint
from ift_jax.errors import InputError

LINT_RECORDS = 200


@dataclass(frozen=True)
class TaskData:
    """A task's examples by split, and what was counted on the way.

    Attributes:
        removed: why -> how many records were removed.
        num_truncated: examples whose prompt was cut.
        num_without_reasoning: examples with reasoning that the chat template does not print.
        missing_shots: of the training examples that drew shots, how many lack how many.
    """

    config: TaskConfig
    splits: Mapping[str, Chosen]
    rejected: Sequence[Rejected] = ()
    num_records: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)
    num_truncated: int = 0
    num_without_reasoning: int = 0
    missing_shots: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """All tasks, tokenized with one chat format.

    Attributes:
        stored_in: the prepared set that it was read from. `splits["train"]` then holds only the
            first examples of each template, for few-shot prompts and baselines, and
            `prepared_rows` gives the rows to train on, and the tokens that all of them
            begin with, for a seed of their order.
    """

    config: DataConfig
    tasks: tuple[TaskData, ...]
    chat: Chat
    stored_in: Path | None = None
    prepared_rows: Callable[[int], tuple[Rows, NDArray[np.int32]]] | None = None

    def examples(self, split: str) -> list[Example]:
        """All tasks' examples of a split, one task behind the other."""
        return [example for task in self.tasks for example in task.splits[split]]

    def tokens(self, split: str) -> Tokens:
        """The same, tokenized, with what is trained marked.

        Raises:
            InputError: if there is none.
        """
        return stored_tokens([task.splits[split] for task in self.tasks])

    def trained(self) -> list[TaskData]:
        """The tasks that are trained, not only scored."""
        return [task for task in self.tasks if task.config.weight]

    def mixed(self) -> tuple[Tokens, Slots]:
        """The training examples of the tasks that are trained, and which an epoch takes.

        Raises:
            InputError: as `epoch_counts`.
        """
        sizes, counts = self.counts()
        tokens = stored_tokens([task.splits["train"] for task in self.trained()])
        return tokens, make_slots(
            tokens.lengths, tokens.num_targets, sizes, counts, self.config.seed
        )

    def counts(self) -> tuple[list[int], list[int]]:
        """(examples, how many of them an epoch takes) of each task that is trained.

        Raises:
            InputError: for a task that is to be trained and has no example.
        """
        trained = self.trained()
        sizes = [len(task.splits["train"]) for task in trained]
        empty = [t.config.name for t, size in zip(trained, sizes, strict=True) if not size]
        if any(sizes) and empty:
            raise InputError(
                f"config.data.tasks: {empty[0]}: nothing to train on; set its weight to 0 to "
                "evaluate it only"
            )
        counts = epoch_counts(
            sizes,
            self.config.mixture,
            weights=[task.config.weight for task in trained],
            replay=[task.config.replay for task in trained],
        )
        return sizes, counts


class Known:
    """What earlier builds with the same chat format have collected.

    A task that a later build reads and renders alike, however it selects and mixes, is not
    collected again.
    """

    def __init__(self) -> None:
        self.store = Store()
        self._found: dict[tuple[TaskConfig, Any, DataConfig], Collected] = {}

    def collect(self, task: TaskConfig, source: Any, config: DataConfig, chat: Chat) -> Collected:
        """As `collect.collect`, at most once."""
        # What only the second half of a build reads. Sizes are 1, since a subset that is composed
        # by a column must have one.
        same_task = replace(
            task, weight=1.0, replay=False, train_size=1, validation_size=1, test_size=1,
            validation_fraction=0.1, test_fraction=0.1, repeats="exact", near_duplicates=0.0,
            train_shots=(0,), balance_fill=False, metrics=(),
        )  # fmt: skip
        same_config = replace(
            config, tasks=(), path="", mixture=MixtureConfig(), decontaminate=(), row_length=0
        )
        key = (same_task, source, same_config)
        if key not in self._found:
            self._found[key] = collect(task, source, config, chat, self.store)
        return self._found[key]


def build(config: DataConfig, chat: Chat, known: Known | None = None) -> DataSet:
    """Reads and prepares every task, in memory.

    Args:
        known: what earlier builds collected, and where this one adds to it.

    Raises:
        InputError: for what concerns a whole file or template, and where more than
            `max_rejected` of a task's records were rejected. Single bad records are kept in
            `TaskData.rejected`.
    """
    known = known or Known()
    collected = [
        known.collect(task, source, config, chat) for task, source in sourced_tasks(config)
    ]
    return assemble(config, chat, known.store, collected)


def assemble(
    config: DataConfig, chat: Chat, store: Store, collected: Sequence[Collected]
) -> DataSet:
    """The data set of what was collected from each task.

    Raises:
        InputError: as `build`.
    """
    for task, found in zip(config.tasks, collected, strict=True):
        _refuse_too_many(task, config, found)
        _refuse_empty_source(task, found)
    selected = select(config.tasks, collected, config, store.example)
    built = []
    for task, found, kept in zip(config.tasks, collected, selected, strict=True):
        splits = {name: Chosen(store, kept.numbers[name]) for name in SPLITS}
        _refuse_all_held_out(task, splits, kept.removed)
        missing: dict[int, int] = {}
        if any(task.train_shots):
            splits["train"], missing = add_shots(
                task, splits["train"], chat, config.max_length, config.seed
            )
        built.append(
            TaskData(
                task,
                splits,
                [rejection for _, rejection in found.rejected],
                found.num_records,
                kept.removed,
                int(found.index["truncated"].sum()),
                int(found.index["leaves_out_reasoning"].sum()),
                missing,
            )
        )
    return DataSet(config, tuple(built), chat)


def lint_tasks(config: DataConfig) -> list[str]:
    """What is doubtful or wrong about each task's templates, judged with its first records.

    Raises:
        InputError: for sources and template files that cannot be read.
    """
    findings = []
    for task, source in sourced_tasks(config):
        rows = islice(read_task(task, source, task.split), LINT_RECORDS)
        records = [row.fields for row in rows if isinstance(row, Record)]
        columns = sorted({name for fields in records for name in fields})
        compatible = task.template_mode == "compatible"
        templates = {template.key: template for template in templates_to_lint(task)}
        findings += lint(templates, columns, records, compatible=compatible)
    return findings


def _refuse_too_many(task: TaskConfig, config: DataConfig, found: Collected) -> None:
    bad = len({rejection.origin for _, rejection in found.rejected})
    if bad > config.max_rejected * found.num_records:
        first = found.rejected[0][1]
        raise InputError(
            f"task {task.name}: {bad} of {found.num_records} records were rejected, more than "
            f"config.data.max_rejected={config.max_rejected}; first: {first.origin}: "
            f"{first.reason}: {first.detail}"
        )


def _refuse_empty_source(task: TaskConfig, found: Collected) -> None:
    """A split's own source of which nothing can be used is a mistake, however short it is."""
    for split, (first, end) in found.chunks.items():
        if not split or (found.index["own_split"] == OWN_SPLITS.index(split)).any():
            continue
        refused = [one for chunk, one in found.rejected if first <= chunk < end]
        raise InputError(
            f"task {task.name}: no record of its {split} source can be used; first: "
            f"{refused[0].origin}: {refused[0].reason}: {refused[0].detail}"
        )


def _refuse_all_held_out(
    task: TaskConfig, splits: Mapping[str, Chosen], removed: Mapping[str, int]
) -> None:
    """Nothing is left of a source that a split's own source holds as a whole."""
    own = [
        f"{split}_{kind}"
        for split in SPLITS
        for kind in ("source", "split")
        if task.has_own(split) and getattr(task, f"{split}_{kind}")
    ]
    shared = removed["in_other_split"]
    if own and task.weight and shared and not len(splits["train"]):
        raise InputError(
            f"config.data.tasks: {task.name}: no example of its source is left to train on "
            f"({shared} records are in another split); is all of it in its {' or '.join(own)} too? "
            "Give sources that differ, or weight=0 to score the task only"
        )


def card(data: DataSet) -> dict[str, Any]:
    """Counts and hashes per task and split, and the mixture, as data/card.json holds them."""
    if data.stored_in:
        return json.loads((data.stored_in / "card.json").read_text(encoding="utf-8"))
    tasks = {task.config.name: _task_card(task) for task in data.tasks}
    counted = {
        "max_length": data.config.max_length, "tasks": tasks, "mixture": _mixture(data, tasks)
    }  # fmt: skip
    return json.loads(json.dumps(counted))  # lists for tuples, as the file has them


def _mixture(data: DataSet, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What an epoch takes of each task that is trained; {} if nothing is."""
    trained = data.trained()
    if not trained or not all(task.splits["train"] for task in trained):
        return {}
    sizes, counts = data.counts()
    names = [task.config.name for task in trained]
    per_task = {}
    for name, size, count in zip(names, sizes, counts, strict=True):
        train = tasks[name]["splits"]["train"]
        per_task[name] = {
            "examples": size,
            "drawn": count,
            "epochs": count / size,
            "share": count / sum(counts),
            "tokens": round(train["tokens"] * count / size),
            "trained_tokens": round(train["trained_tokens"] * count / size),
        }
    for kind in ("tokens", "trained_tokens"):
        total = max(sum(task[kind] for task in per_task.values()), 1)
        for task in per_task.values():
            task[f"share_of_{kind}"] = task[kind] / total
    return {"examples": sum(counts), "tasks": per_task}


def _task_card(task: TaskData) -> dict[str, Any]:
    return {
        "config": asdict(task.config),
        "records": task.num_records,
        "rejected": dict(Counter(r.reason for r in task.rejected)),
        **task.removed,
        "truncated": task.num_truncated,
        "reasoning_left_out": task.num_without_reasoning,
        "missing_shots": {str(lack): count for lack, count in task.missing_shots.items()},
        "splits": {name: _split_card(task.splits[name]) for name in SPLITS},
    }


def _split_card(examples: Chosen) -> dict[str, Any]:
    lengths, origins = examples.column("lengths"), examples.column("origins")
    shots, num_shots = np.unique(examples.column("shots"), return_counts=True)
    return {
        "records": len(np.unique(origins)),
        "examples": len(examples),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(examples.column("trained").sum()),
        "longest": int(lengths.max(initial=0)),
        "templates": examples.templates(),
        "shots": {str(count): int(n) for count, n in zip(shots, num_shots, strict=True)},
        "answers": dict(sorted(examples.answers().items())),
        "content_hash": content_hash(examples),
    }


def content_hash(examples: Chosen) -> str:
    """Of a split's examples, in their order."""
    digests = examples.column("digests").astype("<u8").tobytes()
    return hashlib.blake2b(digests, digest_size=16).hexdigest()


def write_card(data: DataSet, folder: Path) -> dict[str, Any]:
    """Writes card.json and rejected.jsonl into a folder, and returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    if data.stored_in:
        shutil.copy(data.stored_in / "rejected.jsonl", folder)
        shutil.copy(data.stored_in / "card.json", folder)
        return card(data)
    counted = card(data)
    text = json.dumps(counted, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "rejected.jsonl").open("w", encoding="utf-8") as file:
        for task in data.tasks:
            for r in task.rejected:
                line = {"task": task.config.name, **asdict(r)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return counted
