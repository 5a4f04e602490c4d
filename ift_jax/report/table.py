"""results.json rows as a table for the terminal, and how scores and models are written."""

from collections.abc import Mapping, Sequence
from typing import Any

from ift_jax.evaluation.metrics import METRICS

BASELINES = {
    "majority": "always the most frequent answer",
    "copy": "copying the input",
    "random": "choosing at random",
}
_NAMES = {"base": "base model", "tuned": "tuned model"}


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per model and number of shots, a column per task and metric, with intervals.

    Rows of a single template or class, and of interpolated weights, are left out. Under the
    table stand what is no percentage, how many items were scored, and what the prompts cost.

    Example:
        >>> row = {"model": "tuned", "task": "rating", "split": "test", "shots": 0,
        ...        "metric": "accuracy", "value": 0.61, "count": 300, "low": 0.55, "high": 0.66,
        ...        "prompt_tokens": 71.25, "shots_given": 0.0}
        >>> chance = {**row, "model": "random", "value": 0.2, "low": 0.2, "high": 0.2}
        >>> print(results_table([chance, row]))
                                  rating
                                accuracy
        choosing at random            20
        tuned model, 0 shots  61 [55–66]
        <BLANKLINE>
        Percent, with 95 % intervals; 300 test items of rating.
        Tokens of a prompt: rating 71 at 0 shots.
    """
    rows = [row for row in rows if not row.keys() & {"template", "class", "interpolation"}]
    columns = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    lines = list(dict.fromkeys((row["model"], row["shots"]) for row in rows))
    cells = {
        (row["model"], row["shots"], row["task"], row["metric"]): score_text(row) for row in rows
    }
    table = [["", *(task for task, _ in columns)], ["", *(metric for _, metric in columns)]]
    for model, shots in lines:
        table.append(
            [
                model_label(model, shots),
                *(cells.get((model, shots, *column), "–") for column in columns),
            ]
        )
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
    return "\n".join([*text, "", *_notes(rows)])


def model_label(model: str, shots: int) -> str:
    """What a line of scores is called.

    Example:
        >>> model_label("tuned", 0), model_label("random", 0)
        ('tuned model, 0 shots', 'choosing at random')
    """
    return BASELINES.get(model) or f"{_NAMES.get(model, model)}, {shots_label(shots)}"


def shots_label(shots: int) -> str:
    """A number of shots in words.

    Example:
        >>> shots_label(1), shots_label(5)
        ('1 shot', '5 shots')
    """
    return f"{shots} {'shot' if shots == 1 else 'shots'}"


def score_text(row: Mapping[str, Any]) -> str:
    """A score with its interval, shares as percent.

    Example:
        >>> score_text({"metric": "accuracy", "value": 0.61, "low": 0.55, "high": 0.66})
        '61 [55–66]'
    """
    value, low, high = (
        f"{row[key] * 100:.0f}" if is_percent(row["metric"]) else f"{row[key]:.2f}"
        for key in ("value", "low", "high")
    )
    return value if row["low"] == row["high"] else f"{value} [{low}–{high}]"


def is_percent(metric: str) -> bool:
    """Whether a metric is written as a percentage; one that we do not know is a share."""
    return metric not in METRICS or METRICS[metric].is_percent


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = dict.fromkeys(f"{row['count']} {row['split']} items of {row['task']}" for row in rows)
    others = dict.fromkeys(row["metric"] for row in rows if not is_percent(row["metric"]))
    but = f", but for {', '.join(others)}" if others else ""
    notes = [f"Percent{but}, with 95 % intervals; {', '.join(counts)}."]
    costs: dict[str, list[str]] = {}
    for row in rows:
        if "prompt_tokens" in row and row["model"] not in BASELINES:
            short = row["shots_given"] < row["shots"]
            room = f" (room for {row['shots_given']:.1f})" if short else ""
            cost = f"{row['prompt_tokens']:.0f} at {shots_label(row['shots'])}{room}"
            costs.setdefault(row["task"], []).append(cost)
    if costs:
        tasks = (f"{task} {', '.join(dict.fromkeys(said))}" for task, said in costs.items())
        notes.append(f"Tokens of a prompt: {'; '.join(tasks)}.")
    return notes
