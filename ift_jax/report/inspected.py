"""What went in and what came out, as text: configs, data, previews of masks, samples."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ift_jax.config import flat
from ift_jax.report.elements import (
    MAX_COLUMNS,
    MAX_ROWS,
    Preview,
    Sample,
    Section,
    Table,
    and_more,
    cut,
)
from ift_jax.report.inputs import MAX_REJECTED, Run

MAX_PREVIEWS = 12
MAX_PER_TASK = 2  # previews, and prompts with samples
MAX_SAMPLES = 16
MAX_ANSWERS = 8  # to a prompt, side by side
MAX_STEPS = 4  # of them of one run
MAX_SETS = 3  # of data, each with its tables
MAX_NAMES = 12  # of tasks, in one cell
MAX_TEXT = 600  # characters of a text
HEAD_TOKENS, TAIL_TOKENS = 150, 250  # of a preview; what is trained stands at its end
MAX_REJECTED_ROWS = 20

_MAIN_FIELDS = {
    "config.model.path": "model",
    "config.peft.method": "method (peft)",
    "config.train.num_epochs": "epochs",
    "config.train.num_steps": "steps (0: from epochs)",
    "config.train.batch_size": "rows a step",
    "config.optimizer.name": "optimizer",
    "config.optimizer.peak_lr": "peak learning rate",
    "config.data.max_length": "longest example, tokens",
    "config.data.seed": "seed of the data",
    "config.train.seed": "seed of training",
}


def findings_section(runs: Sequence[Run]) -> Section:
    """What a study says, in sentences."""
    studies = [run for run in runs if run.results.get("findings")]
    found = [
        (f"{run.name}: {one['question']}" if len(studies) > 1 else one["question"], one["answer"])
        for run in studies
        for one in run.results["findings"]
    ]
    return Section(
        "findings",
        "What the numbers say",
        findings=found[:MAX_ROWS],
        notes=and_more(len(found), MAX_ROWS, "findings in results.json"),
    )


def overview_section(runs: Sequence[Run]) -> Section:
    """What was run: model, data and main settings side by side."""
    configs = [flat(run.config) for run in runs[:MAX_COLUMNS]]
    rows = [["trained on", *(_tasks(run) for run in runs[:MAX_COLUMNS])]]
    for field, words in _MAIN_FIELDS.items():
        values = [_value(config, field) for config in configs]
        if any(value != "–" for value in values):
            rows.append([words, *values])
    columns = ["", *(run.name for run in runs[:MAX_COLUMNS])]
    more = and_more(len(runs), MAX_COLUMNS, "workdirs")
    return Section("overview", "What was run", tables=[Table("Main settings", columns, rows, more)])


def settings_section(runs: Sequence[Run]) -> Section:
    """Every field in which the configs differ.

    What a study plans is left out: it stands in the other columns, as the runs that it made.
    """
    configs = [flat(run.config) for run in runs]
    fields = dict.fromkeys(field for config in configs for field in config)
    differ = [
        [field, *(_value(config, field) for config in configs[:MAX_COLUMNS])]
        for field in sorted(fields)
        if not field.startswith("config.study.")
        and len({_value(config, field) for config in configs}) > 1
    ]
    title = "Settings that differ"
    if not differ:
        notes = ["The configs are the same in every field."] if len(runs) > 1 else []
        return Section("settings", title, notes=notes)
    more = [
        *and_more(len(runs), MAX_COLUMNS, "workdirs"),
        *and_more(len(differ), MAX_ROWS, "fields in config.json"),
    ]
    columns = ["field", *(run.name for run in runs[:MAX_COLUMNS])]
    caption = "Every field in which the configs differ"
    tables = [Table(caption, columns, differ[:MAX_ROWS], more)]
    return Section("settings", title, tables=tables)


def _tasks(run: Run) -> str:
    tasks = run.config.get("data", {}).get("tasks", [])
    trained = (task for task in tasks if isinstance(task, Mapping) and task.get("weight", 1.0))
    names = [task.get("name", "?") for task in trained]
    return ", ".join([*names[:MAX_NAMES], *and_more(len(names), MAX_NAMES, "tasks")]) or "–"


def _value(config: Mapping[str, Any], field: str) -> str:
    if field not in config:
        return "–"
    value = config[field]
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 200)


def data_section(runs: Sequence[Run]) -> Section:
    """Splits, mixture and what was rejected, of each data set that differs from the others."""
    tables: list[Table] = []
    runs = [run for run in runs if run.card]
    sets = list(_distinct(runs, lambda run: json.dumps(run.card, sort_keys=True)))
    for names, run in sets[:MAX_SETS]:
        of = f" ({names})" if names else ""
        tables += [_splits_table(run.card, of), _removed_table(run.card, of)]
        if run.card["mixture"].get("tasks"):
            tables.append(_mixture_table(run.card["mixture"], of))
        if run.rejected:
            tables.append(_rejected_table(run, of))
    notes = and_more(len(sets), MAX_SETS, "sets of data, in the workdirs' data/card.json")
    return Section("data", "Data", tables=tables, notes=notes)


def _distinct(runs: Sequence[Run], content: Callable[[Run], str]) -> Iterator[tuple[str, Run]]:
    """(names of the runs that hold the same, the first of them); no names where all do."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(content(run), []).append(run)
    for same in groups.values():
        yield "" if len(groups) == 1 else ", ".join(run.name for run in same), same[0]


