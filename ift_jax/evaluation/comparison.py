"""python -m ift_jax.evaluation.comparison FIRST.jsonl SECOND.jsonl: two models on the same items.

The files are what `ift evaluate --predictions=F.jsonl` writes. Every model and number of shots of
the first file is compared with every one of the second, task by task, on paired items.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ift_jax.errors import InputError, one_line
from ift_jax.evaluation.intervals import mcnemar, paired_bootstrap, randomization_test
from ift_jax.evaluation.metrics import (
    METRICS,
    check_metrics,
    check_packages,
    check_references,
    generates,
    item_counts,
)
from ift_jax.evaluation.predictions import Line, Prediction, read_lines

MCNEMAR, RANDOMIZATION = "McNemar's exact test", "approximate randomization"

Item = tuple[str, str]  # template and key


class Setting(NamedTuple):
    """What was scored, and how."""

    task: str
    split: str
    model: str
    shots: int


class Runs(NamedTuple):
    """Predictions of one setting: the same items by every seed of exemplars, in one order."""

    items: list[Item]
    predictions: list[list[Prediction]]
    metrics: tuple[str, ...]


def compare(
    first: str | Path, second: str | Path, metrics: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Differences between two files of predictions; see `compare_lines`.

    Raises:
        InputError: if a file cannot be read, and as `compare_lines`.
    """
    return compare_lines(
        read_lines(first), read_lines(second), metrics, names=(str(first), str(second))
    )


def compare_lines(
    first: Iterable[Line],
    second: Iterable[Line],
    metrics: Sequence[str] = (),
    *,
    names: tuple[str, str] = ("the first model", "the second model"),
) -> list[dict[str, Any]]:
    """Differences between two models, second minus first, with interval and p-value.

    The interval is that of the paired bootstrap. The p-value is that of McNemar's exact test
    where items are right or wrong and each model answered them once, else that of approximate
    randomization.

    Args:
        metrics: default: those that both were made for.
        names: of the two, for messages.

    Returns:
        One row per task, pair of settings and metric.

    Raises:
        InputError: if a metric cannot be computed, or items differ.
    """
    check_metrics(metrics, "metrics")
    before, after = by_setting(first, names[0]), by_setting(second, names[1])
    for name, settings in zip(names, (before, after), strict=True):
        if not settings:
            raise InputError(f"{name}: holds no predictions")
    rows = []
    for a, runs_a in before.items():
        for b, runs_b in after.items():
            if (a.task, a.split) == (b.task, b.split):
                where = f"task {a.task}, {a.split} split"
                shared = [m for m in runs_a.metrics if m in runs_b.metrics]
                for metric in metrics or shared:
                    check_same_items(metric, where, runs_a, runs_b)
                    rows.append(_row(metric, a, runs_a, b, runs_b))
    if not rows:
        raise InputError(f"{', '.join(names)}: have no task, split and metric in common")
    return rows


def by_setting(predictions: Iterable[Line], where: str) -> dict[Setting, Runs]:
    """Predictions apart by task, split, model and shots.

    Raises:
        InputError: with `where`, if an item comes twice or not for every seed.
    """
    by_seed: dict[Setting, dict[int, dict[Item, Line]]] = {}
    for line in predictions:
        setting = Setting(line.task, line.split, line.model, line.shots)
        lines = by_seed.setdefault(setting, {}).setdefault(line.seed, {})
        if (line.template, line.key) in lines:
            raise InputError(f"{where}: task {line.task} holds item {line.key} twice")
        lines[line.template, line.key] = line
    return {setting: _runs(where, setting, seeds) for setting, seeds in by_seed.items()}


def _runs(where: str, setting: Setting, seeds: dict[int, dict[Item, Line]]) -> Runs:
    first = next(iter(seeds.values()))
    items = sorted(first)
    for seed, lines in seeds.items():
        if sorted(lines) != items:
            raise InputError(f"{where}: task {setting.task} has other items for seed {seed}")
    metrics = first[items[0]].metrics
    check_metrics(metrics, where)
    predictions = [[lines[item].prediction for item in items] for lines in seeds.values()]
    return Runs(items, predictions, metrics)


