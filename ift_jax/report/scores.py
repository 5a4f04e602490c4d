"""results.json rows as tables and plots: whole tasks, templates and classes, sizes, weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ift_jax.report.elements import (
    MAX_COLUMNS,
    MAX_FIGURES,
    MAX_ROWS,
    Curve,
    Dot,
    Lines,
    Plot,
    Section,
    Table,
    Whiskers,
    and_more,
)
from ift_jax.report.inputs import Run
from ift_jax.report.table import BASELINES, is_percent, model_label, score_text

Row = dict[str, Any]

MAX_TASKS = 60
MAX_DOTS = 16
GREY = -1  # the colour of what is no model
_SAME = (
    "run", "model", "task", "split", "shots", "metric", "stage", "train_size", "interpolation",
    "template", "class",
)  # fmt: skip


def all_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs with "run", seeds pooled, and lines that all runs share once."""
    rows = [{**row, "run": run.name} for run in runs for row in run.rows]
    return _shared_once(_pooled(rows), sum(bool(run.rows) for run in runs))


def _pooled(rows: Iterable[Row]) -> list[Row]:
    """Rows that differ in the seed alone as one: mean, lowest low, highest high."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in _SAME), []).append(row)
    pooled = []
    for group in groups.values():
        row = dict(group[0])
        if len(group) > 1:
            row["value"] = fmean(one["value"] for one in group)
            row["low"] = min(one["low"] for one in group)
            row["high"] = max(one["high"] for one in group)
            row["seeds"] = len(group)
        pooled.append(row)
    return pooled


def _shared_once(rows: Sequence[Row], num_runs: int) -> list[Row]:
    """Rows that say the same in every run, such as baselines, with "run" "" and once."""
    if num_runs < 2:
        return [{**row, "run": ""} for row in rows]
    settings: dict[tuple, dict[str, list[tuple]]] = {}
    for row in rows:
        by_run = settings.setdefault((row["model"], row["task"], row["split"], row["shots"]), {})
        by_run.setdefault(row["run"], []).append(_content(row))
    shared = {
        setting
        for setting, by_run in settings.items()
        if len(by_run) == num_runs and len(set(map(tuple, by_run.values()))) == 1
    }
    kept: dict[tuple, Row] = {}
    for row in rows:
        setting = (row["model"], row["task"], row["split"], row["shots"])
        name = "" if setting in shared else row["run"]
        kept.setdefault((name, setting, _content(row)), {**row, "run": name})
    return list(kept.values())


def _content(row: Row) -> tuple:
    return tuple(row.get(name) for name in (*_SAME[1:], "value", "low", "high"))


def is_part(row: Mapping[str, Any]) -> bool:
    """Whether a row is of one template or class."""
    return not row.keys().isdisjoint(("template", "class"))


def final_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows for the table of scores: of each model the last stage and the largest size."""
    rows = [row for row in rows if not is_part(row) and "interpolation" not in row]
    for field in ("stage", "train_size"):
        last: dict[tuple, int] = {}
        for row in rows:
            key = (row["run"], row["model"])
            last[key] = max(last.get(key, 0), row.get(field, 0))
        rows = [row for row in rows if row.get(field, 0) == last[row["run"], row["model"]]]
    return rows


def label(row: Mapping[str, Any]) -> str:
    """What a line of scores is called, with its run where there are several."""
    name = model_label(row["model"], row["shots"])
    return f"{name}, {row['run']}" if row["run"] else name


def scores_section(rows: Sequence[Row]) -> Section:
    """A plot and a table for each task and split, and one table over all tasks."""
    final = final_rows(rows)
    tasks = list(dict.fromkeys((row["task"], row["split"]) for row in final))
    of_task = {t: [row for row in final if (row["task"], row["split"]) == t] for t in tasks}
    plots = [_score_plot(task, of_task[task]) for task in tasks[:MAX_FIGURES]]
    tables = [_overview(of_task)] if len(tasks) > 1 else []
    tables += [_score_table(task, of_task[task]) for task in tasks[:MAX_TASKS]]
    seeds = max((row.get("seeds", 1) for row in final), default=1)
    notes = and_more(len(tasks), MAX_TASKS, "tasks in results.json")
    if seeds > 1:
        notes.append(
            f"Scores of up to {seeds} seeds are means; their intervals reach from the lowest to "
            "the highest end of the seeds' own."
        )
    return Section(
        "scores",
        "Scores",
        "Shares are percentages. Brackets and whiskers are 95 % intervals; baselines need no model."
        if final
        else "",
        plots,
        tables,
        notes=notes,
    )


