"""Metrics of generated text, as statistics that add up over items.

Where an item has several references, the best of them counts, as each metric's own definition
has it. Libraries are imported where they are used; `metrics.check_metrics` has made sure of them.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.evaluation.classification import counted
from ift_jax.evaluation.predictions import Prediction

Array = NDArray[np.float64]


def exact_match(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """Whether the text is a reference, apart from space around it."""
    return counted([p.generated.strip() in {a.strip() for a in p.accepted} for p in predictions])


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def squad_words(text: str) -> list[str]:
    """Lowercase words without ASCII punctuation and English articles (Rajpurkar et al. 2016).

    Example:
        >>> squad_words("The U.S.'s  first answer")
        ['uss', 'first', 'answer']
    """
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """F1 of the words that text and reference share, counted with repeats.

    Where either has no words, 1 if the other has none either, as SQuAD 2.0 has it.
    """
    return counted(
        [max(_overlap_f1(p.generated, answer) for answer in p.accepted) for p in predictions]
    )


def _overlap_f1(text: str, reference: str) -> float:
    given, wanted = squad_words(text), squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


# A sign counts where no word or number stands before it, as one does in 3-4; commas only between
# groups of three digits.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?"
)
_FINAL = "####"


def last_number(text: str) -> Decimal | None:
    """The number that a text ends on: the first behind the last "####", or else its last one.

    Commas between thousands and signs of currency or percent are left out.

    Example:
        >>> last_number("She pays 3 x $1,250.50 = $3,751.50.")
        Decimal('3751.50')
        >>> last_number("48 + 24 = 72\\n#### 72")
        Decimal('72')
        >>> last_number("minus four") is None
        True
    """
    text = text.replace("\u2212", "-")
    _, marked, final = text.rpartition(_FINAL)
    numbers = _NUMBER.findall(re.sub(r"([-+])[$€£]", r"\1", final))
    if not numbers:
        return None
    return Decimal((numbers[0] if marked else numbers[-1]).replace(",", ""))


def numeric_match(predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """Whether the text ends on the reference's number; 18, 18.0 and $18 are the same."""
    matches = []
    for p in predictions:
        number = last_number(p.generated)
        matches.append(number is not None and number in {last_number(a) for a in p.accepted})
    return counted(matches)


def rouge(kind: str, predictions: Sequence[Prediction]) -> Float[Array, "N 2"]:
    """ROUGE F-measure (Lin 2004) by rouge-score with stemming, as papers on summaries report it.

    Its tokenizer keeps ASCII letters and digits only: texts in other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    return counted(
        [scorer.score_multi(p.accepted, p.generated)[kind].fmeasure for p in predictions]
    )


def sacrebleu_counts(
    kind: Literal["BLEU", "CHRF"], predictions: Sequence[Prediction]
) -> Float[Array, "N K"]:
    """What sacrebleu counts in each item: matching and all n-grams by order, and lengths."""
    most = max(len(p.accepted) for p in predictions)
    references = [
        [p.accepted[i] if i < len(p.accepted) else None for p in predictions] for i in range(most)
    ]
    # Its public interface gives no counts by item, without which every resample counts anew.
    counts = _sacrebleu(kind)._extract_corpus_statistics(
        [p.generated for p in predictions], references
    )
    return np.array(counts, np.float64)


def sacrebleu_value(kind: Literal["BLEU", "CHRF"]) -> Callable[[Array], Array]:
    """Corpus BLEU (Papineni et al. 2002) or chrF (Popović 2015), from 0 to 1, of summed counts.

    With sacrebleu's defaults: 13a tokens and exponential smoothing; character orders to 6 and
    beta 2. sacrebleu itself prints 100 times this value.
    """

    def value(sums: Array) -> Array:
        score = _sacrebleu(kind)._compute_score_from_stats
        flat = [score(row).score / 100 for row in sums.reshape(-1, sums.shape[-1]).tolist()]
        return np.array(flat).reshape(sums.shape[:-1])

    return value


@functools.cache
def _sacrebleu(kind: Literal["BLEU", "CHRF"]) -> Any:
    import sacrebleu.metrics

    if kind == "BLEU":
        return sacrebleu.metrics.BLEU(force=True)  # or it warns of texts that end in " ."
    return sacrebleu.metrics.CHRF()
