"""Metrics of ranked choices and of the reference's tokens, as statistics that add up over items.

Each function gives an array [N, K], a row an item; what becomes of the column sums is said by
the second half of a metric: `mean`, `macro_f1`, `mcc` ...
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.evaluation.intervals import Value
from ift_jax.evaluation.predictions import Prediction

Array = NDArray[np.float64]

NUM_BINS = 10  # of the calibration error, equally wide


def mean(sums: Float[Array, "*R 2"]) -> Float[Array, "*R"]:
    """First column over second; nan without any weight."""
    return divide(sums[..., 0], sums[..., 1], np.nan)


def divide(over: Array, under: Array, otherwise: float = 0.0) -> Array:
    """Element-wise quotient, `otherwise` where the divisor is 0."""
    return np.where(under > 0, over / np.where(under > 0, under, 1.0), otherwise)


def counted(values: Sequence[float]) -> Float[Array, "N 2"]:
    """Each item's value with the weight 1."""
    return np.stack([np.array(values, np.float64), np.ones(len(values))], axis=1)


def right_by_sum(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """Whether the choice of highest log-likelihood is the reference."""
    return counted([p.ranked == p.answer for p in predictions])


def right_by_mean(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """As `right_by_sum`, by log-likelihood per token of the choice."""
    return _right(predictions, lambda p: np.divide(p.scores, p.num_choice_tokens))


def right_calibrated(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """As `right_by_sum`, by what the prompt adds to each choice's log-likelihood.

    That is, by domain-conditional pointwise mutual information: log p(choice | prompt)
    - log p(choice | neutral prompt) (Holtzman et al. 2021, equation 4).
    """
    return _right(predictions, lambda p: np.subtract(p.scores, p.neutral_scores))


def _right(
    predictions: Sequence[Prediction], scores: Callable[[Prediction], Array]
) -> Float[Array, "N 2"]:
    return counted([highest(p.choices, scores(p)) == p.answer for p in predictions])


def highest(choices: Sequence[str], scores: Sequence[float] | Array) -> str:
    """The choice of the highest score; "" where a model that has diverged gives no numbers.

    Example:
        >>> highest(["a", "b"], [-2.0, -1.0]), highest(["a", "b"], [float("nan")] * 2)
        ('b', '')
    """
    return "" if np.isnan(scores).any() else choices[int(np.argmax(scores))]


def class_counts(
    predictions: Sequence[Prediction], labels: Sequence[str] = ()
) -> Float[Array, "N 3C"]:
    """Per class: whether it is answer and ranked first, is the answer, is ranked first.

    `labels` are the classes to count; default: those that occur.
    """
    answers, given = [p.answer for p in predictions], [p.ranked for p in predictions]
    labels = labels or sorted({*answers, *given})
    number = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(predictions), 3, len(labels)))
    for row, (answer, ranked) in enumerate(zip(answers, given, strict=True)):
        if answer in number:
            counts[row, 1, number[answer]] = 1
            counts[row, 0, number[answer]] = answer == ranked
        if ranked in number:
            counts[row, 2, number[ranked]] = 1
    return counts.reshape(len(predictions), -1)


def macro_f1(sums: Float[Array, "*R 3C"]) -> Float[Array, "*R"]:
    """F1 of each class, averaged over the classes that are an answer or given.

    Example:
        >>> given = [Prediction(a, b) for a, b in ("aa", "ab", "bb")]
        >>> round(float(macro_f1(class_counts(given).sum(axis=0))), 4)
        0.6667
    """
    hits, answers, given = np.split(sums, 3, axis=-1)
    occurs = answers + given > 0
    f1 = divide(2 * hits, answers + given)
    return divide(f1.sum(axis=-1), occurs.sum(axis=-1).astype(np.float64), np.nan)


def mcc(sums: Float[Array, "*R 3C"]) -> Float[Array, "*R"]:
    """Matthews correlation coefficient, from -1 to 1, for any number of classes.

    Gorodkin 2004, written with counts of classes. 0 where all answers, or all given ones, are
    of one class.

    Example:
        >>> given = [Prediction(a, b) for a, b in ("aa", "ab", "bb")]
        >>> float(mcc(class_counts(given).sum(axis=0)))
        0.5
    """
    hits, answers, given = np.split(sums, 3, axis=-1)
    count = answers.sum(axis=-1)
    shared = hits.sum(axis=-1) * count - (answers * given).sum(axis=-1)
    spread = (count**2 - (given**2).sum(axis=-1)) * (count**2 - (answers**2).sum(axis=-1))
    return divide(shared, np.sqrt(spread))


def confidence_gaps(predictions: Sequence[Prediction]) -> Float[Array, "N B+1"]:
    """Per bin of confidence: right (1 or 0) less confidence; and the item's weight.

    Confidence is the probability of the highest choice among the choices, whose likelihoods
    are normalised to sum to 1. Bin b holds confidences in (b / NUM_BINS, (b+1) / NUM_BINS]. Without
    numbers there is none, and the error is not a number either.
    """
    gaps = np.zeros((len(predictions), NUM_BINS + 1))
    gaps[:, -1] = 1
    for row, p in enumerate(predictions):
        likelihoods = np.exp(np.subtract(p.scores, max(p.scores)))
        confidence = float(likelihoods.max() / likelihoods.sum())
        place = 0 if np.isnan(confidence) else int(np.ceil(confidence * NUM_BINS)) - 1
        number = min(max(place, 0), NUM_BINS - 1)
        gaps[row, number] = float(p.ranked == p.answer) - confidence
    return gaps


def calibration_error(sums: Float[Array, "*R B+1"]) -> Float[Array, "*R"]:
    """Expected calibration error (Guo et al. 2017, equation 5): 0 is best.

    |accuracy - mean confidence| of each bin, weighted by the bin's share of the items.
    """
    return divide(np.abs(sums[..., :-1]).sum(axis=-1), sums[..., -1], np.nan)


def calibration_error_near(seen: Float[Array, "*R B+1"]) -> Value:
    """The same while every bin errs to the side that it was seen to err to, and never below 0.

    Resamples differ from what was seen, so that their absolute gaps are larger on average.
    """
    signs = np.sign(seen[..., :-1])

    def value(sums: Float[Array, "*R B+1"]) -> Float[Array, "*R"]:
        return divide(np.maximum((signs * sums[..., :-1]).sum(axis=-1), 0), sums[..., -1], np.nan)

    return value


def right_tokens(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """The reference's tokens that were the most likely ones, of all its tokens."""
    return np.array([[p.num_correct, p.num_tokens] for p in predictions], np.float64)


def token_nats(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """The reference's negative log-likelihood in nats, and its tokens."""
    return np.array([[-p.log_likelihood, p.num_tokens] for p in predictions], np.float64)


def perplexity(sums: Float[Array, "*R 2"]) -> Float[Array, "*R"]:
    """exp of the mean negative log-likelihood per token; 1 is best."""
    return np.exp(mean(sums))
