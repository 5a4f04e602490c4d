"""What can be scored without a model: the most frequent answer, a copy of the input, chance."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ift_jax.data.examples import Example
from ift_jax.data.pipeline import TaskData
from ift_jax.evaluation.frames import template_frames, without_frame
from ift_jax.evaluation.intervals import Score
from ift_jax.evaluation.metrics import METRICS, generates, item_counts, score
from ift_jax.evaluation.predictions import Prediction

# A fixed answer has no likelihood to divide or calibrate: it scores the same under all three.
_BY_LABEL = {
    "accuracy": "accuracy",
    "accuracy_mean": "accuracy",
    "accuracy_calibrated": "accuracy",
    "macro_f1": "macro_f1",
    "mcc": "mcc",
}
_BY_CHANCE = ("accuracy", "accuracy_mean", "accuracy_calibrated", "exact_match")
# Of answers at random, where what they score on average has no simple formula.
_DRAWS, _TEXT_DRAWS = 200, 20

Named = list[tuple[str, Score]]


def majority_scores(
    task: TaskData,
    items: Sequence[Example],
    references: Sequence[tuple[str, ...]],
    metrics: Sequence[str],
) -> Named:
    """Metrics of always giving the most frequent answer; each template has its own.

    Where answers are chosen it is that of the items themselves, so that no other constant answer
    is right more often, however the training split was balanced. Free text has that of the
    training split, or of all its templates if it does not know this one.
    """
    chosen = all(e.choices for e in items)
    counted = items if chosen else task.splits["train"]
    if not counted:
        return []
    by_template: dict[str, Counter[str]] = defaultdict(Counter)
    for example in counted:
        by_template[example.template][example.completion] += 1
    overall = most_frequent(sum(by_template.values(), Counter()))
    best = {template: most_frequent(counts) for template, counts in by_template.items()}
    given = [best.get(e.template, overall) for e in items]
    predictions = [
        Prediction(e.completion, ranked=g, generated=g, references=r)
        for e, g, r in zip(items, given, references, strict=True)
    ]
    used = [(m, _BY_LABEL.get(m, m)) for m in metrics if m in _BY_LABEL or generates(m)]
    return [(metric, score(same, [predictions])) for metric, same in used]


def most_frequent(counts: Mapping[str, int]) -> str:
    """The answer that occurs most often; of several, the first in alphabetical order.

    Example:
        >>> most_frequent(Counter(["b", "a", "b", "a", "c"]))
        'a'
    """
    return max(sorted(counts), key=counts.__getitem__)


def copy_scores(
    task: TaskData,
    items: Sequence[Example],
    references: Sequence[tuple[str, ...]],
    metrics: Sequence[str],
) -> Named:
    """Metrics of giving back the input: the prompt without what its template adds to it."""
    frames = template_frames(task, items)
    predictions = [
        Prediction(
            e.completion,
            generated=without_frame(e.messages[-1]["content"], frames[e.template]),
            references=r,
        )
        for e, r in zip(items, references, strict=True)
        if e.messages
    ]
    if len(predictions) < len(items):
        return []
    return [(metric, score(metric, [predictions])) for metric in metrics if generates(metric)]


def random_scores(items: Sequence[Example], metrics: Sequence[str]) -> Named:
    """What choosing at random scores on average, with no interval around it: exact for shares of
    right answers, else the mean over some draws.
    """
    if not all(e.choices for e in items):
        return []
    value = sum(e.choices.count(e.completion) / len(e.choices) for e in items) / len(items)
    found = {metric: value for metric in metrics if metric in _BY_CHANCE}
    for metric in metrics:
        by_label = metric in ("macro_f1", "mcc")
        if metric not in found and (by_label or generates(metric)):
            draws = _drawn(items, _DRAWS if by_label else _TEXT_DRAWS)
            found[metric] = float(np.mean([_value(metric, run) for run in draws]))
    return [
        (metric, Score(found[metric], found[metric], found[metric]))
        for metric in metrics
        if metric in found
    ]


def _value(metric: str, run: Sequence[Prediction]) -> float:
    """The metric over one run, without an interval."""
    counts = item_counts(METRICS[metric].items, [run])
    return float(METRICS[metric].value(counts.sum(axis=1))[0])


def _drawn(items: Sequence[Example], count: int) -> Iterator[list[Prediction]]:
    """So many times a choice at random for every item."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, len(e.choices), count) for e in items]
    for number in range(count):
        given = [e.choices[places[number]] for e, places in zip(items, drawn, strict=True)]
        yield [
            Prediction(e.completion, ranked=g, generated=g)
            for e, g in zip(items, given, strict=True)
        ]
