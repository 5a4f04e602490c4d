"""Product reviews that ship with the package: text in, star rating out, no download.

The records have the schema of the public Amazon review sets. They are put together by a seeded
generator from the phrases in `embedded_phrases`, so the label is never noisy: a reader recovers
`star_rating` from `review_body` alone, by this rule.

1. A body holds exactly one verdict on the whole product: for it ("I would buy it again"), even ("I
   might buy it again, or I might not") or against it ("I would not buy it again").
2. Every other sentence is background (hopes, fears, why it was bought), or claims something about
   one or two aspects. A claim is praise or a complaint by what it says of this product: "not once
   did the lid stick" and "I hoped that the lid would close, and it does" are praise.
3. The verdict sets the side, and a claim of the other side takes one star off the extreme:

        verdict   claims                              star_rating
        for       praise only                         5
        for       praise and exactly one complaint    4
        even      praise and complaints               3
        against   complaints and exactly one praise   2
        against   complaints only                     1

   Some verdicts are graded, and then agree with the table: unreserved ones ("I love everything
   about it") at 5 and 1 stars, reserved ones ("one complaint aside, I am happy") at 4 and 2.

Denied claims, contrast and verdicts that differ by a word or by word order keep a bag of words from
solving the task: logistic regression on word counts gets about 75 % right when it trains on 3,840
reviews and 54 % on 850. The wording still says everything, and nothing has to be added up.
"""

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from ift_jax.data import embedded_phrases as phrases

NUM_REVIEWS = 4800
SEED = 20240607
MIN_WORDS, MAX_WORDS = 25, 52
# Of a body's word trigrams, with any one earlier review of the same category.
MAX_SHARED = 0.4

