"""Splits and subsets follow from the rows' texts alone, whatever happens around a row."""

import gzip
import json
import math
import os
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ift_jax.data.splits import (
    SPLITS,
    assign_split,
    check_fractions,
    content_key,
    normalise,
    split_key,
    subset_order,
    take_subset,
)
from ift_jax.errors import InputError

DATA = Path(
    os.environ.get("IFT_JAX_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)
FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}

properties = settings(derandomize=True, deadline=None, database=None, max_examples=100)
texts = st.text(max_size=40)
row_keys = st.lists(st.text(max_size=3), max_size=40)
# Class sizes, from one to seven classes.
class_counts = st.lists(st.integers(1, 30), min_size=1, max_size=7)


def rows_of(counts):
    """A key and a label per row, the rows shuffled."""
    labels = [f"class {number}" for number, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return [f"row {number}" for number in range(len(labels))], labels


def shuffled(count, seed=0):
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


# Keys


@properties
@given(texts)
@example("ᾳ̈İß")
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_every_character_has_one_normal_form_whatever_its_case_or_unicode_form():
    for code in (code for code in range(0x110000) if not 0xD800 <= code < 0xE000):
        character = chr(code)
        form = normalise(character)
        assert normalise(form) == form, hex(code)
        for unicode_form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert normalise(unicodedata.normalize(unicode_form, character)) == form, hex(code)
        if character != "ı":  # its capital is I, which is another letter
            assert normalise(character.upper()) == normalise(character.lower()) == form, hex(code)


@properties
@given(texts, st.sampled_from([" ", "\n", "\t ", "\u00a0", "\u2003", "\u0085", "\r\n"]))
def test_spacing_and_case_do_not_change_the_key(text, space):
    assume("ı" not in text)
    again = space + text.replace(" ", space * 2).upper() + space
    assert content_key(again) == content_key(text)


def test_punctuation_digits_and_boundaries_between_texts_change_the_content_key():
    variants = [("a b",), ("a", "b"), ("a", "b", ""), ("a b.",), ("a b 1",), ("a b 2",), (), ("",)]
    assert len({content_key(*variant) for variant in variants}) == len(variants)


def test_keys_are_the_same_on_every_machine_and_day():
    # printf 'great dryer!\n5\n' | b2sum -l 128; and the same of greatdryer
    assert content_key("Great dryer!", "5") == "43cfa07dc2b565dad3c9ea2361bf51a6"
    assert split_key("Great dryer!", "5") == "f93541ec619de77dc010b8d30f81c70f"


def test_a_lone_surrogate_has_a_key():
    assert content_key("\ud83d") != content_key("\ud83e")


@properties
@given(texts, texts)
@example("a", "A")
@example("¼", "1⁄4")
def test_equal_content_keys_mean_equal_split_keys(one, other):
    if content_key(one) == content_key(other):
        assert split_key(one) == split_key(other)


def test_the_split_key_ignores_punctuation_and_spaces_but_keeps_words_and_numbers():
    assert split_key("Don't. Stop now") == split_key("dont stopnow!")
    different = ["1 23", "12 3", "1.5", "15", "कि", "का", ":)", ":(", "", "good", "goods"]
    assert len({split_key(text) for text in different}) == len(different)


# Splits


@properties
@given(texts, st.permutations(SPLITS), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_the_order_of_the_fractions_and_shares_of_zero_change_nothing(text, order, weights):
    fractions = dict(zip(SPLITS, (weight / sum(weights) for weight in weights), strict=True))
    key = content_key(text)
    split = assign_split(key, fractions)
    assert assign_split(key, {name: fractions[name] for name in order}) == split
    for name in SPLITS:
        assert assign_split(key, {name: 1.0, **dict.fromkeys(set(SPLITS) - {name}, 0)}) == name


@properties
@given(st.lists(texts, max_size=20))
def test_the_same_text_is_never_in_two_splits(rows):
    splits = {}
    for text in rows + [f" {text.upper()}\n" for text in rows if "ı" not in text]:
        split = assign_split(split_key(text), FRACTIONS)
        assert splits.setdefault(normalise(text), split) == split


@pytest.mark.parametrize("salt", ["", "second"])
@pytest.mark.parametrize(
    "fractions", [FRACTIONS, {"train": 0.5, "test": 0.5}, {"validation": 0.02, "train": 0.98}]
)
def test_fractions_are_met_within_binomial_noise(fractions, salt):
    count = 20_000
    sizes = Counter(
        assign_split(content_key(f"row {i}"), fractions, salt=salt) for i in range(count)
    )
    assert set(sizes) == set(fractions)
    for name, share in fractions.items():
        assert abs(sizes[name] - count * share) < 4 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize("grows", ["test", "validation"])
def test_a_larger_fraction_moves_only_the_rows_it_takes_from_train(grows):
    keys = [content_key(f"row {i}") for i in range(5_000)]
    larger = {**FRACTIONS, grows: 0.2, "train": 0.7}
    moves = Counter((assign_split(key, FRACTIONS), assign_split(key, larger)) for key in keys)
    assert {pair for pair in moves if pair[0] != pair[1]} == {("train", grows)}
    assert abs(moves["train", grows] / len(keys) - 0.1) < 0.02


def test_another_salt_gives_an_independent_assignment():
    keys = [content_key(f"row {i}") for i in range(20_000)]
    both = sum(
        assign_split(key, FRACTIONS) == assign_split(key, FRACTIONS, salt="2") == "test"
        for key in keys
    )
    assert abs(both - 200) < 4 * math.sqrt(200)


def test_a_subset_is_spread_over_the_splits():
    keys = [content_key(f"row {i}") for i in range(20_000)]
    subset = take_subset(keys, 2_000, seed=0)  # the same hash if salt and seed were all of it
    splits = [assign_split(keys[index], FRACTIONS, salt="0") for index in subset]
    assert abs(splits.count("test") - 200) < 4 * math.sqrt(180)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.9, "tests": 0.1}, "fractions.tests: no such split"),
        ({"train": 1.1, "test": -0.1}, "fractions.test: expected a share from 0 to 1, got -0.1"),
        ({"train": float("nan")}, "fractions.train: expected a share"),
        ({"train": 0.8, "test": 0.1}, r"must sum to 1, got 0.9 \(train=0.8, test=0.1\)"),
        ({}, "must sum to 1, got 0"),
    ],
)
def test_fractions_that_are_no_shares_are_refused_by_name(fractions, message):
    with pytest.raises(InputError, match=message):
        assign_split("key", fractions)


