"""The embedded reviews: the text decides the label, and a bag of words cannot solve it."""

import functools
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import ift_jax
from ift_jax.data import embedded_phrases as phrases
from ift_jax.data.embedded_reviews import (
    NUM_REVIEWS,
    denied_clause,
    embedded_reviews,
    load_categories,
    plain_clause,
    sentence_case,
)
from ift_jax.data.templates import lint, load_templates

SHA256 = "9f471146d21a232a509816e362ffdcc14e7414018e08819c224894fd9dcf1132"

DIGEST_SCRIPT = """
import hashlib, json
from ift_jax.data.embedded_reviews import embedded_reviews
print(hashlib.sha256(json.dumps(embedded_reviews(), sort_keys=True).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def reviews():
    return embedded_reviews()


def test_schema_and_equal_counts(reviews):
    types = {
        "review_id": str,
        "product_category": str,
        "product_title": str,
        "star_rating": int,
        "review_headline": str,
        "review_body": str,
    }
    for review in reviews:
        assert {name: type(value) for name, value in review.items()} == types
    assert Counter(r["star_rating"] for r in reviews) == dict.fromkeys(range(1, 6), 960)
    assert len({r["review_id"] for r in reviews}) == len(reviews) == NUM_REVIEWS
    assert len({r["review_body"] for r in reviews}) == len(reviews)
    assert len({r["product_category"] for r in reviews}) >= 12


def test_the_kinds_of_products_are_those_of_their_template(reviews):
    template = load_templates(Path(ift_jax.__file__).parent / "templates" / "products.yaml")
    [kind] = template.values()
    assert lint(template, sorted(reviews[0]), reviews[:50]) == []
    choices = kind.render(reviews[0]).answer_choices
    assert sorted(choices) == sorted({review["product_category"] for review in reviews})
    assert {kind.render(review).completion for review in reviews[:200]} == {*choices}


def test_order_and_id_do_not_tell_the_rating(reviews):
    # 100 consecutive reviews hold every rating about 20 times.
    for start in range(0, NUM_REVIEWS, 100):
        counts = Counter(r["star_rating"] for r in reviews[start : start + 100])
        assert min(counts[rating] for rating in range(1, 6)) >= 5


def test_bytes_are_pinned(reviews):
    digest = hashlib.sha256(json.dumps(reviews, sort_keys=True).encode()).hexdigest()
    assert digest == SHA256


def test_bytes_do_not_depend_on_the_hash_seed():
    out = subprocess.run(
        [sys.executable, "-c", DIGEST_SCRIPT],
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == SHA256


def test_callers_cannot_change_the_set():
    embedded_reviews()[0]["star_rating"] = 99
    assert embedded_reviews()[0]["star_rating"] != 99


def test_generation_is_fast():
    code = (
        "import time; from ift_jax.data.embedded_reviews import embedded_reviews;"
        "start = time.process_time(); embedded_reviews(); print(time.process_time() - start)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 4  # about 1 s of processor time; slack for slow machines


def test_wording_is_whole(reviews):
    for review in reviews:
        for field in ("product_title", "review_headline", "review_body"):
            assert not re.search(r"[{}|+]|  |^ | $", review[field]), review
        body = review["review_body"]
        assert re.fullmatch(r"(?:[A-Z][^.]*[a-zI]\.(?: |$))+", body), body
        assert not re.search(r"\b(\w+) \1\b", body), body
        assert 3 <= len(review["review_headline"].split()) <= 8, review["review_headline"]
        assert 25 <= len(body.split()) <= 60
    assert 30 <= np.median([len(r["review_body"].split()) for r in reviews]) <= 42


def test_every_phrase_is_in_its_category_once():
    for category in load_categories():
        assert len(category.titles) >= 5
        assert len(category.uses) == 8
        assert len(category.aspects) == 5
        assert all(category.item in title for title in category.titles)
        for aspect in category.aspects:
            verb_phrases = aspect.virtues + aspect.faults
            assert len(set(verb_phrases)) == len(verb_phrases) == 8
            assert len(aspect.virtues) == 4
            # "did the lid be ..." and double negation would not be English.
            assert not any(re.search(r"^be |\b(not|no|never)\b", phrase) for phrase in verb_phrases)


# --- The rule, read backwards. -------------------------------------------------------------------

CLAIM_POOLS = {
    "praise": [pool for name, pool in phrases.PRAISE.items()],
    "complaint": [pool for name, pool in phrases.COMPLAINT.items()],
}
VERDICTS = {
    "for": phrases.VERDICTS_FOR + phrases.VERDICTS_STRONG_FOR + phrases.VERDICTS_RESERVED_FOR,
    "even": phrases.VERDICTS_EVEN,
    "against": phrases.VERDICTS_AGAINST
    + phrases.VERDICTS_STRONG_AGAINST
    + phrases.VERDICTS_RESERVED_AGAINST,
}
FIXED_SLOTS = {
    "person": "|".join(phrases.PERSONS),
    "time": "|".join(phrases.TIMES),
    "weekday": "|".join(phrases.WEEKDAYS),
    "pronoun": "it|they",
    "does": "do|does",
    "reason": ".+",
}


class Decoder:
    """Reads the sentences of one category: what each says for or against the product."""

    def __init__(self, category) -> None:
        self.clauses = {}  # wording -> whether it is praise
        self.verb_phrases = {}  # (subject, verb phrase) -> whether it is a virtue
        for aspect in category.aspects:
            for verb_phrase in aspect.virtues + aspect.faults:
                good = verb_phrase in aspect.virtues
                self.verb_phrases[aspect.subject, verb_phrase] = good
                self.clauses[plain_clause(aspect, verb_phrase)] = good
                self.clauses[denied_clause(aspect, verb_phrase)] = not good
        self.slots = FIXED_SLOTS | {
            "item": category.item,
            "use": "|".join(category.uses),
            "subject": "|".join(aspect.subject for aspect in category.aspects),
        }
        single = phrases.PLAIN_FRAMES
        self.frames = [
            (kind, self.pattern(frame))
            for kind, frames in (
                ("background", phrases.OPENERS),
                *VERDICTS.items(),
                *(("praise", pool) for pool in CLAIM_POOLS["praise"]),
                *(("complaint", pool) for pool in CLAIM_POOLS["complaint"]),
                ("claim", single + phrases.CONTRAST_FRAMES + phrases.PAIR_FRAMES),
            )
            for frame in frames
        ]

    def pattern(self, frame: str) -> re.Pattern[str]:
        seen = set()

        def slot(match: re.Match[str]) -> str:
            name = match[1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return f"(?P<{name}>{self.slots.get(name, '.+')})"

        return re.compile(re.sub(r"\\{(\w+)\\}", slot, re.escape(frame)), re.IGNORECASE)

    def readings(self, sentence: str) -> Iterator[tuple[str, ...]]:
        """Every way to read a sentence: ("for",), ("background",), ("praise", "complaint"), ..."""
        for kind, pattern in self.frames:
            match = pattern.fullmatch(sentence)
            reading = match and self.reading(kind, match.groupdict())
            if reading:
                yield reading

    def reading(self, kind: str, found: dict[str, str]) -> tuple[str, ...] | None:
        if kind in VERDICTS or kind == "background":
            return (kind,)
        signs = []
        for name in ("claim", "other", "good", "bad", "virtues", "faults"):
            if name in found:
                clause = found[name]
                praise = self.clauses.get(clause, self.clauses.get(clause[0].lower() + clause[1:]))
                if praise is None or praise != {"good": True, "bad": False}.get(name, praise):
                    return None
                if name in ("virtues", "faults"):
                    if praise != (name == "virtues"):
                        return None
                else:
                    signs.append("praise" if praise else "complaint")
        for name in ("virtue", "fault"):
            if name in found:
                key = found["subject"].lower(), found[name]
                if self.verb_phrases.get(key) != (name == "virtue"):
                    return None
        return tuple(sorted(signs)) or (kind,)

    def rating(self, body: str) -> int:
        counts: Counter[str] = Counter()
        for sentence in body.removesuffix(".").split(". "):
            readings = set(self.readings(sentence))
            assert len(readings) == 1, (sentence, readings)
            counts.update(readings.pop())
        verdict = [name for name in VERDICTS if counts[name]]
        assert len(verdict) == 1, body
        assert counts[verdict[0]] == 1, body
        return rating_from(verdict[0], counts["praise"], counts["complaint"])


def rating_from(verdict: str, num_praise: int, num_complaints: int) -> int:
    """The table in the docstring of `embedded_reviews`."""
    if verdict == "for" and num_praise and num_complaints <= 1:
        return 5 - num_complaints
    if verdict == "against" and num_complaints and num_praise <= 1:
        return 1 + num_praise
    if verdict == "even" and num_praise and num_complaints:
        return 3
    raise AssertionError((verdict, num_praise, num_complaints))


@functools.cache
def decoders() -> dict[str, Decoder]:
    return {category.name: Decoder(category) for category in load_categories()}


def test_body_alone_decides_the_rating(reviews):
    """No label noise, and so no two ratings share a body: the decoder reads nothing else."""
    by_subject = {}
    for category in load_categories():
        for clause in category.aspects:
            by_subject.setdefault(clause.subject, set()).add(category.name)
    for review in reviews:
        body = review["review_body"]
        # The category is read off the body too: it is the one whose noun and phrases all fit.
        fitting = {
            name
            for subject, names in by_subject.items()
            if re.search(rf"\b{subject}\b", body, re.IGNORECASE)
            for name in names
        }
        ratings = set()
        for name in fitting:
            try:
                ratings.add(decoders()[name].rating(body))
            except AssertionError:
                assert name != review["product_category"], body
        assert ratings == {review["star_rating"]}, review


def test_no_wording_can_be_read_two_ways():
    """Every frame, filled with every fitting kind of clause, has exactly one reading.

    This goes beyond the bodies that were drawn. One category stands for all: frames are shared.
    """
    category = load_categories()[0]
    decoder = decoders()[category.name]
    one, two = category.aspects[:2]
    facts = {
        "item": category.item,
        "use": category.uses[0],
        "person": phrases.PERSONS[0],
        "time": phrases.TIMES[0],
        "weekday": phrases.WEEKDAYS[0],
        "subject": one.subject,
        "virtue": one.virtues[0],
        "fault": one.faults[0],
        "virtues": plain_clause(one, one.virtues[0]),
        "faults": plain_clause(one, one.faults[0]),
        "pronoun": "it",
        "does": "does",
    }
    good = [[plain_clause(a, a.virtues[0]), denied_clause(a, a.faults[0])] for a in (one, two)]
    bad = [[plain_clause(a, a.faults[0]), denied_clause(a, a.virtues[0])] for a in (one, two)]
    expected = {}

    def expect(frame: str, reading: tuple[str, ...], **slots: str) -> None:
        for reason in phrases.REASONS:
            text = frame.format(reason=reason.format(**facts), **facts, **slots)
            assert expected.setdefault(sentence_case(text), reading) == reading

    for name, frames in {**VERDICTS, "background": phrases.OPENERS}.items():
        for frame in frames:
            expect(frame, (name,))
    for kind, pools, clauses in (
        ("praise", CLAIM_POOLS["praise"], good),
        ("complaint", CLAIM_POOLS["complaint"], bad),
    ):
        for frame, clause in itertools.product(itertools.chain(*pools), clauses[0]):
            expect(frame, (kind,), good=clause, bad=clause)
        for frame, clause in itertools.product(phrases.PLAIN_FRAMES, clauses[0]):
            expect(frame, (kind,), claim=clause)
        for frame, *pair in itertools.product(phrases.PAIR_FRAMES, *clauses):
            expect(frame, (kind, kind), claim=pair[0], other=pair[1])
    for frame, praise, complaint in itertools.product(phrases.CONTRAST_FRAMES, good[0], bad[1]):
        expect(frame, ("complaint", "praise"), good=praise, bad=complaint)
    for sentence, reading in expected.items():
        assert set(decoder.readings(sentence)) == {reading}, sentence


def test_headline_names_what_the_body_says(reviews):
    """An aspect in a headline is one that the body talks about."""
    aspects = {c.name: [a.subject for a in c.aspects] for c in load_categories()}
    for review in reviews:
        for subject in aspects[review["product_category"]]:
            if re.search(rf"\b{subject}\b", review["review_headline"].lower()):
                assert subject in review["review_body"].lower()


# --- Neither trivial nor hopeless, and no near-copies. -------------------------------------------


def split(seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(NUM_REVIEWS)
    return order[960:], order[:960]


def word_count_accuracy(reviews, train, test) -> float:
    bodies = np.array([review["review_body"] for review in reviews], dtype=object)
    ratings = np.array([review["star_rating"] for review in reviews])
    vectorizer = CountVectorizer()
    model = LogisticRegression(max_iter=1000)
    model.fit(vectorizer.fit_transform(bodies[train]), ratings[train])
    return model.score(vectorizer.transform(bodies[test]), ratings[test])


@pytest.mark.parametrize("seed", [0, 1])
def test_bag_of_words_gets_part_of_the_way(reviews, seed):
    train, test = split(seed)
    assert 0.62 < word_count_accuracy(reviews, train, test) < 0.80


@pytest.mark.parametrize("seed", [0, 1])
def test_bag_of_words_learns_from_850_reviews(reviews, seed):
    train, test = split(seed)
    ratings = np.array([review["star_rating"] for review in reviews])
    few = np.concatenate([train[ratings[train] == rating][:170] for rating in range(1, 6)])
    assert 0.50 < word_count_accuracy(reviews, few, test) < 0.70


def test_test_reviews_are_not_near_copies_of_training_reviews(reviews):
    """Fewer than 1 % share half of their word trigrams with any one training review."""
    columns: dict[tuple[str, ...], int] = {}
    rows, entries = [], []
    for row, review in enumerate(reviews):
        words = re.findall(r"[a-z0-9'-]+", review["review_body"].lower())
        for trigram in set(zip(words, words[1:], words[2:], strict=False)):
            rows.append(row)
            entries.append(columns.setdefault(trigram, len(columns)))
    has = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, entries)))
    train, test = split(0)
    most_shared = (has[test] @ has[train].T).max(axis=1).toarray().ravel()
    share = most_shared / has[test].sum(axis=1).A1
    assert np.mean(share >= 0.5) < 0.01
    assert share.max() < 0.5