# How often, where there is a choice. They set how far a bag of words gets.
PLAIN_VERDICT_SHARE = 0.8
DENIED_CLAUSE_SHARE = 0.4
OPENER_SHARE = 0.3
SHARED_SENTENCE_SHARE = 0.4
# Claims of one review by rating: (praise, complaints), drawn with equal chances.
CLAIM_COUNTS = {
    5: ((2, 0), (2, 0), (2, 0), (2, 0), (3, 0)),
    4: ((1, 1), (1, 1), (1, 1), (1, 1), (2, 1)),
    3: ((1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (2, 1), (1, 2)),
    2: ((1, 1), (1, 1), (1, 1), (1, 1), (1, 2)),
    1: ((0, 2), (0, 2), (0, 2), (0, 2), (0, 3)),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Aspect:
    """A part of a product, with what it may do well or badly (verb phrases in base form)."""

    subject: str
    plural: bool
    virtues: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A kind of product: what it is called, bought for and judged by."""

    name: str
    item: str
    titles: tuple[str, ...]
    uses: tuple[str, ...]
    aspects: tuple[Aspect, ...]


class Claim(NamedTuple):
    """What a review says of one aspect: praise or complaint."""

    aspect: Aspect
    praise: bool


def embedded_reviews() -> list[dict[str, Any]]:
    """The 4,800 embedded reviews, 960 per star rating, in a fixed order.

    The same records on every platform and Python version; fresh dicts at every call.

    Example:
        >>> reviews = embedded_reviews()
        >>> len(reviews), sorted({review["star_rating"] for review in reviews})
        (4800, [1, 2, 3, 4, 5])
    """
    return [dict(review) for review in _reviews()]


@functools.cache
def _reviews() -> tuple[dict[str, Any], ...]:
    draw = Draw(SEED)
    categories = load_categories()
    ratings = draw.shuffled([rating for rating in range(1, 6) for _ in range(NUM_REVIEWS // 5)])
    reviews: list[dict[str, Any]] = []
    seen = SeenTrigrams()
    while len(reviews) < NUM_REVIEWS:
        rating = ratings[len(reviews)]
        category = draw.one(categories)
        body, headline = Writer(draw, category, rating).review()
        if not MIN_WORDS <= len(body.split()) <= MAX_WORDS:
            continue
        if not seen.add_unless_similar(body):
            continue
        reviews.append(
            {
                "review_id": f"E{len(reviews):05d}",
                "product_category": category.name,
                "product_title": f"{draw.one(phrases.BRANDS.split())} {draw.one(category.titles)}",
                "star_rating": rating,
                "review_headline": headline,
                "review_body": body,
            }
        )
    return tuple(reviews)


class Draw:
    """Seeded choices made from `Random.random` alone, which Python promises to keep as it is."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def one(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            result[last], result[other] = result[other], result[last]
        return result


class SeenTrigrams:
    """The word trigrams of the bodies so far, to keep near-copies out."""

    def __init__(self) -> None:
        self._bodies_with: dict[tuple[str, ...], list[int]] = {}
        self._num_trigrams: list[int] = []

    def add_unless_similar(self, body: str) -> bool:
        """Adds the body, unless it shares more than MAX_SHARED of its or another's trigrams."""
        words = [word.strip(".,;") for word in body.lower().split()]
        trigrams = set(zip(words, words[1:], words[2:], strict=False))
        bodies_with = self._bodies_with
        shared = Counter(chain.from_iterable(bodies_with.get(trigram, ()) for trigram in trigrams))
        least = MAX_SHARED * MIN_WORDS - 2
        for other in [other for other, count in shared.items() if count > least]:
            if shared[other] > MAX_SHARED * min(len(trigrams), self._num_trigrams[other]):
                return False
        for trigram in trigrams:
            bodies_with.setdefault(trigram, []).append(len(self._num_trigrams))
        self._num_trigrams.append(len(trigrams))
        return True


class Writer:
    """Writes one review of a category; the draws decide between the wordings."""

    def __init__(self, draw: Draw, category: Category, rating: int) -> None:
        self._draw = draw
        self._category = category
        self._rating = rating
        # What must agree throughout a review: one use, one length of time, each person once.
        self._persons = draw.shuffled(phrases.PERSONS)
        self._facts = {
            "item": category.item,
            "use": draw.one(category.uses),
            "time": draw.one(phrases.TIMES),
        }

    def review(self) -> tuple[str, str]:
        """Body and headline; call it once."""
        draw = self._draw
        num_praise, num_complaints = draw.one(CLAIM_COUNTS[self._rating])
        signs = [True] * num_praise + [False] * num_complaints
        aspects = draw.shuffled(self._category.aspects)
        claims = [
            Claim(aspect, praise)
            for aspect, praise in zip(aspects, draw.shuffled(signs), strict=False)
        ]
        middle = self._claim_sentences(claims)
        verdict = self._fill(draw.one(self._verdicts()))
        opener = [self._fill(draw.one(phrases.OPENERS))] if draw.chance(OPENER_SHARE) else []
        order = draw.one(
            (
                [*opener, *middle, verdict],
                [*opener, *middle, verdict],
                [*opener, *middle, verdict],
                [*opener, verdict, *middle],
                [verdict, *opener, *middle],
            )
        )
        body = " ".join(f"{sentence_case(sentence)}." for sentence in order)
        return body, self._headline(claims)

    def _verdicts(self) -> tuple[str, ...]:
        if self._rating == 3 or self._draw.chance(PLAIN_VERDICT_SHARE):
            return phrases.PLAIN_VERDICTS[self._rating]
        return phrases.GRADED_VERDICTS[self._rating]

    def _claim_sentences(self, claims: list[Claim]) -> list[str]:
        """One sentence per claim, but for two neighbours that may share one."""
        sentences = []
        left = list(claims)
        while left:
            claim = left.pop(0)
            if not left or not self._draw.chance(SHARED_SENTENCE_SHARE):
                sentences.append(self._claim_sentence(claim, claims))
                continue
            other = left.pop(0)
            if claim.praise == other.praise:
                slots = {"claim": self._clause(claim), "other": self._clause(other)}
                frames: tuple[str, ...] = phrases.PAIR_FRAMES
            else:
                good, bad = (claim, other) if claim.praise else (other, claim)
                slots = {"good": self._clause(good), "bad": self._clause(bad)}
                frames = phrases.CONTRAST_FRAMES
            sentences.append(self._fill(self._draw.one(frames), **slots))
        return sentences

    def _claim_sentence(self, claim: Claim, claims: list[Claim]) -> str:
        stance = phrases.PRAISE if claim.praise else phrases.COMPLAINT
        pools = [stance["direct"], stance["denied"]]
        num_same = sum(other.praise == claim.praise for other in claims)
        if num_same == len(claims):
            pools.append(stance["extreme"])
        elif num_same == 1 and (self._rating <= 3 if claim.praise else self._rating >= 3):
            pools.append(stance["lone"])
        pools = [*pools, *pools, phrases.PLAIN_FRAMES]
        aspect = claim.aspect
        clause = self._clause(claim)
        virtue, fault = self._draw.one(aspect.virtues), self._draw.one(aspect.faults)
        return self._fill(
            self._draw.one(self._draw.one(pools)),
            claim=clause,
            good=clause,
            bad=clause,
            subject=aspect.subject,
            pronoun="they" if aspect.plural else "it",
            does="do" if aspect.plural else "does",
            virtue=virtue,
            fault=fault,
            virtues=plain_clause(aspect, virtue),
            faults=plain_clause(aspect, fault),
        )

    def _clause(self, claim: Claim) -> str:
        """Says the claim outright, or by denying its opposite."""
        denied = self._draw.chance(DENIED_CLAUSE_SHARE)
        aspect = claim.aspect
        verb_phrase = self._draw.one(aspect.virtues if claim.praise != denied else aspect.faults)
        return (denied_clause if denied else plain_clause)(aspect, verb_phrase)

    def _fill(self, frame: str, **slots: str) -> str:
        person, other_person = self._persons.pop(), self._persons.pop()
        reason = self._draw.one(phrases.REASONS).format(person=other_person)
        weekday = self._draw.one(phrases.WEEKDAYS)
        return frame.format(person=person, reason=reason, weekday=weekday, **self._facts, **slots)

    def _headline(self, claims: list[Claim]) -> str:
        merits = [claim.aspect.subject for claim in claims if claim.praise]
        flaws = [claim.aspect.subject for claim in claims if not claim.praise]
        frame = self._draw.one(phrases.HEADLINES[self._rating])
        return sentence_case(self._fill(frame, merit="".join(merits[:1]), flaw="".join(flaws[:1])))


def sentence_case(sentence: str) -> str:
    """The sentence with its first letter in upper case."""
    return sentence[0].upper() + sentence[1:]


def plain_clause(aspect: Aspect, verb_phrase: str) -> str:
    """The aspect does it.

    Example:
        >>> plain_clause(Aspect("the lid", False, (), ()), "stick on most mornings")
        'the lid sticks on most mornings'
    """
    if aspect.plural:
        return f"{aspect.subject} {verb_phrase}"
    verb, _, rest = verb_phrase.partition(" ")
    if verb == "have":
        verb = "has"
    elif verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        verb += "es"
    elif verb.endswith("y") and verb[-2] not in "aeiou":
        verb = f"{verb[:-1]}ies"
    else:
        verb += "s"
    return f"{aspect.subject} {verb} {rest}".rstrip()


def denied_clause(aspect: Aspect, verb_phrase: str) -> str:
    """The aspect does not do it.

    Example:
        >>> denied_clause(Aspect("the poles", True, (), ()), "pack down short")
        'the poles do not pack down short'
    """
    return f"{aspect.subject} {'do' if aspect.plural else 'does'} not {verb_phrase}"


@functools.cache
def load_categories() -> tuple[Category, ...]:
    """The categories of `embedded_phrases.PRODUCTS`, whose format that module's docstring gives."""
    return tuple(_parse_category(block) for block in phrases.PRODUCTS.split("# ")[1:])


def _parse_category(block: str) -> Category:
    header, *lines = block.strip().splitlines()
    name, item = header.split(" | ")
    subject = ""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        sign, _, rest = line.partition(" ")
        if sign in ("titles:", "uses:"):
            found.setdefault(("", sign), []).extend(rest.split(" | "))
        elif sign in ("+", "-"):
            found.setdefault((subject, sign), []).extend(rest.split(" | "))
        else:
            subject = line
    subjects = list(dict.fromkeys(subject for subject, _ in found if subject))
    return Category(
        name=name,
        item=item,
        titles=tuple(found["", "titles:"]),
        uses=tuple(found["", "uses:"]),
        aspects=tuple(
            Aspect(
                subject=subject.removesuffix(" (plural)"),
                plural=subject.endswith(" (plural)"),
                virtues=tuple(found[subject, "+"]),
                faults=tuple(found[subject, "-"]),
            )
            for subject in subjects
        ),
    )
