"""Scores of weights between base and tuned ones: each task, and task against retained score."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from ift_jax.evaluation.metrics import METRICS
from ift_jax.report.elements import (
    MAX_COLOURS,
    MAX_COLUMNS,
    MAX_ROWS,
    Curve,
    Lines,
    Section,
    Table,
    and_more,
)
from ift_jax.report.inputs import Run
from ift_jax.report.rows import Row, first_metric, is_part, pooled
from ift_jax.report.table import is_percent, score_text


class _Mix(NamedTuple):
    """Scores at one share of the tuned weights: by task, and the mean of those to be retained."""

    share: float
    scores: dict[str, Row]
    retained: float


def mixing_section(runs: Sequence[Run]) -> Section:
    """Scores of weights between base and tuned ones (WiSE-FT), of each run that has some."""
    mixed = {run.name: (run, curves) for run in runs if (curves := _curves(run))}
    plots, tables = [], []
    for name, (run, curves) in mixed.items():
        of = f" ({name})" if len(mixed) > 1 else ""
        target, _ = _target_and_retained(run)
        plots += _plot(target, curves, of)
        tables.append(_table(run, curves, of))
    intro = (
        "Weights between those that a tuning began with and those that it made, by the share of "
        "the latter."
        if mixed
        else ""
    )
    return Section("mixing", "Between base and tuned", intro, plots, tables)


def _target_and_retained(run: Run) -> tuple[str, list[str]]:
    """The task that was to be learned, "" where there are several, and those to be kept.

    A study says which; of a workdir it is what was trained, and what was only scored, but for
    tasks whose first metric is no share, or of which less is better: these have no common mean.
    """
    if run.is_study:
        return run.results.get("target", ""), run.results.get("retained", [])
    its = run.card.get("mixture", {}).get("tasks", {})
    trained = [task for task, counts in its.items() if counts["drawn"]]
    first = _first_metrics(run.rows)
    kept = [task for task in first if task not in trained and _has_a_mean(first[task])]
    return (trained[0], kept) if len(trained) == 1 else ("", [])


def _first_metrics(rows: Sequence[Row]) -> dict[str, str]:
    """Of each task the metric that figures show."""
    return {
        task: first_metric([row for row in rows if row["task"] == task])
        for task in dict.fromkeys(row["task"] for row in rows)
    }


def _has_a_mean(metric: str) -> bool:
    known = METRICS.get(metric)
    return known is None or (known.is_percent and known.higher_is_better)


def _curves(run: Run) -> dict[str, list[_Mix]]:
    """By model, the scores at each share by the first metric of each task."""
    rows = [row for row in pooled(run.rows) if not is_part(row)]
    first = _first_metrics(rows)
    _, kept = _target_and_retained(run)
    found: dict[str, dict[float, dict[str, Row]]] = {}
    for row in rows:
        if "interpolation" in row and row["metric"] == first[row["task"]]:
            shares = found.setdefault(row["model"], {})
            shares.setdefault(row["interpolation"], {})[row["task"]] = row
    return {
        model: [
            _Mix(share, shares[share], _retained(shares[share], kept)) for share in sorted(shares)
        ]
        for model, shares in found.items()
    }


def _retained(scores: Mapping[str, Row], kept: Sequence[str]) -> float:
    """The mean over the tasks to be kept; NaN if there is none."""
    values = [scores[task]["value"] for task in kept if task in scores]
    return fmean(values) if values else math.nan


def _plot(target: str, curves: Mapping[str, Sequence[_Mix]], of: str) -> list[Lines]:
    """Task score against retained score, of the models that have both."""
    whole = {
        model: points
        for model, every in curves.items()
        if (points := [p for p in every if target in p.scores and math.isfinite(p.retained)])
    }
    if not whole:
        return []
    metric = next(iter(whole.values()))[0].scores[target]["metric"]
    scale = 100 if is_percent(metric) else 1
    drawn = [
        Curve(
            "",
            [point.retained * 100 for point in points],
            [point.scores[target]["value"] * scale for point in points],
            colour=number + 1,
            # The last point says whose curve it is.
            names=[
                *(f"{point.share:.0%}" for point in points[:-1]),
                f"{points[-1].share:.0%} {model}",
            ],
        )
        for number, (model, points) in enumerate(list(whole.items())[:MAX_COLOURS])
    ]
    said = "; ".join(
        f"{model}, {p.share:.0%} tuned: {target} {score_text(p.scores[target])}, "
        f"retained {100 * p.retained:.1f}"
        for model, points in whole.items()
        for p in points
    )
    return [
        Lines(
            "mixing",
            f"{target} against what was retained{of}",
            "retained, percent",
            f"{target}: {metric}, {'percent' if is_percent(metric) else metric}",
            drawn,
            f"Score of {target} against the mean retained score. {said}.",
        )
    ]


def _table(run: Run, curves: Mapping[str, Sequence[_Mix]], of: str) -> Table:
    """The target, what is retained, then each other task."""
    target, kept = _target_and_retained(run)
    scored = dict.fromkeys(t for points in curves.values() for p in points for t in p.scores)
    tasks = sorted(scored, key=lambda task: task != target)[:MAX_COLUMNS]
    means = any(math.isfinite(p.retained) for points in curves.values() for p in points)
    metrics = {t: p.scores[t]["metric"] for ps in curves.values() for p in ps for t in p.scores}
    body = []
    for model, points in curves.items():
        for point in points:
            cells = [score_text(point.scores[t]) if t in point.scores else "–" for t in tasks]
            mean = [f"{100 * point.retained:.1f}"] if means else []
            body.append([f"{model}, {point.share:.0%} tuned", *mean, *cells])
    named = [f"{task}: {metrics[task]}" for task in tasks]
    notes = [f"Retained is the mean over {', '.join(kept)}."] if means else []
    return Table(
        f"Scores by the share of tuned weights{of}",
        ["weights", *(["retained (mean, percent)"] if means else []), *named],
        body[:MAX_ROWS],
        [
            *notes,
            *and_more(len(scored), len(tasks), "tasks in results.json"),
            *and_more(len(body), MAX_ROWS, "rows in results.json"),
        ],
    )
