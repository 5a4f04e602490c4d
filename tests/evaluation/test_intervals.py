"""Intervals and paired tests, against scipy and sacrebleu."""

import numpy as np
import pytest
from scipy import stats

from ift_jax.evaluation.classification import mean
from ift_jax.evaluation.intervals import (
    bootstrap,
    mcnemar,
    paired_bootstrap,
    randomization_test,
    share,
)


def weighted(values):
    values = np.asarray(values, np.float64)
    return np.stack([values, np.ones_like(values)], axis=-1)[None]


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (45, 100), (1, 1000)])
def test_the_interval_of_a_share_is_wilsons(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    found = share(right, count)
    assert found.value == right / count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_bootstrap_interval_of_a_mean_agrees_with_scipys():
    values = np.random.default_rng(0).gamma(2.0, size=200)
    found = bootstrap(weighted(values), mean)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", random_state=1
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)


def test_the_interval_is_about_items_not_about_runs():
    """Runs that repeat each other say nothing new; runs that differ are averaged by item."""
    values = np.random.default_rng(1).random(50)
    once, twice = weighted(values), np.concatenate([weighted(values)] * 2)
    assert bootstrap(twice, mean) == pytest.approx(bootstrap(once, mean))
    opposite = np.concatenate([weighted(values), weighted(1 - values)])
    assert bootstrap(opposite, mean) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("pair", [(0, 0), (1, 0), (0, 5), (5, 5), (3, 12), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test_of_discordant_items(pair):
    expected = stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
    assert mcnemar(*pair) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(*pair) == mcnemar(*pair[::-1])


def test_a_paired_difference_has_the_interval_of_the_differences():
    rng = np.random.default_rng(2)
    hard = rng.random(150)  # what items have in common makes pairs, and no difference
    first, second = hard + 0.1 * rng.random(150), hard + 0.1 * rng.random(150) + 0.02
    found = paired_bootstrap(weighted(first), weighted(second), mean)
    alone = bootstrap(weighted(second - first), mean)
    assert found == pytest.approx(alone)
    t_test = stats.ttest_rel(second, first).pvalue
    assert randomization_test(weighted(first), weighted(second), mean) < 0.01
    assert t_test < 0.01
    unpaired = bootstrap(weighted(second), mean)
    assert found.high - found.low < (unpaired.high - unpaired.low) / 3


def test_the_p_value_of_equal_models_is_1_and_even_where_they_differ_by_chance():
    rng = np.random.default_rng(3)
    values = weighted(rng.random(40))
    assert randomization_test(values, values, mean) == 1.0
    found = [
        randomization_test(weighted(rng.random(40)), weighted(rng.random(40)), mean, 200)
        for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(found) < 0.1) < 0.2


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("runs", [(1, 1), (2, 2), (1, 3)])
def test_few_items_cannot_be_significant_however_much_they_agree(count, runs):
    """The exact p-value is 2 of the 2^N exchanges: all of them, or none."""
    first, second = (np.concatenate([weighted([value] * count)] * n)
                     for value, n in zip((0.0, 1.0), runs, strict=True))  # fmt: skip
    p = randomization_test(first, second, mean, 4000)
    assert p == pytest.approx(2 / 2**count, abs=0.03)


def test_the_p_value_of_a_mean_agrees_with_scipys_permutation_test():
    rng = np.random.default_rng(7)
    first, second = rng.random(12), rng.random(12) + 0.2
    expected = stats.permutation_test(
        (first, second), lambda a, b: np.mean(b) - np.mean(a), permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue  # fmt: skip
    assert 0.02 < expected < 0.5
    found = randomization_test(weighted(first), weighted(second), mean, 8000)
    assert found == pytest.approx(expected, abs=0.02)


def test_the_p_value_agrees_with_sacrebleus_approximate_randomization():
    sacrebleu = pytest.importorskip("sacrebleu")
    from sacrebleu.significance import PairedTest

    from ift_jax.evaluation.metrics import METRICS, item_counts
    from ift_jax.evaluation.predictions import Prediction

    rng = np.random.default_rng(4)
    words = [f"w{i}" for i in range(9)]
    wanted = [" ".join(rng.choice(words, 8)) for _ in range(80)]

    def noisy(share):
        return [
            " ".join(w if rng.random() > share else "x" for w in text.split()) for text in wanted
        ]

    first, second = noisy(0.35), noisy(0.27)
    systems = [("first", first), ("second", second)]
    test = PairedTest(systems, {"BLEU": sacrebleu.BLEU()}, [wanted], "ar", n_samples=1000)
    expected = test()[1]["BLEU"][1].p_value
    runs = [[Prediction(w, generated=g) for w, g in zip(wanted, given, strict=True)]
            for given in (first, second)]  # fmt: skip
    counts = item_counts(METRICS["bleu"].items, runs)
    found = randomization_test(counts[:1], counts[1:], METRICS["bleu"].value)
    assert found == pytest.approx(expected, abs=0.05)
    assert 0.001 < found < 0.5


def test_other_items_are_no_pairs():
    for function in (paired_bootstrap, randomization_test):
        with pytest.raises(ValueError, match="the same items"):
            function(weighted([1, 2]), weighted([1, 2, 3]), mean)