def _splits_table(card: Mapping[str, Any], of: str) -> Table:
    rows = [
        [
            f"{task}: {split}",
            f"{counts['examples']:,}",
            f"{counts['tokens']:,}",
            f"{counts['trained_tokens']:,}",
            f"{counts['longest']:,}",
            f"{len(counts['templates']):,}",
            _answers(counts["answers"]),
        ]
        for task, its in card["tasks"].items()
        for split, counts in its["splits"].items()
    ]
    return Table(
        f"Splits{of}",
        [
            "task and split", "examples", "tokens", "of them trained", "longest", "templates",
            "answers",
        ],
        rows[:MAX_ROWS],
        and_more(len(rows), MAX_ROWS, "splits in data/card.json"),
    )  # fmt: skip


def _answers(answers: Mapping[str, int]) -> str:
    shown = list(answers.items())[:8]
    said = ", ".join(f"{cut(answer, 30)}: {count:,}" for answer, count in shown)
    return said + "".join(f" … {note}" for note in and_more(len(answers), 8, "answers")) or "–"


_REMOVED = {
    "duplicates": "duplicates",
    "near_duplicates": "near-duplicates",
    "in_other_split": "with text of another split",
    "contaminated": "with text of an evaluation set",
}


def _removed_table(card: Mapping[str, Any], of: str) -> Table:
    rows = []
    for task, counts in card["tasks"].items():
        reasons = ", ".join(f"{why}: {n:,}" for why, n in counts["rejected"].items()) or "–"
        rows.append(
            [
                task,
                f"{counts['records']:,}",
                f"{sum(counts['rejected'].values()):,}",
                cut(reasons, 200),
                *(f"{counts.get(name, 0):,}" for name in _REMOVED),
                f"{counts['truncated']:,}",
            ]
        )
    return Table(
        f"Records, and what was left out{of}",
        ["task", "records", "rejected", "why", *_REMOVED.values(), "prompts cut"],
        rows[:MAX_ROWS],
        and_more(len(rows), MAX_ROWS, "tasks in data/card.json"),
    )


def _mixture_table(mixture: Mapping[str, Any], of: str) -> Table:
    rows = [
        [
            task,
            f"{its['drawn']:,} of {its['examples']:,}",
            f"{its['epochs']:.2f}",
            f"{its['share']:.1%}",
            f"{its['tokens']:,} ({its['share_of_tokens']:.1%})",
            f"{its['trained_tokens']:,} ({its['share_of_trained_tokens']:.1%})",
        ]
        for task, its in mixture["tasks"].items()
    ]
    return Table(
        f"What each task gets in an epoch{of}",
        ["task", "examples", "times each", "share", "tokens", "trained tokens"],
        rows[:MAX_ROWS],
        and_more(len(rows), MAX_ROWS, "tasks in data/card.json"),
    )


