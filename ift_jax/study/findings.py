"""What a study says, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ift_jax.config import RunConfig
from ift_jax.evaluation.forgetting import Scores, score_matrix
from ift_jax.evaluation.intervals import Score
from ift_jax.evaluation.predictions import Line
from ift_jax.report.table import shots_label
from ift_jax.study.config import StudyRun
from ift_jax.study.plan import Planned, study_task


class Model(NamedTuple):
    """One model of a study, over all seeds.

    Attributes:
        name: of its rows; a curve's models of several sizes share it.
        label: told apart from all others.
        plan: its run of each seed; [] for the base model.
        lines: what all seeds predicted, the seed in each line.
    """

    name: str
    label: str
    plan: list[Planned]
    lines: list[Line]


Finding = dict[str, str]


def findings(
    config: RunConfig,
    results: Mapping[str, Any],
    models: Mapping[str, Model],
    reference: StudyRun | None,
) -> list[Finding]:
    """The four questions, each with what the numbers say to it.

    A difference is said to be there where its 95 % interval, paired by item, excludes 0.

    Args:
        results: "changes", "retained" and "probes" of results.json.
        models: by label.
        reference: the plain tuning that the others are compared with.
    """
    target = study_task(config)
    found = [_prompting(target, models)]
    for run in config.study.runs:
        if run.train_sizes:
            found.append(_examples(target, run, models))
    if reference is not None:
        found.append(_forgotten(reference, results))
        found.append(_helped(target, reference, results, models))
    return found


def _prompting(target: str, models: Mapping[str, Model]) -> Finding:
    prompted = _prompted(target, models)
    scores = _on(target, prompted)
    said = [
        f"{_score(scores, i)} at {shots_label(model.lines[0].shots)}"
        for i, model in enumerate(prompted)
    ]
    answer = f"On {target} ({scores.metrics[0]}) the base model scores {', '.join(said)}."
    compared = []
    for i, model in enumerate(prompted[1:], 1):
        gain = scores.interval(lambda v, i=i: v[..., i, 0] - v[..., 0, 0])  # type: ignore[misc]
        verdict = _verdict(gain, "helps", "hurts", "no difference shows")
        compared.append(f"{shots_label(model.lines[0].shots)} against 0: {points(gain)}, {verdict}")
    if compared:
        answer += f" {'; '.join(compared)}."
    return {"question": "Does prompting help?", "answer": answer}


def _examples(target: str, run: StudyRun, models: Mapping[str, Model]) -> Finding:
    sizes = sorted(run.train_sizes)
    curve = [models[f"{run.name} of {size}"] for size in sizes]
    scores = _on(target, curve)
    said = ", ".join(f"{size}: {_score(scores, i)}" for i, size in enumerate(sizes))
    answer = f"{target} ({scores.metrics[0]}) by training examples, {run.name}: {said}."
    missing = [
        scores.interval(lambda v, i=i: v[..., -1, 0] - v[..., i, 0])  # type: ignore[misc]
        for i in range(len(sizes))
    ]
    # Behind the last size that is worse than the largest, every one is as good.
    enough = 1 + max((i for i, lack in enumerate(missing) if lack.low > 0), default=-1)
    if len(sizes) > 1:
        answer += (
            f" From {sizes[enough]} on no difference from {sizes[-1]} shows."
            if enough < len(sizes) - 1
            else f" {sizes[-2]} are still worse than {sizes[-1]}, so more may help."
        )
    # Against each prompt, not only the one that scores best on these very items.
    prompted = _prompted(target, models)
    against = _on(target, [*prompted, *curve])
    lead = [
        min(
            against.interval(lambda v, i=i, j=j: v[..., i, 0] - v[..., j, 0]).low  # type: ignore[misc]
            for j in range(len(prompted))
        )
        for i in range(len(prompted), len(prompted) + len(curve))
    ]
    better = [size for size, low in zip(sizes, lead, strict=True) if low > 0]
    answer += (
        f" {better[0]} are the fewest that beat every prompt of the base model."
        if better
        else " None of them beats every prompt of the base model."
    )
    return {"question": "How many examples suffice?", "answer": answer}


def _forgotten(reference: StudyRun, results: Mapping[str, Any]) -> Finding:
    own = [
        row
        for row in results["changes"]
        if row["model"] == reference.name and row["task"] in results["retained"]
    ]
    # A task's first metric comes first.
    first = {row["task"]: row for row in reversed(own)}
    rows = [first[task] for task in results["retained"] if task in first]
    changed = [f"{row['task']} ({row['metric']}) {points(_of(row))}" for row in rows]
    answer = f"After {reference.name}: {', '.join(changed) or 'no probe counts'}."
    lost = [row["task"] for row in rows if row["high"] < 0]
    gained = [row["task"] for row in rows if row["low"] > 0]
    if rows:
        answer += f" Lost: {', '.join(lost) or 'nothing that shows'}."
    if gained:
        answer += f" Gained: {', '.join(gained)}."
    matrix = next(m for m in results["matrices"] if m["model"] == reference.name)
    if "mean_change" in matrix:
        answer += f" Mean change: {points(Score(**matrix['mean_change']))}."
    probes = [probe["task"] for probe in results["probes"]]
    left_out = dict.fromkeys(task for task in probes if task not in results["retained"])
    if left_out:
        answer += f" Not counted, not being beyond doubt above a baseline: {', '.join(left_out)}."
    return {"question": "What was forgotten?", "answer": answer}


def _helped(
    target: str,
    reference: StudyRun,
    results: Mapping[str, Any],
    models: Mapping[str, Model],
) -> Finding:
    matrices = {matrix["model"] for matrix in results["matrices"]}
    others = [
        model
        for label, model in models.items()
        if label != reference.name
        and label in matrices
        and model.plan[0].run.after == reference.after
        and not model.plan[0].train_size
    ]
    retained, said = results["retained"], []
    for model in others:
        pair = [models[reference.name], model]
        gain = _on(target, pair).interval(lambda v: v[..., 1, 0] - v[..., 0, 0])
        text = f"{model.label}: {target} {points(gain)}"
        if retained:
            scores = score_matrix([m.lines for m in pair]).subset(retained)
            kept = scores.interval(lambda v: (v[..., 1, :] - v[..., 0, :]).mean(axis=-1))
            verdict = _verdict(kept, "helps", "makes it worse", "no difference shows")
            text += f", retained score {points(kept)}, {verdict}"
        said.append(text)
    answer = "; ".join(said) or "no other run was made"
    return {
        "question": "What helped against it?",
        "answer": f"Against {reference.name}, on the same items: {answer}.",
    }


def _prompted(task: str, models: Mapping[str, Model]) -> list[Model]:
    """The base model at each number of shots that a task was asked with."""
    return [m for m in models.values() if not m.plan and any(one.task == task for one in m.lines)]


def _on(task: str, models: Sequence[Model]) -> Scores:
    """Scores of several models on one task."""
    return score_matrix([[line for line in m.lines if line.task == task] for m in models])


def _score(scores: Scores, stage: int) -> str:
    found = scores.cells[stage][0]
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _of(row: Mapping[str, Any]) -> Score:
    return Score(row["value"], row["low"], row["high"])


def points(change: Score) -> str:
    """A change with its interval, in percentage points: all metrics that are compared are shares.

    Example:
        >>> points(Score(-0.041, -0.08, 0.002))
        '−4.1 [−8.0, +0.2]'
    """
    said = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return said.replace("-", "−")


def _verdict(change: Score, better: str, worse: str, same: str) -> str:
    return better if change.low > 0 else worse if change.high < 0 else same
