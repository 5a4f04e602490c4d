"""results.json rows as tables and plots: whole tasks, and by template and class."""

from collections.abc import Iterable, Mapping, Sequence

from ift_jax.report.elements import (
    MAX_COLUMNS,
    MAX_FIGURES,
    MAX_ROWS,
    Dot,
    Section,
    Table,
    Whiskers,
    and_more,
)
from ift_jax.report.rows import Row, final_parts, final_rows, first_metric, label
from ift_jax.report.table import BASELINES, is_percent, score_text

MAX_TASKS = 60
MAX_DOTS = 24
GREY = -1  # the colour of what is no model


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
    notes += and_more(
        max((len(p.dots) for p in plots), default=0), MAX_DOTS, "models in the tables"
    )
    plots = [plot._replace(dots=plot.dots[:MAX_DOTS]) for plot in plots]
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
    metric = first_metric(rows)
    of_metric = [row for row in rows if row["metric"] == metric]
    models = _models(rows)
    dots = [_dot(row, label(row), models) for row in of_metric]
    unit = "percent" if is_percent(metric) else metric
    said = "; ".join(f"{label(row)}: {score_text(row)}" for row in of_metric[:MAX_DOTS])
    return Whiskers(
        f"scores_{task[0]}_{task[1]}",
        f"{task[0]}: {metric}",
        unit,
        dots,
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
        metric = first_metric(rows)
        cells = {label(row): score_text(row) for row in rows if row["metric"] == metric}
        name = f"{task} ({metric}{'' if split == 'test' else f', {split}'})"
        body.append([name, *(cells.get(column, "–") for column in columns[:MAX_COLUMNS])])
    return Table(
        "All tasks by their first metric",
        ["task", *columns[:MAX_COLUMNS]],
        body[:MAX_ROWS],
        [
            *and_more(len(body), MAX_ROWS, "tasks in results.json"),
            *and_more(len(columns), MAX_COLUMNS, "models in the tables below"),
        ],
    )


def parts_section(rows: Sequence[Row]) -> Section:
    """Scores by template and by class: a table for each task and kind of part."""
    final, tables = final_parts(rows), []
    for kind, caption in (("template", "by template"), ("class", "by class of the answer")):
        parts = [row for row in final if kind in row]
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
