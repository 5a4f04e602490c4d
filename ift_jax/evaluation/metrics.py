"""Metrics with 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ift_jax.errors import InputError

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


class Prediction(NamedTuple):
    """What a model answered to one item.

    Attributes:
        answer: the reference.
        ranked: the choice with the highest log-likelihood; "" where nothing was ranked.
        generated: the generated text; "" where nothing was generated.
    """

    answer: str
    ranked: str = ""
    generated: str = ""


class Score(NamedTuple):
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def share(successes: int, count: int) -> Score:
    """A share with Wilson's score interval (Wilson 1927), which stays within 0 and 1.

    Example:
        >>> [round(x, 3) for x in share(45, 100)]
        [0.45, 0.356, 0.548]
    """
    if not count:
        return Score(math.nan, math.nan, math.nan)
    p = successes / count
    centre = (p + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(p * (1 - p) / count + _Z**2 / (4 * count**2))
    return Score(p, max(centre - half, 0.0), min(centre + half, 1.0))


def macro_f1(answers: Sequence[str], given: Sequence[str]) -> float:
    """F1 per class that occurs among the answers or the given, averaged over classes.

    Example:
        >>> round(macro_f1(["a", "a", "b"], ["a", "b", "b"]), 4)
        0.6667
    """
    scores = []
    for label in sorted(set(answers) | set(given)):
        hits = sum(a == g == label for a, g in zip(answers, given, strict=True))
        total = sum(a == label for a in answers) + sum(g == label for g in given)
        scores.append(2 * hits / total)
    return float(np.mean(scores)) if scores else math.nan


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, resamples: int = 1000) -> Score:
    """A statistic of item numbers with its percentile interval over seeded resamples."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Score(statistic(np.arange(count)), float(low), float(high))


def _accuracy(predictions: Sequence[Prediction]) -> Score:
    return share(sum(p.ranked == p.answer for p in predictions), len(predictions))


def _exact_match(predictions: Sequence[Prediction]) -> Score:
    return share(
        sum(p.generated.strip() == p.answer.strip() for p in predictions), len(predictions)
    )


def _macro_f1(predictions: Sequence[Prediction]) -> Score:
    answers, ranked = [p.answer for p in predictions], [p.ranked for p in predictions]
    return bootstrap(
        lambda picked: macro_f1([answers[i] for i in picked], [ranked[i] for i in picked]),
        len(predictions),
    )


class Metric(NamedTuple):
    """How predictions are scored, and what they must hold: "ranked" or "generated"."""

    score: Callable[[Sequence[Prediction]], Score]
    needs: str


METRICS = {
    "accuracy": Metric(_accuracy, "ranked"),
    "exact_match": Metric(_exact_match, "generated"),
    "macro_f1": Metric(_macro_f1, "ranked"),
}


def check_metrics(names: Sequence[str], where: str) -> None:
    """Raises InputError, with `where`, for a name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"{where}: no metric {name!r}; there are {', '.join(METRICS)}")
