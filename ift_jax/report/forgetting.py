"""What a study found was forgotten: matrices, changes per task, and early signs."""

from collections.abc import Mapping, Sequence
from typing import Any

from ift_jax.report.elements import (
    MAX_FIGURES,
    MAX_ROWS,
    Dot,
    Section,
    Table,
    Whiskers,
    and_more,
)
from ift_jax.report.inputs import Run
from ift_jax.report.rows import entries
from ift_jax.report.scores import GREY, MAX_DOTS
from ift_jax.report.table import is_percent, score_text

MAX_MATRICES = 24


def forgetting_section(runs: Sequence[Run]) -> Section:
    """Changes with intervals as plots and tables, the matrices R[i][j], and drift."""
    changes = entries(runs, "changes")
    matrices = entries(runs, "matrices")
    probes = entries(runs, "probes")
    drift = entries(runs, "drift")
    methods = list(dict.fromkeys(map(_method, changes)))
    ends = [100 * c[key] for c in changes if is_percent(c["metric"]) for key in ("low", "high")]
    reach = (min([0, *ends]) - 3, max([0, *ends]) + 3)  # the same for all, to compare them
    plots = [
        _changes_plot(number, method, [c for c in changes if _method(c) == method], reach)
        for number, method in enumerate(methods[:MAX_FIGURES])
    ]
    tables = [_changes_table(changes)] if changes else []
    tables += [_matrix_table(matrix) for matrix in matrices[:MAX_MATRICES]]
    tables += [_probes_table(probes)] if probes else []
    tables += [_drift_table(drift)] if drift else []
    notes = and_more(len(methods), MAX_FIGURES, "models, whose changes are not drawn")
    notes += and_more(len(matrices), MAX_MATRICES, "matrices in results.json")
    if any("forgetting" in matrix for matrix in matrices):
        notes.append("Forgetting F is the best score of an earlier stage minus the last one.")
    intro = (
        "Changes are scores after tuning minus before, on the same items, in percentage points "
        "where scores are percentages."
        if changes
        else ""
    )
    return Section("forgetting", "What was forgotten", intro, plots, tables, notes=notes)


def _method(of: Mapping[str, Any]) -> str:
    return f"{of['model']}, seed {of['seed']}" if "seed" in of else of["model"]


def _changes_plot(
    number: int, method: str, changes: Sequence[Mapping[str, Any]], reach: tuple[float, float]
) -> Whiskers:
    shares = [change for change in changes if is_percent(change["metric"])]
    dots = [
        Dot(
            f"{change['task']} ({change['metric']})",
            100 * change["value"],
            100 * change["low"],
            100 * change["high"],
            1 if change.get("counted", True) else GREY,
        )
        for change in shares
    ]
    said = "; ".join(f"{change['task']}: {_signed(change)}" for change in shares[:MAX_DOTS])
    return Whiskers(
        f"changes_{number + 1}",
        f"{method}: change per task",
        "percentage points",
        dots[:MAX_DOTS],
        f"Change per task by {method}, in percentage points with 95 % intervals. {said}.",
        reach,
    )


def _signed(change: Mapping[str, Any]) -> str:
    value, low, high = (_signed_number(change["metric"], change[k]) for k in _SCORE)
    return f"{value} [{low}, {high}]"


_SCORE = ("value", "low", "high")


def _signed_number(metric: str, value: float) -> str:
    """A difference, of shares in percentage points."""
    text = f"{100 * value:+.1f}" if is_percent(metric) else f"{value:+.3f}"
    return text.replace("-", "−")


def _changes_table(changes: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{_method(change)}: {change['task']}",
            change["metric"],
            f"{change['before']} → {change['after']}",
            _signed(change),
            f"{change['p']:.2g}" if "p" in change else "–",
            f"{change['count']:,}" if "count" in change else "–",
            "yes" if change.get("counted", True) else "no",
        ]
        for change in changes
    ]
    notes = and_more(len(rows), MAX_ROWS, "changes in results.json")
    if not all(change.get("counted", True) for change in changes):
        notes.append(
            "A probe counts where the model before tuning beats the majority baseline and choosing "
            "at random, with intervals apart; the others are grey."
        )
    return Table(
        "Change per task, after minus before, with 95 % intervals",
        ["model and task", "metric", "from → to", "change", "p", "items", "counts"],
        rows[:MAX_ROWS],
        notes,
    )


def _matrix_table(matrix: Mapping[str, Any]) -> Table:
    """R[i][j], score on task j after stage i, shaded by the score."""
    tasks, metrics = matrix["tasks"], matrix["metrics"]
    low, high = matrix.get("low", matrix["values"]), matrix.get("high", matrix["values"])
    rows, shades = [], []
    for i, stage in enumerate(matrix["stages"]):
        cells = [
            {"metric": m, "value": matrix["values"][i][j], "low": low[i][j], "high": high[i][j]}
            for j, m in enumerate(metrics)
        ]
        rows.append([f"after {stage}" if i else stage, *map(score_text, cells)])
        shades.append(
            [min(max(c["value"], 0.0), 1.0) if is_percent(c["metric"]) else 0.0 for c in cells]
        )
    if "forgetting" in matrix:
        pairs = zip(metrics, matrix["forgetting"], strict=True)
        rows.append(["forgetting F", *(_signed({**found, "metric": m}) for m, found in pairs)])
        shades.append([0.0] * len(tasks))
    notes = []
    for name, words in (
        ("backward_transfer", "Backward transfer (BWT), the mean of R[T][i] − R[i][i] over i < T"),
        ("average_forgetting", "Average F over the same tasks"),
        ("mean_change", "Mean change over the tasks that count"),
    ):
        if name in matrix:
            notes.append(f"{words}: {_signed({'metric': '', **matrix[name]})} percentage points.")
    return Table(
        f"{_method(matrix)}: score on each task after each stage, R[i][j]",
        ["stage", *(f"{task} ({metric})" for task, metric in zip(tasks, metrics, strict=True))],
        rows[:MAX_ROWS],
        notes,
        shades[:MAX_ROWS],
    )


def _probes_table(probes: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "Which probes count",
        ["probe", "metric", "model before", "counts", "why"],
        [
            [p["task"], p["metric"], p["before"], "yes" if p["counted"] else "no", p["why"]]
            for p in probes[:MAX_ROWS]
        ],
        and_more(len(probes), MAX_ROWS, "probes in results.json"),
    )


def _drift_table(drift: Sequence[Mapping[str, Any]]) -> Table:
    measures = list(dict.fromkeys(sign["measure"] for sign in drift))
    cells = {(_drifted(sign), sign["measure"]): f"{sign['value']:.4g}" for sign in drift}
    methods = list(dict.fromkeys(map(_drifted, drift)))
    return Table(
        "Early signs: how far a tuning moved the model that it began with",
        ["model", *measures],
        [[m, *(cells.get((m, measure), "–") for measure in measures)] for m in methods[:MAX_ROWS]],
        and_more(len(methods), MAX_ROWS, "models in results.json"),
    )


def _drifted(sign: Mapping[str, Any]) -> str:
    return f"{_method(sign)}, from {sign['before']}" if "before" in sign else _method(sign)
