"""Metrics of ranked choices, against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ift_jax.evaluation.metrics import METRICS, class_score, score
from ift_jax.evaluation.predictions import Prediction

LABELS = ("bad", "good", "so-so", "fair")
CASES = ["random", "unbalanced", "one answer", "one given", "one of both", "all right", "all wrong"]


def answers_and_given(case):
    rng = np.random.default_rng(CASES.index(case))
    answers, given = rng.choice(LABELS, 60), rng.choice(LABELS, 60)
    if case == "unbalanced":
        answers, given = (
            rng.choice(LABELS, 60, p=[0.8, 0.1, 0.05, 0.05]),
            rng.choice(LABELS[:2], 60),
        )
    if case in ("one answer", "one of both"):
        answers[:] = "good"
    if case == "one given":
        given[:] = "bad"
    if case == "one of both":
        given[:] = "good"
    if case == "all right":
        given = answers.copy()
    if case == "all wrong":
        given = np.array([LABELS[(LABELS.index(a) + 1) % 4] for a in answers])
    return answers.tolist(), given.tolist()


def ranked(answers, given):
    return [Prediction(a, ranked=g) for a, g in zip(answers, given, strict=True)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("accuracy", accuracy_score),
        ("macro_f1", lambda a, g: f1_score(a, g, average="macro")),
        ("mcc", matthews_corrcoef),
    ],
)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_scores_of_classes_equal_scikit_learn(case, metric, reference):
    answers, given = answers_and_given(case)
    found = score(metric, [ranked(answers, given)])
    assert found.value == pytest.approx(reference(answers, given), abs=1e-12)
    assert found.low <= found.value + 1e-12
    assert found.high >= found.value - 1e-12


def test_resamples_score_as_the_items_drawn_would():
    """The statistics that add up give what counting the drawn items anew gives."""
    answers, given = answers_and_given("unbalanced")
    drawn = np.random.default_rng(3).integers(0, 60, (20, 60))
    for metric, reference in (
        ("macro_f1", lambda a, g: f1_score(a, g, average="macro")),
        ("mcc", matthews_corrcoef),
    ):
        items = METRICS[metric].items(ranked(answers, given))
        sums = np.stack([items[d].sum(axis=0) for d in drawn])
        expected = [reference(np.array(answers)[d], np.array(given)[d]) for d in drawn]
        np.testing.assert_allclose(METRICS[metric].value(sums), expected, atol=1e-12)


def test_a_class_of_macro_f1_has_its_own_f1_and_of_accuracy_its_recall():
    answers, given = answers_and_given("random")
    runs = [ranked(answers, given)]
    per_class = f1_score(answers, given, average=None, labels=LABELS)
    for label, expected in zip(LABELS, per_class, strict=True):
        assert class_score("macro_f1", runs, label).value == pytest.approx(expected)
        right = [g == label for a, g in zip(answers, given, strict=True) if a == label]
        assert class_score("accuracy", runs, label).value == pytest.approx(np.mean(right))
    assert np.mean([class_score("macro_f1", runs, label).value for label in LABELS]) == (
        pytest.approx(score("macro_f1", runs).value)
    )


def test_a_class_that_many_resamples_lack_has_an_interval(recwarn):
    answers = ["good"] * 99 + ["bad"]
    for given, expected in (("bad", 1.0), ("good", 0.0)):
        runs = [ranked(answers, ["good"] * 99 + [given])]
        assert tuple(class_score("macro_f1", runs, "bad")) == (expected, expected, expected)
    assert not recwarn.list


def scored(answer, **choices):
    """Choices with (log-likelihood, tokens, log-likelihood behind the neutral prompt)."""
    sums, sizes, neutral = zip(*choices.values(), strict=True)
    names = tuple(choices)
    best = names[int(np.argmax(sums))]
    return Prediction(
        answer, ranked=best, choices=names, scores=sums, num_choice_tokens=sizes,
        neutral_scores=neutral,
    )  # fmt: skip


def test_sum_mean_and_calibrated_scores_choose_differently_from_the_same_pass():
    choices = {"short": (-4.0, 1, -3.0), "long": (-6.0, 3, -4.0), "odd": (-7.0, 2, -9.0)}
    for metric, right in (
        ("accuracy", "short"),  # -4 > -6 > -7
        ("accuracy_mean", "long"),  # -2 > -3.5 > -4
        ("accuracy_calibrated", "odd"),  # 2 > -1 > -2
    ):
        for answer in choices:
            found = score(metric, [[scored(answer, **choices)]])
            assert found.value == (answer == right), (metric, answer)


def test_of_tied_choices_the_first_is_taken():
    tied = {"a": (-2.0, 2, -1.0), "b": (-2.0, 2, -1.0)}
    for metric in ("accuracy", "accuracy_mean", "accuracy_calibrated"):
        assert score(metric, [[scored("a", **tied)]]).value == 1
        assert score(metric, [[scored("b", **tied)]]).value == 0


def two_choices(confidences, right):
    """Items whose choice "x" has the given probability, of two."""
    found = []
    for p, is_right in zip(confidences, right, strict=True):
        odds = {"x": (float(np.log(p)) - 5, 1, 0.0), "y": (float(np.log1p(-p)) - 5, 1, 0.0)}
        found.append(scored("x" if is_right else "y", **odds))
    return found


def test_calibration_error_equals_scikit_learns_calibration_curve():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.501, 0.999, 300)
    right = rng.random(300) < confidences**2
    shares, means = calibration_curve(right, confidences, n_bins=10)
    sizes = np.histogram(confidences, bins=np.linspace(0, 1, 11))[0]
    expected = (sizes[sizes > 0] / 300 * np.abs(shares - means)).sum()
    found = score("calibration_error", [two_choices(confidences, right)])
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low <= found.value <= found.high


def test_the_interval_of_a_calibration_error_holds_it_and_reaches_down_to_0():
    """Resamples of an honest model have gaps of their own, so all of them err more than it."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        confidences = rng.uniform(0.501, 0.999, 150)
        honest = two_choices(confidences, rng.random(150) < confidences)
        found = score("calibration_error", [honest])
        assert 0 <= found.low <= found.value <= found.high < 0.25
    lows = []
    for _ in range(20):
        confidences = rng.uniform(0.501, 0.999, 400)
        lows.append(score("calibration_error", [two_choices(confidences, rng.random(400) < 0.4)]))
    assert min(one.low for one in lows) > 0.2
    assert all(one.low < one.value < one.high for one in lows)


