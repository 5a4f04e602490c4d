"""What tuning cost elsewhere: changes of scores, the matrix R[i][j], and which probes count.

Plain functions over predictions (the lines of `ift evaluate --predictions`) and over rows of
results.json. R[i][j] is the score of task j after stage i; stage 0 is the model before any tuning.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.evaluation.comparison import Runs, by_setting, check_same_items, compare_lines
from ift_jax.evaluation.intervals import Score, percentiles, resampled_values
from ift_jax.evaluation.metrics import METRICS, check_metrics, counted_score, item_counts
from ift_jax.evaluation.predictions import Line

Array = NDArray[np.float64]
Row = dict[str, Any]


class Scores(NamedTuple):
    """R[i][j]: the score of task j after stage i.

    Attributes:
        tasks, metrics: of the columns.
        values: [T, J].
        resampled: [R, T, J]; the same of resampled items. A task's resamples are the same for
            all stages, so that what is computed from several stages is paired by item.
        cells: [T, J]; each score with the interval that it has alone, see `metrics.score`.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Float[Array, "T J"]
    resampled: Float[Array, "R T J"]
    cells: tuple[tuple[Score, ...], ...]

    def interval(self, function: Callable[[Array], Array]) -> Score:
        """What a function [..., T, J] -> [...] makes of the scores, with its 95 % interval."""
        return Score(float(function(self.values)), *percentiles(function(self.resampled)))

    def intervals(self, function: Callable[[Array], Array]) -> list[Score]:
        """The same of a function [..., T, J] -> [..., J]: one a task."""
        return [
            self.interval(lambda scores, j=j: function(scores)[..., j])  # type: ignore[misc]
            for j in range(len(self.tasks))
        ]

    def subset(self, tasks: Iterable[str]) -> "Scores":
        """The columns of some tasks, such as the probes that count."""
        columns = [self.tasks.index(task) for task in tasks]
        return Scores(
            tuple(self.tasks[j] for j in columns),
            tuple(self.metrics[j] for j in columns),
            self.values[:, columns],
            self.resampled[:, :, columns],
            tuple(tuple(row[j] for j in columns) for row in self.cells),
        )


def score_matrix(
    stages: Sequence[Iterable[Line]], metrics: Mapping[str, str] | None = None
) -> Scores:
    """R[i][j] from the predictions made after each stage, all on the same items.

    Args:
        stages: each one model's, at one number of shots. Several seeds of exemplars are averaged.
        metrics: task -> metric; default: the first that the task's predictions were made for.

    Raises:
        InputError: if stages hold other tasks, items or references, or several models; or for a
            metric that cannot be computed, or of which less is better.
    """
    by_stage = [_by_task(lines, f"stage {i}") for i, lines in enumerate(stages)]
    tasks = tuple(by_stage[0])
    chosen = {task: runs.metrics[0] for task, runs in by_stage[0].items()} | dict(metrics or {})
    _check_chosen(chosen, tasks)
    values, resampled, cells = [], [], []
    for number, task in enumerate(tasks):
        runs = [_of(task, stage, i) for i, stage in enumerate(by_stage)]
        metric = METRICS[chosen[task]]
        for later in runs:
            check_same_items(chosen[task], f"task {task}", runs[0], later)
        # In one call, so that all stages count the same classes.
        counts = item_counts(metric.items, [p for each in runs for p in each.predictions])
        spans = list(pairwise(np.cumsum([0, *(len(each.predictions) for each in runs)])))
        whole = metric.value(counts.sum(axis=1))
        drawn = resampled_values(counts, metric.value, seed=number)
        values.append([whole[a:b].mean() for a, b in spans])
        resampled.append(np.stack([drawn[:, a:b].mean(axis=1) for a, b in spans], axis=1))
        cells.append([counted_score(counts[a:b], metric) for a, b in spans])
    return Scores(
        tasks,
        tuple(chosen[task] for task in tasks),
        np.array(values).T,
        np.stack(resampled, axis=2),
        tuple(zip(*cells, strict=True)),
    )


