"""Task score against retained score, for weights between base and tuned ones."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ift_jax.report.elements import MAX_COLUMNS, MAX_ROWS, Curve, Lines, Section, Table, and_more
from ift_jax.report.rows import Row, first_metric, is_part
from ift_jax.report.table import is_percent, score_text


class _Mix(NamedTuple):
    """Scores at one share of the tuned weights."""

    share: float
    target: Row
    retained: float


def mixing_section(rows: Sequence[Row], results: Mapping[str, Any]) -> Section:
    """Task score against retained score, for weights between base and tuned ones (WiSE-FT)."""
    target = results.get("target", "")
    first = {
        task: first_metric([row for row in rows if row["task"] == task])
        for task in dict.fromkeys(row["task"] for row in rows)
    }
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
