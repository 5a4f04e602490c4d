"""results.json rows of all runs: seeds pooled, what runs share once, what a line is called."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ift_jax.report.inputs import Run
from ift_jax.report.table import BASELINES, model_label

Row = dict[str, Any]

_SAME = (
    "run", "model", "task", "split", "shots", "metric", "stage", "train_size", "interpolation",
    "template", "class",
)  # fmt: skip


def all_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs with "run", seeds pooled, and lines that all runs share once."""
    rows = [{**row, "run": run.name} for run in runs for row in run.rows]
    return _shared_once(pooled(rows), sum(bool(run.rows) for run in runs))


def entries(runs: Sequence[Run], name: str) -> list[dict[str, Any]]:
    """What results.json of all runs hold under a name, told apart by run where there are several.

    The run stands behind the model's name, of a probe behind that of the model before.
    """
    several = sum("rows" in run.results for run in runs) > 1

    def told(entry: dict[str, Any], run: Run) -> dict[str, Any]:
        key = "model" if "model" in entry else "before"
        return {**entry, key: f"{entry[key]}, {run.name}"} if several else entry

    return [told(entry, run) for run in runs for entry in run.results.get(name, [])]


def pooled(rows: Iterable[Row]) -> list[Row]:
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


def first_metric(rows: Sequence[Row]) -> str:
    """The metric that a task is compared by: the first that models were scored by."""
    return next((row["metric"] for row in rows if row["model"] not in BASELINES), rows[0]["metric"])


def final_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows for the table of scores: of each model the last stage and the largest size."""
    return _last([row for row in rows if not is_part(row)])


def final_parts(rows: Sequence[Row]) -> list[Row]:
    """Rows of one template or class, of the models that `final_rows` has."""
    return _last([row for row in rows if is_part(row)])


def _last(rows: Sequence[Row]) -> list[Row]:
    rows = [row for row in rows if "interpolation" not in row]
    for field in ("stage", "train_size"):
        last: dict[tuple, int] = {}
        for row in rows:
            key = (row["run"], row["model"])
            last[key] = max(last.get(key, 0), row.get(field, 0))
        rows = [row for row in rows if row.get(field, 0) == last[row["run"], row["model"]]]
    return list(rows)


def label(row: Mapping[str, Any]) -> str:
    """What a line of scores is called, with its run where there are several."""
    name = model_label(row["model"], row["shots"])
    return f"{name}, {row['run']}" if row["run"] else name