def backward_transfer(scores: Float[Array, "*R T J"], learned: Sequence[int]) -> Float[Array, "*R"]:
    """BWT: what came to earlier tasks since they were learned, on average; negative is lost.

    BWT = 1 / (T - 1) * sum over i < T of R[T][i] - R[i][i] (Lopez-Paz and Ranzato 2017), for
    a sequence in which stage i tunes task i. Here a stage may tune several tasks.

    Args:
        learned: of each task the stage that tuned it; 0 for one that the model could before.

    Example:
        >>> R = np.array([[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]])  # base, task 0 tuned, task 1 tuned
        >>> round(float(backward_transfer(R, [1, 2])), 3)  # 0.6 - 0.9; task 1 is the last one
        -0.3
    """
    changes = [scores[..., -1, j] - scores[..., learned[j], j] for j in _earlier(scores, learned)]
    return np.mean(changes, axis=0)


def forgetting(scores: Float[Array, "*R T J"]) -> Float[Array, "*R J"]:
    """F of each task: the best score before the last stage, minus that after it; positive is lost.

    F_j = max over l < T of R[l][j] - R[T][j] (Chaudhry et al. 2018).

    Example:
        >>> R = np.array([[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]])
        >>> [round(float(x), 3) for x in forgetting(R)]
        [0.3, -0.6]
    """
    return scores[..., :-1, :].max(axis=-2) - scores[..., -1, :]


def average_forgetting(
    scores: Float[Array, "*R T J"], learned: Sequence[int]
) -> Float[Array, "*R"]:
    """Average F: the mean of `forgetting` over the tasks learned before the last stage.

    Args:
        learned: as for `backward_transfer`.

    Example:
        >>> R = np.array([[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]])
        >>> round(float(average_forgetting(R, [1, 2])), 3)
        0.3
    """
    return forgetting(scores)[..., _earlier(scores, learned)].mean(axis=-1)


def _earlier(scores: Float[Array, "*R T J"], learned: Sequence[int]) -> list[int]:
    """The tasks that were learned before the last stage."""
    earlier = [j for j, stage in enumerate(learned) if stage < scores.shape[-2] - 1]
    if not earlier:
        raise ValueError("no task was learned before the last stage")
    return earlier


def mean_change(scores: Float[Array, "*R T J"], before: int = 0) -> Float[Array, "*R"]:
    """The mean over tasks of the last stage's score minus that of stage `before`.

    Example:
        >>> R = np.array([[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]])
        >>> round(float(mean_change(R)), 3)
        0.6
    """
    return (scores[..., -1, :] - scores[..., before, :]).mean(axis=-1)


def matrix_entry(model: str, stages: Sequence[str], scores: Scores) -> Row:
    """R[i][j] and F per task with intervals, as results.json of a study holds it.

    Args:
        stages: what to call them, "base" among them.
    """
    return {
        "model": model,
        "stages": list(stages),
        "tasks": list(scores.tasks),
        "metrics": list(scores.metrics),
        "values": scores.values.tolist(),
        "low": [[cell.low for cell in row] for row in scores.cells],
        "high": [[cell.high for cell in row] for row in scores.cells],
        "forgetting": [found._asdict() for found in scores.intervals(forgetting)],
    }


def matrix_means(scores: Scores, learned: Sequence[int], before: int = 0) -> Row:
    """What a matrix says in one number each, with interval: mean change, BWT, average F.

    Args:
        learned: as for `backward_transfer`; without it there is mean change alone.
        before: the stage that the mean change counts from.
    """
    means: dict[str, Callable[[Array], Array]] = {
        "mean_change": partial(mean_change, before=before)
    }
    if any(stage < len(scores.values) - 1 for stage in learned):
        means["backward_transfer"] = partial(backward_transfer, learned=learned)
        means["average_forgetting"] = partial(average_forgetting, learned=learned)
    return {name: scores.interval(function)._asdict() for name, function in means.items()}