def check_same_items(metric: str, where: str, first: Runs, second: Runs) -> None:
    """Raises InputError unless both hold the same items, with what the metric reads."""
    check_packages([metric])
    if first.items != second.items:
        differ = len(set(first.items) ^ set(second.items))
        raise InputError(
            f"{where}: {differ} items are in one of the two only; score both models on the "
            "same data with the same config.evaluation.max_items"
        )
    answers = [[p.accepted for p in runs.predictions[0]] for runs in (first, second)]
    if answers[0] != answers[1]:
        raise InputError(f"{where}: the two have other references for the same items")
    for runs in (first, second):
        if not _holds(runs, METRICS[metric].needs):
            raise InputError(
                f"{where}: metric {metric} cannot be computed from predictions made for "
                + ", ".join(runs.metrics)
            )
    check_references([metric], [one for accepted in answers[0] for one in accepted], where)


def _holds(runs: Runs, need: str) -> bool:
    """Whether all predictions have what a metric reads."""
    if need == "generated":
        return any(map(generates, runs.metrics))
    read = {"ranked": "scores", "calibrated": "neutral_scores", "reference": "num_tokens"}[need]
    return all(bool(getattr(p, read)) for run in runs.predictions for p in run)


def _row(metric: str, a: Setting, first: Runs, b: Setting, second: Runs) -> dict[str, Any]:
    runs = [*first.predictions, *second.predictions]
    counts = item_counts(METRICS[metric].items, runs)  # of both at once: the same classes
    cut = len(first.predictions)
    pair = counts[:cut], counts[cut:]
    found = paired_bootstrap(*pair, METRICS[metric].value, near=METRICS[metric].near)
    if METRICS[metric].is_share and len(runs) == 2:
        right = counts[:, :, 0] > 0
        p = mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
        test = MCNEMAR
    else:
        p, test = randomization_test(*pair, METRICS[metric].value), RANDOMIZATION
    values = [float(METRICS[metric].value(c.sum(axis=1)).mean()) for c in pair]
    return {
        "task": a.task,
        "split": a.split,
        "metric": metric,
        "count": len(first.items),
        "first": {"model": a.model, "shots": a.shots, "value": values[0]},
        "second": {"model": b.model, "shots": b.shots, "value": values[1]},
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": p,
        "test": test,
    }


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per row of `compare`, shares as percentages."""
    lines = []
    for row in rows:
        scale, digits = (100, 1) if METRICS[row["metric"]].is_percent else (1, 3)
        number = {key: f"{row[key] * scale:+.{digits}f}" for key in ("difference", "low", "high")}
        sides = []
        for side in (row["first"], row["second"]):
            shots = "1 shot" if side["shots"] == 1 else f"{side['shots']} shots"
            sides.append(f"{side['model']} at {shots} {side['value'] * scale:.{digits}f}")
        lines.append(
            f"{row['task']} {row['metric']}: {sides[0]}, {sides[1]}, difference "
            f"{number['difference']} [{number['low']}, {number['high']}], p = {row['p']:.2g} "
            f"({row['test']}, {row['count']} {row['split']} items)"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the comparison of two files of predictions."""
    parser = argparse.ArgumentParser(
        prog="python -m ift_jax.evaluation.comparison", description=__doc__
    )
    parser.add_argument("first", help="predictions of the one model")
    parser.add_argument("second", help="predictions of the other")
    parser.add_argument("--metrics", default="", help="default: those that both were made for")
    parser.add_argument("--output", default="", help="file for the rows, as JSON")
    flags = parser.parse_args(arguments)
    try:
        rows = compare(flags.first, flags.second, tuple(filter(None, flags.metrics.split(","))))
        if flags.output:
            Path(flags.output).write_text(json.dumps({"rows": rows}, indent=2) + "\n", "utf-8")
    except (InputError, OSError) as error:
        sys.exit(f"comparison: {one_line(error)}")
    print(comparison_table(rows))


if __name__ == "__main__":
    main()