def _score_plot(task: tuple[str, str], rows: Sequence[Row]) -> Whiskers:
    metric = rows[0]["metric"]
    of_metric = [row for row in rows if row["metric"] == metric]
    models = _models(rows)
    dots = [_dot(row, label(row), models) for row in of_metric]
    unit = "percent" if is_percent(metric) else metric
    said = "; ".join(f"{label(row)}: {score_text(row)}" for row in of_metric[:MAX_DOTS])
    return Whiskers(
        f"scores_{task[0]}_{task[1]}",
        f"{task[0]}: {metric}",
        unit,
        dots[:MAX_DOTS],
        f"{metric} of {task[0]} in {unit}, with 95 % intervals. {said}.",
        reach=(min(0.0, *(dot.low for dot in dots)), 100.0) if unit == "percent" else (),
    )


def _models(rows: Iterable[Row]) -> list[str]:
    named = dict.fromkeys(row["model"] for row in rows if row["model"] not in BASELINES)
    return ["base", *(name for name in named if name != "base")]


def _dot(row: Row, text: str, models: Sequence[str]) -> Dot:
    scale = 100.0 if is_percent(row["metric"]) else 1.0
    colour = GREY if row["model"] in BASELINES else models.index(row["model"])
    return Dot(text, row["value"] * scale, row["low"] * scale, row["high"] * scale, colour)


def _score_table(task: tuple[str, str], rows: Sequence[Row]) -> Table:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = list(dict.fromkeys(label(row) for row in rows))
    cells = {(label(row), row["metric"]): score_text(row) for row in rows}
    costs = {label(row): _cost(row) for row in rows if "prompt_tokens" in row}
    columns = ["model", *metrics, *(["tokens a prompt"] if costs else [])]
    body = [
        [
            line,
            *(cells.get((line, metric), "–") for metric in metrics),
            *([costs.get(line, "–")] if costs else []),
        ]
        for line in lines
    ]
    counts = sorted({row["count"] for row in rows})
    count = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return Table(
        f"{task[0]}: {count} {task[1]} items",
        columns,
        body[:MAX_ROWS],
        and_more(len(body), MAX_ROWS, "rows in results.json"),
    )


def _cost(row: Row) -> str:
    short = row.get("shots_given", row["shots"]) < row["shots"]
    room = f" (room for {row['shots_given']:.1f} shots)" if short else ""
    return f"{row['prompt_tokens']:.0f}{room}"


def _overview(of_task: Mapping[tuple[str, str], Sequence[Row]]) -> Table:
    """Every task's first metric, a column a model."""
    columns = list(dict.fromkeys(label(row) for rows in of_task.values() for row in rows))
    body = []
    for (task, split), rows in of_task.items():
        cells = {label(row): score_text(row) for row in rows if row["metric"] == rows[0]["metric"]}
        name = f"{task} ({rows[0]['metric']}{'' if split == 'test' else f', {split}'})"
        body.append([name, *(cells.get(column, "–") for column in columns[:MAX_OVERVIEW])])
    return Table(
        "All tasks by their first metric",
        ["task", *columns[:MAX_OVERVIEW]],
        body[:MAX_ROWS],
        [
            *and_more(len(body), MAX_ROWS, "tasks in results.json"),
            *and_more(len(columns), MAX_OVERVIEW, "models in the tables below"),
        ],
    )


MAX_OVERVIEW = 12


