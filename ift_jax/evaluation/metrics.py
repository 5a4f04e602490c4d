"""The metrics by name: what each needs, counts and makes of the counts; scores with intervals."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.evaluation import classification, entities, text_metrics
from ift_jax.evaluation.intervals import Near, Score, Value, bootstrap, share
from ift_jax.evaluation.predictions import Prediction

Need = Literal["ranked", "calibrated", "generated", "reference"]


class Metric(NamedTuple):
    """A metric in two halves: what is counted in each item, and what the sums of counts make.

    Attributes:
        items: predictions -> [N, K], which adds up over items.
        value: sums [..., K] -> [...].
        needs: what predictions must hold: choices "ranked", the same "calibrated" by a
            neutral prompt, a text "generated", or the "reference" scored token by token.
        is_share: items are right or wrong: Wilson's interval, McNemar's test.
        of_class: counts of one class only, for the breakdown. Without it, a class's score is
            that of the items whose answer it is.
        by_class: False for a metric that means nothing for one class.
        package: the library that computes it, of the extra [eval].
        accepts: whether a reference can be scored; `wants` says what it must be.
        is_percent: shown as a percentage.
        higher_is_better: False for an error.
        near: what its interval is made of, where resamples of `value` lie to one side; see
            `intervals.bootstrap`.
    """

    items: Callable[[Sequence[Prediction]], NDArray[np.float64]]
    value: Value
    needs: Need
    is_share: bool = False
    of_class: Callable[[Sequence[Prediction], Sequence[str]], NDArray[np.float64]] | None = None
    by_class: bool = True
    package: str = ""
    accepts: Callable[[str], bool] | None = None
    wants: str = ""
    is_percent: bool = True
    higher_is_better: bool = True
    near: Near | None = None


def _right(items: Callable, needs: Need, **more: object) -> Metric:
    return Metric(items, classification.mean, needs, is_share=True, **more)  # type: ignore[arg-type]


def _rouge(kind: str) -> Metric:
    count = partial(text_metrics.rouge, kind)
    return Metric(count, classification.mean, "generated", package="rouge_score")


def _sacrebleu(kind: Literal["BLEU", "CHRF"]) -> Metric:
    count, value = partial(text_metrics.sacrebleu_counts, kind), text_metrics.sacrebleu_value(kind)
    return Metric(count, value, "generated", package="sacrebleu")


def _of_tags(count: Callable[[Sequence[Prediction]], NDArray[np.float64]]) -> Metric:
    is_row, wants = entities.are_tags, "a row of BIO tags"
    return Metric(count, entities.f1, "generated", accepts=is_row, wants=wants)


METRICS: dict[str, Metric] = {
    "accuracy": _right(classification.right_by_sum, "ranked"),
    "accuracy_mean": _right(classification.right_by_mean, "ranked"),
    "accuracy_calibrated": _right(classification.right_calibrated, "calibrated"),
    "macro_f1": Metric(
        classification.class_counts,
        classification.macro_f1,
        "ranked",
        of_class=classification.class_counts,
    ),
    "mcc": Metric(classification.class_counts, classification.mcc, "ranked", by_class=False),
    "calibration_error": Metric(
        classification.confidence_gaps,
        classification.calibration_error,
        "ranked",
        higher_is_better=False,
        near=classification.calibration_error_near,
    ),
    "exact_match": _right(text_metrics.exact_match, "generated"),
    "token_f1": Metric(text_metrics.token_f1, classification.mean, "generated"),
    "entity_f1": Metric(entities.entity_counts, entities.f1, "generated"),
    "bio_f1": _of_tags(entities.bio_counts),
    "tag_f1": _of_tags(entities.tag_counts),
    "numeric_match": _right(
        text_metrics.numeric_match,
        "generated",
        accepts=lambda answer: text_metrics.last_number(answer) is not None,
        wants="a text with a number",
    ),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "bleu": _sacrebleu("BLEU"),
    "chrf": _sacrebleu("CHRF"),
    "token_accuracy": Metric(classification.right_tokens, classification.mean, "reference"),
    "perplexity": Metric(
        classification.token_nats,
        classification.perplexity,
        "reference",
        is_percent=False,
        higher_is_better=False,
    ),
}


def check_metrics(names: Sequence[str], where: str) -> None:
    """Raises InputError, with `where`, for a name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"{where}: no metric {name!r}; there are {', '.join(METRICS)}")


def check_packages(names: Sequence[str]) -> None:
    """Raises InputError for a metric whose library is not installed."""
    for name in names:
        package = METRICS[name].package
        if package and find_spec(package) is None:
            raise InputError(f'metric {name}: needs {package}; run `pip install "ift_jax[eval]"`')


def accepts(name: str, answers: Sequence[str]) -> bool:
    """Whether a metric can score all these references."""
    accepted = METRICS[name].accepts
    return accepted is None or all(map(accepted, answers))


def check_references(names: Sequence[str], answers: Sequence[str], where: str) -> None:
    """Raises InputError, with `where`, for a reference that a metric cannot score."""
    for name in names:
        accepts, wants = METRICS[name].accepts, METRICS[name].wants
        wrong = next((a for a in answers if accepts and not accepts(a)), None)
        if wrong is not None:
            raise InputError(
                f"{where}: metric {name} expects every reference to be {wants}, got {wrong[:60]!r}"
            )


def score(name: str, runs: Sequence[Sequence[Prediction]]) -> Score:
    """A metric with its 95 % interval, averaged over runs on the same items.

    One run of right and wrong items has Wilson's interval, all else the bootstrap's.
    """
    metric = METRICS[name]
    return counted_score(item_counts(metric.items, runs), metric)


def class_score(name: str, runs: Sequence[Sequence[Prediction]], label: str) -> Score:
    """The part of `score` that concerns the class `label`: F1 of macro_f1, else of its items."""
    metric = METRICS[name]
    if metric.of_class is None:
        return score(name, [[p for p in run if p.answer == label] for run in runs])
    of_class = metric.of_class
    counts = item_counts(lambda predictions: of_class(predictions, [label]), runs)
    return counted_score(counts, metric)


def item_counts(
    items: Callable[[Sequence[Prediction]], NDArray[np.float64]],
    runs: Sequence[Sequence[Prediction]],
) -> NDArray[np.float64]:
    """What is counted in each item of each run, [S, N, K]."""
    # In one call, so that all runs count the same classes.
    flat = items([p for run in runs for p in run])
    return flat.reshape(len(runs), len(runs[0]), -1)


def deciding_key(by: str) -> str:
    """Under which metrics.jsonl holds what decides: the loss, or a metric's mean over tasks.

    Validation's token accuracy of all targets has a key of its own.

    Example:
        >>> deciding_key("rouge1"), deciding_key("token_accuracy")
        ('validation_rouge1', 'validation_mean_token_accuracy')
    """
    return f"validation_mean_{by}" if by == "token_accuracy" else f"validation_{by}"


def generates(name: str) -> bool:
    """Whether a metric reads generated text."""
    return METRICS[name].needs == "generated"


def counted_score(counts: NDArray[np.float64], metric: Metric) -> Score:
    """`score` of what `item_counts` counted."""
    if metric.is_share:  # of several runs that of their mean, as if it were of one
        return share(*counts.sum(axis=1).mean(axis=0).tolist())
    return bootstrap(counts, metric.value, near=metric.near)
