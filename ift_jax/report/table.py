"""results.json rows as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {
    "majority": "always the most frequent answer",
    "base": "base model",
    "tuned": "tuned model",
}


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per model and number of shots, a column per task and metric, with intervals.

    Example:
        >>> row = {"model": "tuned", "task": "rating", "split": "test", "shots": 0,
        ...        "metric": "accuracy", "value": 0.61, "count": 300, "low": 0.55, "high": 0.66}
        >>> print(results_table([row]))
                                  rating
                                accuracy
        tuned model, 0 shots  61 [55–66]
        <BLANKLINE>
        Percent, with 95 % intervals; 300 test items of rating.
    """
    columns = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    lines = list(dict.fromkeys((row["model"], row["shots"]) for row in rows))
    cells = {
        (row["model"], row["shots"], row["task"], row["metric"]): (
            f"{row['value'] * 100:.0f} [{row['low'] * 100:.0f}–{row['high'] * 100:.0f}]"
        )
        for row in rows
    }
    table = [["", *(task for task, _ in columns)], ["", *(metric for _, metric in columns)]]
    for model, shots in lines:
        name = _NAMES.get(model, model)
        plural = "shot" if shots == 1 else "shots"
        label = name if model == "majority" else f"{name}, {shots} {plural}"
        table.append([label, *(cells.get((model, shots, *column), "–") for column in columns)])
    widths = [max(len(row[i]) for row in table) for i in range(len(columns) + 1)]
    text = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in table
    ]
    counts = dict.fromkeys(f"{row['count']} {row['split']} items of {row['task']}" for row in rows)
    return "\n".join([*text, "", f"Percent, with 95 % intervals; {', '.join(counts)}."])