def parts_section(rows: Sequence[Row]) -> Section:
    """Scores by template and by class: a table for each task and kind of part."""
    tables = []
    for kind, caption in (("template", "by template"), ("class", "by class of the answer")):
        parts = [row for row in rows if kind in row]
        tasks = dict.fromkeys((row["task"], row["split"], row["metric"]) for row in parts)
        for task in tasks:
            of_task = [row for row in parts if (row["task"], row["split"], row["metric"]) == task]
            tables.append(_parts_table(kind, f"{task[0]}: {task[2]} {caption}", of_task))
    return Section(
        "parts",
        "By template and class",
        "A class's macro F1 is its own F1; other metrics are those of the items with that answer."
        if tables
        else "",
        tables=tables[:MAX_TASKS],
        notes=and_more(len(tables), MAX_TASKS, "tables' worth of rows in results.json"),
    )


def _parts_table(kind: str, caption: str, rows: Sequence[Row]) -> Table:
    columns = list(dict.fromkeys(label(row) for row in rows))
    parts = {row[kind]: row["count"] for row in rows}
    cells = {(row[kind], label(row)): score_text(row) for row in rows}
    body = [
        [part, f"{count:,}", *(cells.get((part, c), "–") for c in columns[:MAX_COLUMNS])]
        for part, count in parts.items()
    ]
    return Table(
        caption,
        [kind, "items", *columns[:MAX_COLUMNS]],
        body[:MAX_ROWS],
        [
            *and_more(len(body), MAX_ROWS, f"{kind} rows"),
            *and_more(len(columns), MAX_COLUMNS, "models in results.json"),
        ],
    )


def sizes_section(rows: Sequence[Row], target: str) -> Section:
    """Scores over numbers of training examples, of models that were trained on several.

    Args:
        target: the task to show; "" for all.
    """
    rows = [r for r in rows if not is_part(r) and "interpolation" not in r]
    plots: list[Plot] = []
    tables = []
    for task in dict.fromkeys(row["task"] for row in rows if target in ("", row["task"])):
        first = next(row["metric"] for row in rows if row["task"] == task)
        of_task = [r for r in rows if r["task"] == task and r["metric"] == first]
        curves = {
            line: sized
            for line, sized in _by_label(r for r in of_task if "train_size" in r).items()
            if len(sized) > 1
        }
        if curves:
            untrained = (*BASELINES, "base")
            levels = _by_label(r for r in final_rows(of_task) if r["model"] in untrained)
            plots.append(_sizes_plot(task, first, curves, levels))
            tables.append(_sizes_table(task, first, curves))
    return Section(
        "sizes",
        "How many examples",
        "Bands are 95 % intervals; dashed lines are what needs no training." if plots else "",
        plots[:MAX_FIGURES],
        tables[:MAX_FIGURES],
        notes=and_more(len(plots), MAX_FIGURES, "tasks in results.json"),
    )


