"""metrics.jsonl as curves over steps, and what training cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ift_jax.evaluation.metrics import deciding_key
from ift_jax.report.elements import (
    MAX_COLOURS,
    MAX_FIGURES,
    MAX_POINTS,
    MAX_ROWS,
    Curve,
    Lines,
    Section,
    Table,
    and_more,
)
from ift_jax.report.inputs import Run
from ift_jax.report.rows import entries
from ift_jax.report.table import is_percent

Points = list[tuple[float, float]]

# Title, unit, and the keys of training and of validation. Percent means that shares are stored.
_PAIRS = (
    ("Loss", "nats per token", "loss", "validation_loss"),
    ("Token accuracy", "percent", "token_accuracy", "validation_token_accuracy"),
)
_MOVED = (
    ("Distance from the base", "of the base's weights, relative", "", "weight_drift"),
    ("KL from the base on neutral text", "nats per token", "text_kl", "kl_from_base"),
    ("KL from the base on the examples", "nats per token", "kl", ""),
    ("L2-SP penalty", "nats per token", "l2sp", ""),
    ("EWC penalty", "nats per token", "ewc", ""),
)
_TRAINING = (
    ("Learning rate", "learning rate", "learning_rate", ""),
    ("Gradient norm", "norm", "gradient_norm", ""),
)
_TASK_METRIC = "validation/"


def training_section(runs: Sequence[Run]) -> Section:
    """Curves over steps, one colour a run, and a table of where they begin and end."""
    runs = [run for run in runs if run.metrics]
    shown = runs[:MAX_COLOURS]
    asked = [*_PAIRS, *_task_metrics(shown), *_MOVED, *_TRAINING]
    plots = [plot for one in asked if (plot := _plot(shown, *one))]
    notes = and_more(len(runs), len(shown), "workdirs, whose curves are not drawn")
    notes += and_more(len(plots), MAX_FIGURES, "metrics, whose curves are not drawn")
    step = max((_step_width(run) for run in shown), default=1)
    if step > 1:
        notes.append(f"A point of a training curve is the mean of up to {step} steps.")
    intro = "Thin lines are training, bold lines with dots validation." if plots else ""
    tables = [_numbers(runs)] if runs else []
    return Section("training", "Training", intro, plots[:MAX_FIGURES], tables, notes=notes)


def _task_metrics(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    keys = dict.fromkeys(
        key for run in runs for line in run.metrics for key in line if key.startswith(_TASK_METRIC)
    )
    found = []
    for key in keys:
        task, _, metric = key.removeprefix(_TASK_METRIC).rpartition("/")
        unit = "percent" if is_percent(metric) else metric
        found.append((f"{task}: {metric} in validation", unit, "", key))
    for metric in dict.fromkeys(key.rpartition("/")[2] for key in keys):
        if sum(key.rpartition("/")[2] == metric for key in keys) > 1:  # else its task shows it
            unit = "percent" if is_percent(metric) else metric
            found.append((f"Mean {metric} in validation", unit, "", deciding_key(metric)))
    return found


def _plot(
    runs: Sequence[Run], title: str, unit: str, training: str, validation: str
) -> Lines | None:
    """One metric of all runs; None where no run has it."""
    scale = 100.0 if unit == "percent" else 1.0
    curves, said = [], []
    for colour, run in enumerate(runs):
        points, checked = points_of(run, training), points_of(run, validation)
        alone = len(runs) == 1
        for style, kind, found in (("thin", "training", points), ("bold", "validation", checked)):
            if not found:
                continue
            labelled = alone or style == "bold" or not checked
            label = (kind if validation and training else "") if alone else run.name
            drawn = thinned(found, MAX_POINTS)
            curves.append(
                Curve(
                    label if labelled else "",
                    [x for x, _ in drawn],
                    [y * scale for _, y in drawn],
                    colour=colour,
                    style=style,
                )
            )
            said.append(f"{run.name}, {kind}: {_spoken(found, scale)}")
    if not curves:
        return None
    alt = f"{title} in {unit} over steps. {'; '.join(said)}."
    return Lines(_file_name(title), title, "step", unit, curves, alt)


def points_of(run: Run, key: str) -> Points:
    """(step, value) of a key, in order of steps."""
    return sorted((line["step"], float(line[key])) for line in run.metrics if key in line)


def thinned(points: Points, most: int) -> Points:
    """At most `most` points: the means over stretches of neighbours. The ends keep their steps.

    Values that are no numbers are left out of a mean, and make a gap where there is no other.

    Example:
        >>> thinned([(1, 4.0), (2, 2.0), (3, 1.0), (4, 3.0)], 2)
        [(1, 3.0), (4, 2.0)]
    """
    if len(points) <= most:
        return points
    thin = []
    for number in range(most):
        part = points[number * len(points) // most : (number + 1) * len(points) // most]
        values = [y for _, y in part if math.isfinite(y)]
        x = part[len(part) // 2][0]
        if number in (0, most - 1):
            x = part[-1 if number else 0][0]
        thin.append((x, fmean(values) if values else math.nan))
    return thin


def _step_width(run: Run) -> int:
    return math.ceil(len(points_of(run, "loss")) / MAX_POINTS)


def _spoken(points: Points, scale: float) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    if first == last:
        return f"{end * scale:.3g} at step {last:g}"
    return f"from {begin * scale:.3g} at step {first:g} to {end * scale:.3g} at step {last:g}"


def _file_name(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower())


def _numbers(runs: Sequence[Run]) -> Table:
    """Where each run's curves begin, end, and are best."""
    rows = []
    for run in runs:
        losses, checked = points_of(run, "loss"), points_of(run, "validation_loss")
        best = min(checked, key=lambda point: point[1], default=None)
        rows.append(
            (
                run.name,
                f"{losses[-1][0]:,}" if losses else "–",
                f"{losses[0][1]:.3f}" if losses else "–",
                f"{losses[-1][1]:.3f}" if losses else "–",
                f"{best[1]:.3f} at step {best[0]:,}" if best else "–",
                _chosen(run),
            )
        )
    columns = ("run", "steps", "first loss", "last loss", "lowest validation loss", "chosen")
    note = "Losses in nats per trained token. The chosen checkpoint is the one that was tested."
    return Table("Training in numbers", columns, rows, [note])


