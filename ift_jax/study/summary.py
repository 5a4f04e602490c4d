"""A study's results for the terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from ift_jax.report.table import results_table

WIDTH = 100


def summary_text(results: Mapping[str, Any]) -> str:
    """The score of each model by each task's first metric, and what the study says."""
    whole = [row for row in results["rows"] if not row.keys() & {"template", "class"}]
    first: dict[str, str] = {}
    for row in whole:
        if row["model"] == "base":
            first.setdefault(row["task"], row["metric"])
    shown: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in whole:
        if row["metric"] == first[row["task"]] and "interpolation" not in row:
            size = f" of {row['train_size']}" if "train_size" in row else ""
            model = f"{row['model']}{size}"
            key = (model, row["shots"], row["task"])
            shown.setdefault(key, []).append({**row, "model": model})
    table = results_table([_mean(rows) for rows in shown.values()])
    said = [
        f"{found['question']}\n"
        + textwrap.fill(found["answer"], WIDTH, initial_indent="  ", subsequent_indent="  ")
        for found in results["findings"]
    ]
    seeds = max(map(len, shown.values()))
    if seeds > 1:
        table += (
            f"\nScores of up to {seeds} seeds are means; their intervals here reach from the "
            "lowest to the highest end of the seeds' own."
        )
    return "\n\n".join([table, *said])


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of several seeds as one: the mean, from the lowest low to the highest high."""
    return {
        **rows[0],
        "value": sum(row["value"] for row in rows) / len(rows),
        "low": min(row["low"] for row in rows),
        "high": max(row["high"] for row in rows),
    }
