"""F1 of named entities: listed as text, or marked by BIO tags. Micro-averaged over items.

Statistics of an item are [found, in the reference, in the text]; `f1` makes one number of sums.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.evaluation.classification import divide
from ift_jax.evaluation.predictions import Prediction

Array = NDArray[np.float64]

NO_ENTITY = "none"
_TAG = re.compile(r"O|[BI]-\S+")


def f1(sums: Float[Array, "*R 3"]) -> Float[Array, "*R"]:
    """Harmonic mean of precision and recall; 0 where there is nothing to find nor found."""
    return divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def listed_entities(text: str) -> Counter[str]:
    """The entities that a text lists, on lines of their own or between semicolons.

    A type before an entity ("person: Ada") is part of it, so it must be right too. The word
    "none" lists nothing; runs of spaces count as one.

    Example:
        >>> sorted(listed_entities("person: Ada  Lovelace\\nlocation: London"))
        ['location: London', 'person: Ada Lovelace']
        >>> sorted(listed_entities("Ada; London; Ada").elements())
        ['Ada', 'Ada', 'London']
        >>> listed_entities("None.")
        Counter()
    """
    parts = (" ".join(part.split()) for part in re.split(r"[\n;]", text))
    return Counter(part for part in parts if part and part.lower().rstrip(".") != NO_ENTITY)


def entity_counts(predictions: Sequence[Prediction]) -> Float[Array, "N 3"]:
    """Of the best reference: entities listed in both, in the reference, in the text."""
    return np.array(
        [
            _best(listed_entities(p.generated), [listed_entities(a) for a in p.accepted])
            for p in predictions
        ],
        np.float64,
    )


def bio_entities(tags: Sequence[str]) -> Counter[tuple[str, int, int]]:
    """Type, first and one past the last place of each entity, as conlleval reads BIO tags.

    B- begins an entity, and so does an I- that follows no tag of its type.

    Example:
        >>> sorted(bio_entities("B-per I-per O I-loc B-loc".split()))
        [('loc', 3, 4), ('loc', 4, 5), ('per', 0, 2)]
    """
    found: Counter[tuple[str, int, int]] = Counter()
    kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag.startswith("I-") and tag[2:] == kind
        if kind and not goes_on:
            found[kind, first, place] += 1
            kind = ""
        if tag != "O" and not goes_on:
            kind, first = tag[2:], place
    return found


def are_tags(text: str) -> bool:
    """Whether a text is a row of BIO tags with spaces between them."""
    return bool(text.split()) and all(map(_TAG.fullmatch, text.split()))


def bio_counts(predictions: Sequence[Prediction]) -> Float[Array, "N 3"]:
    """As `entity_counts`, for answers that are a row of BIO tags.

    What is no tag counts as O; tags past the reference's last are cut, missing ones are O.
    """
    return _tag_row_counts(predictions, bio_entities)


def tag_counts(predictions: Sequence[Prediction]) -> Float[Array, "N 3"]:
    """As `bio_counts`, token by token: tags other than O that are in both at the same place."""
    return _tag_row_counts(predictions, _places)


def _places(tags: Sequence[str]) -> Counter[tuple[int, str]]:
    return Counter((place, tag) for place, tag in enumerate(tags) if tag != "O")


def _tag_row_counts(
    predictions: Sequence[Prediction], of: Callable[[Sequence[str]], Counter]
) -> Float[Array, "N 3"]:
    counts = []
    for p in predictions:
        tags = [tag if _TAG.fullmatch(tag) else "O" for tag in p.generated.split()]
        wanted = [answer.split() for answer in p.accepted]
        size = max(map(len, wanted))
        given = of((tags + ["O"] * size)[:size])
        counts.append(_best(given, [of(answer) for answer in wanted]))
    return np.array(counts, np.float64)


def _best(given: Counter, references: Sequence[Counter]) -> tuple[int, int, int]:
    counts = [((given & wanted).total(), wanted.total(), given.total()) for wanted in references]
    return max(counts, key=lambda c: (float(f1(np.array(c, np.float64))), -c[1]))