def _chosen(run: Run) -> str:
    """The step that was scored, and what chose it: a validation score, if there was one."""
    chosen = run.results.get("chosen")
    if not chosen:
        return "–"
    by = f"by {chosen['by']} {chosen['value']:.3f}" if "value" in chosen else chosen["by"]
    return f"step {chosen['step']:,}, {by}"


def costs_section(runs: Sequence[Run]) -> Section:
    """Tokens, speed and time of training, and what prompts hold."""
    trained = [run for run in runs if points_of(run, "tokens")]
    rows = [_cost(run) for run in trained[:MAX_ROWS]]
    tables = []
    if rows:
        tables.append(
            Table(
                "What training cost",
                ("run", "steps", "tokens", "of them trained", "tokens/s (median)", "time of steps"),
                rows,
                [
                    "Time of steps is that of the steps themselves, compilation included; "
                    "loading, validation and scoring come on top.",
                    *and_more(len(trained), len(rows), "workdirs"),
                ],
            )
        )
    studied = entries(runs, "costs")
    if studied:
        tables.append(_study_costs(studied))
    prompts = dict.fromkeys(_prompt_costs(runs))
    if prompts:
        tables.append(
            Table(
                "What a prompt costs: tokens on average, at each number of examples in it",
                ("task", "shots", "tokens", "examples that fitted"),
                list(prompts)[:MAX_ROWS_OF_PROMPTS],
                and_more(len(prompts), MAX_ROWS_OF_PROMPTS, "rows"),
            )
        )
    return Section("costs", "Costs", tables=tables)


MAX_ROWS_OF_PROMPTS = 40


def _cost(run: Run) -> tuple[str, ...]:
    lines = [line for line in run.metrics if "tokens" in line]
    tokens = sum(line["tokens"] for line in lines)
    trained = sum(line.get("trained_tokens", 0) for line in lines)
    speeds = [line["tokens_per_s"] for line in lines if line.get("tokens_per_s", 0) > 0]
    seconds = sum(
        line["tokens"] / line["tokens_per_s"] for line in lines if line.get("tokens_per_s", 0) > 0
    )
    return (
        run.name,
        f"{len(lines):,}",
        f"{tokens:,.0f}",
        f"{trained:,.0f} ({100 * trained / max(tokens, 1):.0f} %)",
        f"{median(speeds):,.0f}" if speeds else "–",
        duration(seconds) if speeds else "–",
    )


def _study_costs(costs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            cost["model"] + (f" of {cost['train_size']:,}" if "train_size" in cost else ""),
            str(cost["seed"]),
            f"{cost['steps']:,}",
            f"{cost['tokens']:,}",
            f"{cost['trained_tokens']:,}",
            duration(cost["training_s"]),
            duration(cost["scoring_s"]),
        ]
        for cost in costs
    ]
    return Table(
        "What each run of the study cost",
        ["run", "seed", "steps", "tokens", "of them trained", "time of steps", "time of scoring"],
        rows[:MAX_ROWS],
        and_more(len(rows), MAX_ROWS, "runs in results.json"),
    )


def _prompt_costs(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for row in run.rows:
            if "prompt_tokens" in row and not row.keys() & {"template", "class"}:
                given = f"{row['shots_given']:.1f}" if "shots_given" in row else "–"
                yield row["task"], str(row["shots"]), f"{row['prompt_tokens']:.0f}", given


def duration(seconds: float) -> str:
    """A time in its two largest units.

    Example:
        >>> duration(12.3), duration(200), duration(7260)
        ('12 s', '3 min 20 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