def changes(
    before: Iterable[Line],
    after: Iterable[Line],
    *,
    metrics: Sequence[str] = (),
    counted: Iterable[tuple[str, str]] | None = None,
) -> list[Row]:
    """After minus before, per task and metric on the same items, with interval and p-value.

    Args:
        metrics: default: those that both were made for.
        counted: the (task, metric) pairs that `probes` counts; a row's "counted" says whether
            it is one of them.

    Raises:
        InputError: as `compare_lines`.
    """
    keep = None if counted is None else set(counted)
    rows = []
    for found in compare_lines(before, after, metrics, names=("before", "after")):
        row = {
            "model": found["second"]["model"],
            "task": found["task"],
            "split": found["split"],
            "shots": found["second"]["shots"],
            "metric": found["metric"],
            "before": found["first"]["model"],
            "after": found["second"]["model"],
            "value_before": found["first"]["value"],
            "value_after": found["second"]["value"],
            "value": found["difference"],
            **{key: found[key] for key in ("low", "high", "p", "test", "count")},
        }
        if keep is not None:
            row["counted"] = (row["task"], row["metric"]) in keep
        rows.append(row)
    return rows


# What a model must beat to have something to lose.
PROBE_BASELINES = {"majority": "the majority baseline", "random": "choosing at random"}


class Probe(NamedTuple):
    """Whether a task can show forgetting, and why."""

    task: str
    metric: str
    counted: bool
    why: str


def probes(rows: Iterable[Row], *, before: str = "base", shots: int = 0) -> list[Probe]:
    """Which tasks count as probes: the model can do them, so that there is something to lose.

    One counts where the model before the tuning beats the majority baseline, and choosing at
    random where there are choices, with intervals apart. Where all items score alike nothing
    can be resampled, and there is no interval.

    Args:
        rows: of results.json, baselines among them.
        before: the "model" of the rows of the model before the tuning.

    Raises:
        InputError: if no row is that model's at these shots.
    """
    whole = [row for row in rows if not row.keys() & {"template", "class", "interpolation"}]
    baselines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in whole:
        if row["model"] in PROBE_BASELINES:
            baselines.setdefault(_item(row), {})[row["model"]] = row
    found = [row for row in whole if row["model"] == before and row["shots"] == shots]
    if not found:
        raise InputError(f"no row is of model {before!r} at {shots} shots")
    return [_probe(row, baselines.get(_item(row), {})) for row in found]


def _item(row: Row) -> tuple[str, str, str]:
    return row["task"], row["split"], row["metric"]


def _probe(row: Row, baselines: Mapping[str, Row]) -> Probe:
    task, metric = row["task"], row["metric"]
    if not METRICS[metric].higher_is_better:
        return Probe(task, metric, False, "less is better: no baseline to beat")
    if "majority" not in baselines:
        return Probe(task, metric, False, "has no majority baseline")
    if row["low"] == row["high"]:
        return Probe(task, metric, False, "all items score alike, which gives no interval")
    name, best = max(baselines.items(), key=lambda pair: pair[1]["high"])
    said = f"{row['low']:.3f} at least, {PROBE_BASELINES[name]} {best['high']:.3f} at most"
    return Probe(task, metric, row["low"] > best["high"], said)


def _by_task(lines: Iterable[Line], where: str) -> dict[str, Runs]:
    found: dict[str, Runs] = {}
    for setting, runs in by_setting(lines, where).items():
        if setting.task in found:
            raise InputError(
                f"{where}: holds several models, splits or numbers of shots of task {setting.task}"
            )
        found[setting.task] = runs
    if not found:
        raise InputError(f"{where}: holds no prediction")
    return found


def _of(task: str, stage: Mapping[str, Runs], number: int) -> Runs:
    if task not in stage:
        raise InputError(f"stage {number}: has no prediction of task {task}")
    return stage[task]


def _check_chosen(chosen: Mapping[str, str], tasks: Sequence[str]) -> None:
    for task, metric in chosen.items():
        if task not in tasks:
            raise InputError(f"metrics: no stage has a task {task!r}; there are {', '.join(tasks)}")
        check_metrics([metric], f"task {task}")
        if not METRICS[metric].higher_is_better:
            raise InputError(f"task {task}: of {metric} less is better; choose another metric")