def test_a_sum_off_by_rounding_is_accepted_and_leaves_no_gap():
    check_fractions({"test": 0.333333, "validation": 0.6666665})
    splits = {
        assign_split(content_key(str(i)), {"test": 1 - 9e-7, "train": 0.0}) for i in range(1000)
    }
    assert splits == {"test"}


# Subsets


@properties
@given(row_keys, st.integers(0, 3))
def test_the_order_is_a_permutation_decided_by_the_keys(keys, seed):
    order = subset_order(keys, seed=seed)
    assert sorted(order) == list(range(len(keys)))
    again = shuffled(len(keys))
    moved = [keys[index] for index in again]
    ordered = [keys[index] for index in order]
    assert [moved[index] for index in subset_order(moved, seed=seed)] == ordered
    # Repeats are neighbours, and the distinct keys come in the order they would have alone.
    distinct = list(dict.fromkeys(ordered))
    assert distinct == [sorted(set(keys))[i] for i in subset_order(sorted(set(keys)), seed=seed)]
    assert ordered == [key for key in distinct for _ in range(keys.count(key))]


def test_another_seed_gives_another_order():
    keys = [str(number) for number in range(50)]
    assert len({tuple(subset_order(keys, seed=seed)) for seed in range(5)}) == 5


@properties
@given(class_counts, st.data())
def test_subsets_nest_and_do_not_depend_on_the_row_order(counts, data):
    keys, labels = rows_of(counts)
    moves = shuffled(len(keys))
    for options in ({}, {"balance": True}, {"stratify": True}):
        most = min(counts) * len(counts) if "balance" in options else len(keys)
        small = data.draw(st.integers(0, most))
        whole = take_subset(keys, most, labels=labels, **options)
        assert len(set(whole)) == most
        assert take_subset(keys, small, labels=labels, **options) == whole[:small]
        moved = take_subset(
            [keys[i] for i in moves], most, labels=[labels[i] for i in moves], **options
        )
        assert [moves[index] for index in moved] == whole


@properties
@given(class_counts)
def test_a_balanced_subset_has_equal_counts_at_every_size(counts):
    keys, labels = rows_of(counts)
    most = min(counts) * len(counts)
    sizes = Counter(dict.fromkeys(labels, 0))
    for size, index in enumerate(take_subset(keys, most, labels=labels, balance=True), start=1):
        sizes[labels[index]] += 1
        assert max(sizes.values()) - min(sizes.values()) == (size % len(counts) > 0)