def _rejected_table(run: Run, of: str) -> Table:
    """A few rejected records of each reason, the most frequent reasons first."""
    by_reason = sorted(run.rejected, key=lambda line: line["reason"])
    groups = [list(lines) for _, lines in groupby(by_reason, key=lambda line: line["reason"])]
    groups.sort(key=len, reverse=True)
    each = max(1, MAX_REJECTED_ROWS // max(len(groups), 1))
    shown = [line for group in groups for line in group[:each]][:MAX_REJECTED_ROWS]
    total = sum(sum(task["rejected"].values()) for task in run.card["tasks"].values())
    total = max(total, len(run.rejected) if len(run.rejected) < MAX_REJECTED else 0)
    return Table(
        f"Rejected records{of}",
        ["origin", "task", "why", "in words"],
        [
            [cut(r["origin"], 120), r["task"], r["reason"], cut(r["detail"], 300)]
            for r in shown
        ],
        and_more(total, len(shown), "in data/rejected.jsonl"),
    )  # fmt: skip


def preview_section(runs: Sequence[Run]) -> Section:
    """Training examples token by token, with what is trained marked."""
    previews: list[Preview] = []
    total = 0
    runs = [run for run in runs if run.preview]
    for names, run in _distinct(runs, lambda run: json.dumps(run.preview)):
        taken: dict[str, int] = {}
        for line in run.preview:
            taken[line["task"]] = taken.get(line["task"], 0) + 1
            total += 1
            if taken[line["task"]] <= MAX_PER_TASK:
                previews.append(_preview(line, names))
    return Section(
        "previews",
        "What is trained",
        "Training examples as the model sees them, token by token. Bold and underlined on a "
        "coloured ground are the tokens that are trained; the others are only read."
        if previews
        else "",
        previews=previews[:MAX_PREVIEWS],
        notes=and_more(total, min(len(previews), MAX_PREVIEWS), "in data/preview.jsonl"),
    )


def _preview(line: Mapping[str, Any], names: str) -> Preview:
    tokens = [(token["trained"], token["text"]) for token in line["tokens"]]
    left_out = len(tokens) - HEAD_TOKENS - TAIL_TOKENS
    if left_out > 0:
        gap = [(False, f" … {left_out:,} tokens left out … ")]
        tokens = [*tokens[:HEAD_TOKENS], *gap, *tokens[-TAIL_TOKENS:]]
    runs = [
        (trained, [text for _, text in part])
        for trained, part in groupby(tokens, key=lambda token: token[0])
    ]
    trained = sum(token["trained"] for token in line["tokens"])
    title = (
        f"{line['task']}, template “{line['template']}”, {line['origin']}: "
        f"{len(line['tokens']):,} tokens, {trained:,} trained"
    )
    return Preview(f"{title} ({names})" if names else title, runs)


def samples_section(runs: Sequence[Run]) -> Section:
    """What was generated for the same prompts, over steps and between runs."""
    prompts: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for run in runs:
        for line in run.samples:
            key = tuple(line[name] for name in ("task", "template", "prompt", "reference"))
            prompts.setdefault(key, {})[run.name, line["step"]] = line["completion"]
    taken: dict[str, int] = {}
    samples = []
    sampled = [run for run in runs if run.samples]
    shown = sampled[:MAX_ANSWERS]
    steps = min(MAX_STEPS, MAX_ANSWERS // max(len(shown), 1))
    for key, answers in prompts.items():
        taken[key[0]] = taken.get(key[0], 0) + 1
        if taken[key[0]] <= MAX_PER_TASK:
            samples.append(_sample(key, answers, shown, steps))
    notes = and_more(len(prompts), min(len(samples), MAX_SAMPLES), "prompts in samples.jsonl")
    notes += and_more(len(sampled), len(shown), "workdirs with samples")
    if any(len({line["step"] for line in run.samples}) > steps for run in shown):
        which = (
            "its last step" if steps == 1 else f"{steps} steps, the first and the last among them"
        )
        notes.append(f"Of each run {which}; all steps stand in samples.jsonl.")
    return Section(
        "samples",
        "Samples",
        "What was generated for the same prompts as training went on: of validation, where a "
        "task has such a split, else of training."
        if samples
        else "",
        samples=samples[:MAX_SAMPLES],
        notes=notes,
    )


def _sample(
    key: tuple[str, ...],
    answers: Mapping[tuple[str, int], str],
    runs: Sequence[Run],
    num_steps: int,
) -> Sample:
    task, template, prompt, reference = key
    shown = []
    for run in runs:
        steps = sorted(step for name, step in answers if name == run.name)
        for step in _spread(steps, num_steps):
            who = f"{run.name}, step {step:,}" if len(runs) > 1 else f"step {step:,}"
            shown.append((who, cut(answers[run.name, step], MAX_TEXT)))
    return Sample(
        f"{task}, template “{template}”", cut(prompt, MAX_TEXT), cut(reference, MAX_TEXT), shown
    )


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread from the first to the last; of one the last.

    Example:
        >>> _spread([0, 10, 20, 30, 40, 50, 60], 3), _spread([0, 10], 1)
        ([0, 30, 60], [10])
    """
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
