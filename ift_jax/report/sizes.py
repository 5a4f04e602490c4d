"""Scores over numbers of training examples, as plots and tables."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ift_jax.report.elements import (
    MAX_COLOURS,
    MAX_FIGURES,
    MAX_ROWS,
    Curve,
    Lines,
    Plot,
    Section,
    Table,
    and_more,
)
from ift_jax.report.rows import Row, final_rows, first_metric, is_part, label
from ift_jax.report.scores import GREY
from ift_jax.report.table import BASELINES, is_percent, score_text


def sizes_section(rows: Sequence[Row], targets: Collection[str]) -> Section:
    """Scores over numbers of training examples, of models that were trained on several.

    Args:
        targets: the tasks to show; none for all.
    """
    rows = [r for r in rows if not is_part(r) and "interpolation" not in r]
    plots: list[Plot] = []
    tables = []
    for task in dict.fromkeys(row["task"] for row in rows if not targets or row["task"] in targets):
        first = first_metric([row for row in rows if row["task"] == task])
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
    said = "Bands are 95 % intervals; dashed lines are what needs no training."
    if max((row.get("seeds", 1) for row in rows), default=1) > 1:
        said += " Of several seeds, bands reach from the lowest to the highest end of their own."
    return Section(
        "sizes",
        "How many examples",
        said if plots else "",
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
        for number, (line, sized) in enumerate(list(curves.items())[:MAX_COLOURS])
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
        drawn[: 2 * MAX_COLOURS],
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
    lines = list(curves)[:MAX_COLOURS]
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
        and_more(len(curves), MAX_COLOURS, "models in results.json"),
    )