def _by_label(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """label -> number of training examples -> row of the last stage."""
    found: dict[str, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: row.get("stage", 0)):
        found.setdefault(label(row), {})[row.get("train_size", 0)] = row
    return {line: dict(sorted(sized.items())) for line, sized in found.items()}


def _sizes_plot(
    task: str,
    metric: str,
    curves: Mapping[str, Mapping[int, Row]],
    levels: Mapping[str, Mapping[int, Row]],
) -> Lines:
    scale = 100.0 if is_percent(metric) else 1.0
    sizes = sorted({size for sized in curves.values() for size in sized})
    drawn = [
        Curve(
            line.removesuffix(", 0 shots"),
            list(sized),
            [row["value"] * scale for row in sized.values()],
            [row["low"] * scale for row in sized.values()],
            [row["high"] * scale for row in sized.values()],
            colour=number + 1,
        )
        for number, (line, sized) in enumerate(list(curves.items())[:MAX_COLUMNS])
    ]
    for line, sized in levels.items():
        value = sized[0]["value"] * scale
        colour = GREY if sized[0]["model"] in BASELINES else 0
        ends = [sizes[0], sizes[-1]]
        drawn.append(Curve(_short(line), ends, [value] * 2, colour=colour, style="dashed"))
    said = "; ".join(
        f"{line}: " + ", ".join(f"{score_text(row)} at {n}" for n, row in sized.items())
        for line, sized in curves.items()
    )
    unit = "percent" if is_percent(metric) else metric
    return Lines(
        f"sizes_{task}",
        f"{task}: {metric} over training examples",
        "training examples",
        unit,
        drawn[: 2 * MAX_COLUMNS],
        f"{metric} of {task} in {unit} over the number of training examples. {said}.",
        log_x=True,
    )


_SHORT = {"majority": "most frequent", "copy": "copying", "random": "random"}


def _short(line: str) -> str:
    """The name of a level, short enough for a plot's edge."""
    names = {BASELINES[model]: short for model, short in _SHORT.items()}
    for long, short in names.items():
        line = line.replace(long, short)
    return line.replace("base model", "base")


def _sizes_table(task: str, metric: str, curves: Mapping[str, Mapping[int, Row]]) -> Table:
    sizes = sorted({size for sized in curves.values() for size in sized})
    lines = list(curves)[:MAX_COLUMNS]
    return Table(
        f"{task}: {metric} by the number of training examples",
        ["training examples", *lines],
        [
            [
                f"{size:,}",
                *(score_text(curves[n][size]) if size in curves[n] else "–" for n in lines),
            ]
            for size in sizes[:MAX_ROWS]
        ],
        and_more(len(curves), MAX_COLUMNS, "models in results.json"),
    )


class _Mix(NamedTuple):
    """Scores at one share of the tuned weights."""

    share: float
    target: Row
    retained: float


def mixing_section(rows: Sequence[Row], results: Mapping[str, Any]) -> Section:
    """Task score against retained score, for weights between base and tuned ones (WiSE-FT)."""
    target = results.get("target", "")
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    retained = results.get("retained", [task for task in first if task != target])
    mixed = [
        row
        for row in rows
        if "interpolation" in row and not is_part(row) and row["metric"] == first[row["task"]]
    ]
    curves = {}
    for model in dict.fromkeys(row["model"] for row in mixed):
        points = _mixes([row for row in mixed if row["model"] == model], target, retained)
        if points:
            curves[model] = points
    if not curves:
        return Section("mixing", "Between base and tuned")
    metric = first[target]
    table = [
        [
            f"{model}, {point.share:.0%} tuned",
            score_text(point.target),
            f"{point.retained * 100:.1f}",
        ]
        for model, points in curves.items()
        for point in points
    ]
    drawn = [
        Curve(
            "",
            [point.retained * 100 for point in points],
            [point.target["value"] * (100 if is_percent(metric) else 1) for point in points],
            colour=number + 1,
            names=[*(f"{point.share:.0%}" for point in points[:-1]), _last_name(model, points)],
        )
        for number, (model, points) in enumerate(list(curves.items())[:MAX_COLUMNS])
    ]
    unit = "percent" if is_percent(metric) else metric
    said = "; ".join(f"{line[0]}: {target} {line[1]}, retained {line[2]}" for line in table)
    return Section(
        "mixing",
        "Between base and tuned",
        f"Weights between those of the base and of the tuned model, by the share of the tuned "
        f"ones. Retained is the mean over {', '.join(retained)}.",
        [
            Lines(
                "mixing",
                f"{target} against what was retained",
                "retained, percent",
                f"{target}: {metric}, {unit}",
                drawn,
                f"Score of {target} against the mean retained score. {said}.",
            )
        ],
        [
            Table(
                "Scores by the share of tuned weights",
                ["weights", f"{target}: {metric}", "retained (mean, percent)"],
                table[:MAX_ROWS],
                and_more(len(table), MAX_ROWS, "rows in results.json"),
            )
        ],
    )


def _last_name(model: str, points: Sequence[_Mix]) -> str:
    """The last point says whose curve it is."""
    return f"{points[-1].share:.0%} {model}"


def _mixes(rows: Sequence[Row], target: str, retained: Sequence[str]) -> list[_Mix]:
    found = []
    for share in sorted({row["interpolation"] for row in rows}):
        of_task = {row["task"]: row for row in rows if row["interpolation"] == share}
        kept = [of_task[task]["value"] for task in retained if task in of_task]
        if target in of_task and kept and all(map(math.isfinite, kept)):
            found.append(_Mix(share, of_task[target], fmean(kept)))
    return found