def test_calibration_error_is_0_for_honest_and_1_for_certain_and_wrong():
    honest = two_choices([0.75] * 4, [True, True, True, False])
    assert score("calibration_error", [honest]).value == pytest.approx(0)
    certain = [scored("y", x=(0.0, 1, 0.0), y=(-1000.0, 1, 0.0))]
    assert score("calibration_error", [certain]).value == pytest.approx(1)
    even = [scored("a", a=(-9.0, 1, 0.0), b=(-9.0, 1, 0.0))]  # a tie is a confidence of 1/2
    assert score("calibration_error", [even]).value == pytest.approx(0.5)


def test_token_metrics_weigh_tokens_not_items():
    predictions = [
        Prediction("a", log_likelihood=-2.0, num_tokens=2, num_correct=1),
        Prediction("b", log_likelihood=-10.0, num_tokens=8, num_correct=8),
    ]
    assert score("token_accuracy", [predictions]).value == pytest.approx(9 / 10)
    assert score("perplexity", [predictions]).value == pytest.approx(np.exp(12 / 10))


def test_a_model_that_gives_no_numbers_is_right_nowhere():
    """Not where the first choice is the answer, which is what the largest of NaNs would be."""
    nothing = (float("nan"), float("nan"))
    diverged = [
        Prediction(
            answer, ranked="", choices=("a", "b"), scores=nothing, num_choice_tokens=(1, 2),
            neutral_scores=(-1.0, -2.0),
        )
        for answer in "aab"
    ]  # fmt: skip
    for metric in ("accuracy", "accuracy_mean", "accuracy_calibrated", "macro_f1", "mcc"):
        assert score(metric, [diverged]).value == 0
    assert np.isnan(score("calibration_error", [diverged]).value)
