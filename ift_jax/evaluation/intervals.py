"""95 % intervals, and tests between two models on the same items.

Everything here works on sufficient statistics: an array [S, N, K] holds K numbers for each of N
items and each of S runs over them (seeds of exemplars), and a metric is a function of their sums
over items. So a resample costs a weighted sum, not a new count of matching n-grams.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.float64]
Value = Callable[[Array], Array]  # sums [..., K] -> values [...]
Near = Callable[[Array], Value]  # sums [S, K] of all items -> what their resamples are put into

RESAMPLES = 1000
_WEIGHTS = 2**16  # how often each of N items is in each resample: so many numbers at a time
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


class Score(NamedTuple):
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def share(successes: float, count: float) -> Score:
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


def bootstrap(
    items: Float[Array, "S N K"],
    value: Value,
    resamples: int = RESAMPLES,
    near: Near | None = None,
) -> Score:
    """A metric, averaged over runs, with its percentile interval over seeded resamples of items.

    All runs of a resample hold the same items: the interval is about items, not about seeds.

    Args:
        near: of a metric that resamples push to one side, its linear approximation around the
            sums that were seen; the interval is that of this.

    Example:
        >>> answers = np.array([[[1.0, 1.0]] * 45 + [[0.0, 1.0]] * 55])  # 45 of 100 are right
        >>> [round(x, 2) for x in bootstrap(answers, lambda sums: sums[..., 0] / sums[..., 1])]
        [0.45, 0.36, 0.55]
    """
    drawn = value if near is None else near(items.sum(axis=1))
    values = np.concatenate([drawn(sums).mean(axis=-1) for sums in _resampled(items, resamples)])
    return Score(_overall(items, value), *percentiles(values))


def paired_bootstrap(
    first: Float[Array, "S N K"],
    second: Float[Array, "T N K"],
    value: Value,
    resamples: int = RESAMPLES,
    near: Near | None = None,
) -> Score:
    """The difference of a metric between two models on the same items, second minus first, with
    the percentile interval of the differences over resamples of items.

    Args:
        near: as for `bootstrap`.

    Raises:
        ValueError: if the numbers of items or of statistics disagree.
    """
    runs = first.shape[0]
    _check_paired(first, second)
    both = np.concatenate([first, second])
    drawn = value if near is None else near(both.sum(axis=1))
    blocks = [drawn(sums) for sums in _resampled(both, resamples)]
    found = np.concatenate([b[:, runs:].mean(axis=1) - b[:, :runs].mean(axis=1) for b in blocks])
    return Score(_overall(second, value) - _overall(first, value), *percentiles(found))


def randomization_test(
    first: Float[Array, "S N K"],
    second: Float[Array, "T N K"],
    value: Value,
    resamples: int = RESAMPLES,
) -> float:
    """Two-sided p-value of a difference between two models: approximate randomization.

    If the models do not differ, each item's two answers could as well have been the other model's.
    The p-value is the share of seeded exchanges, item by item, whose difference is as large as the
    observed one, which counts among them (Noreen 1989; Riezler and Maxwell 2005). Few items, or
    one, cannot be significant; nan where the difference is none.

    Raises:
        ValueError: if the numbers of items or of statistics disagree.
    """
    _check_paired(first, second)
    runs = math.lcm(len(first), len(second))  # repeated, runs have the same mean
    first, second = (np.tile(one, (runs // len(one), 1, 1)) for one in (first, second))
    sums, exchanged = (first.sum(axis=1), second.sum(axis=1)), second - first
    observed = abs(float((value(sums[1]) - value(sums[0])).mean()))
    if math.isnan(observed):
        return math.nan
    rng, count, far = np.random.default_rng(0), first.shape[1], 0
    at_once = max(_WEIGHTS // max(count, 1), 1)
    for start in range(0, resamples, at_once):
        chosen = rng.integers(0, 2, (min(at_once, resamples - start), count)).astype(np.float64)
        moved = np.tensordot(chosen, exchanged, axes=([1], [1]))
        found = (value(sums[1] - moved) - value(sums[0] + moved)).mean(axis=-1)
        far += int((np.abs(found) >= observed - 1e-12).sum())
    return (1 + far) / (1 + resamples)


def _check_paired(first: Array, second: Array) -> None:
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"expected the same items, got {first.shape} and {second.shape}")


def resampled_values(
    items: Float[Array, "S N K"], value: Value, seed: int, resamples: int = RESAMPLES
) -> Float[Array, "R S"]:
    """The metric of each run in each resample of the items, the same resamples for all runs.

    Args:
        seed: another for items that have nothing to do with each other, such as two tasks'.
    """
    return np.concatenate([value(sums) for sums in _resampled(items, resamples, seed)])


def percentiles(values: Float[Array, "R"]) -> tuple[float, float]:
    """The bounds of the 95 % percentile interval, over the resamples that have a value.

    F1 of a class has none where the class is neither an answer nor given.
    """
    known = values[~np.isnan(values)]
    low, high = np.quantile(known if known.size else values, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947).

    Under the null hypothesis an item that one model alone gets right is as likely the first's
    as the second's: a binomial test with probability 1/2.

    Example:
        >>> round(mcnemar(2, 10), 4)
        0.0386
        >>> mcnemar(0, 0)
        1.0
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**count))


def _overall(items: Array, value: Value) -> float:
    return float(value(items.sum(axis=1)).mean())


def _resampled(items: Array, resamples: int, seed: int = 0) -> Iterator[Float[Array, "R S K"]]:
    """Sums over seeded resamples of the N items, some at a time."""
    rng = np.random.default_rng(seed)
    count = items.shape[1]
    at_once = max(_WEIGHTS // max(count, 1), 1)
    for start in range(0, resamples, at_once):
        weights = np.empty((min(at_once, resamples - start), count))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, count, count), minlength=count)
        yield np.tensordot(weights, items, axes=([1], [1]))