@properties
@given(class_counts)
@example([1, 1, 1, 1, 1, 1, 100])
@example([50, 30, 7, 7, 1])
def test_a_stratified_subset_has_each_quota_rounded_at_every_size(counts):
    keys, labels = rows_of(counts)
    totals = Counter(labels)
    sizes = Counter()
    subset = take_subset(keys, len(keys), labels=labels, stratify=True)
    for size, index in enumerate(subset, start=1):
        sizes[labels[index]] += 1
        for label, total in totals.items():
            assert size * total // len(keys) <= sizes[label] <= -(-size * total // len(keys))


@properties
@given(class_counts, st.integers(0, 6), st.data())
def test_one_more_row_changes_few(counts, which, data):
    keys, labels = rows_of(counts)
    new_label = f"class {which % len(counts)}"
    size = data.draw(st.integers(0, min(counts) * len(counts)))
    bounds = {"plain": 1, "balance": 1, "stratify": len(counts)}
    for name, bound in bounds.items():
        options = {} if name == "plain" else {name: True}
        before = take_subset(keys, size, labels=labels, **options)
        after = take_subset([*keys, "new"], size, labels=[*labels, new_label], **options)
        assert len(set(before) - set(after)) <= bound, name


def test_rows_of_each_class_come_in_the_order_of_their_keys():
    keys, labels = rows_of([20, 30])
    order = subset_order(keys, seed=5)
    for options in ({"balance": True}, {"stratify": True}):
        subset = take_subset(keys, 40, labels=labels, seed=5, **options)
        for label in set(labels):
            own = [index for index in subset if labels[index] == label]
            assert own == [index for index in order if labels[index] == label][: len(own)]


def test_a_class_that_runs_out_leaves_its_turns_to_the_others():
    labels = ["a"] * 2 + ["b"] * 9 + ["c"] * 4
    keys = [f"row {i}" for i in range(len(labels))]
    taken = take_subset(keys, 15, labels=labels, balance=True, fill=True)
    assert Counter(labels[i] for i in taken[:6]) == {"a": 2, "b": 2, "c": 2}
    assert Counter(labels[i] for i in taken[:10]) == {"a": 2, "b": 4, "c": 4}
    assert Counter(labels[i] for i in taken) == {"a": 2, "b": 9, "c": 4}
    for size in range(16):
        assert take_subset(keys, size, labels=labels, balance=True, fill=True) == taken[:size]
    # Where no class runs out, it is the balanced subset.
    assert take_subset(keys, 6, labels=labels, balance=True) == taken[:6]


def test_a_class_too_small_to_balance_is_named_with_its_counts():
    keys, labels = rows_of([2, 30])
    assert len(take_subset(keys, 4, labels=labels, balance=True)) == 4
    with pytest.raises(InputError, match=r"'class 0' has 2 of 5; ask for at most 4$"):
        take_subset(keys, 10, labels=labels, balance=True)


def test_requests_that_contradict_themselves_are_refused():
    with pytest.raises(InputError, match="asked for 3 rows of 2"):
        take_subset(["a", "b"], 3)
    with pytest.raises(InputError, match="exclude each other"):
        take_subset(["a"], 1, labels=["x"], balance=True, stratify=True)
    with pytest.raises(InputError, match="need a label"):
        take_subset(["a"], 1, balance=True)
    with pytest.raises(ValueError, match="expected 2 labels"):
        take_subset(["a", "b"], 1, labels=["x"], balance=True)


# Real sets


def test_amazon_products_stay_whole_and_ratings_balance():
    path = DATA / "amazon_reviews" / "hair_dryer.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}; set IFT_JAX_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    splits = {}
    for row in rows:
        split = assign_split(split_key(row["product_id"]), FRACTIONS)
        splits.setdefault(row["product_id"], set()).add(split)
    assert all(len(own) == 1 for own in splits.values())
    assert set().union(*splits.values()) == set(SPLITS)
    keys = [content_key(row["review_headline"], row["review_body"]) for row in rows]
    ratings = [row["star_rating"] for row in rows]
    balanced = take_subset(keys, 2_500, labels=ratings, balance=True)
    assert Counter(ratings[index] for index in balanced) == dict.fromkeys(range(1, 6), 500)
