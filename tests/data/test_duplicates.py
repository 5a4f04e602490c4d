"""Repeats are found whatever the row order, nothing unlike is dropped, and leaks are named."""

import csv
import gzip
import io
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift_jax.data.duplicates import contaminated, near_duplicates
from ift_jax.data.splits import content_key, split_key
from ift_jax.errors import InputError

DATA = Path(
    os.environ.get("IFT_JAX_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)

properties = settings(derandomize=True, deadline=None, database=None, max_examples=100)
# Few words, so that random texts resemble each other.
short_texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "C", "c.", "猫", "!"]), max_size=9).map(" ".join),
    max_size=12,
)


def words(text):
    """The words of an ASCII text, said another way than in the module."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def ngrams(text, ngram):
    own = words(text)
    return {tuple(own[i : i + ngram]) for i in range(max(1, len(own) - ngram + 1))}


def jaccard(one, other, ngram=3):
    a, b = ngrams(one, ngram), ngrams(other, ngram)
    return len(a & b) / len(a | b)


def random_text(source, low, high):
    return " ".join(f"w{source.randrange(3000)}" for _ in range(source.randint(low, high)))


def edited(text, source, num_edits):
    own = text.split()
    for _ in range(num_edits):
        own[source.randrange(len(own))] = f"new{source.randrange(10**6)}"
    return " ".join(own)


# Near


@properties
@given(short_texts, st.randoms(use_true_random=False), st.sampled_from([0.4, 0.8, 1.0]))
def test_near_duplicates_point_at_rows_that_stay_and_do_not_depend_on_the_order(
    texts, source, threshold
):
    found = near_duplicates(texts, threshold=threshold, ngram=2)
    dropped = [match.dropped for match in found]
    assert dropped == sorted(set(dropped))
    assert not {match.kept for match in found} & set(dropped)
    assert all(threshold <= match.similarity <= 1 for match in found)
    moves = source.sample(range(len(texts)), len(texts))
    again = near_duplicates([texts[i] for i in moves], threshold=threshold, ngram=2)
    outcome = [
        sorted((content_key(rows[m.dropped]), content_key(rows[m.kept])) for m in matches)
        for rows, matches in ((texts, found), ([texts[i] for i in moves], again))
    ]
    assert outcome[0] == outcome[1]
    # Repeating every row drops every repeat and no further text.
    twice = near_duplicates(texts + texts, threshold=threshold, ngram=2)
    assert len(twice) == len(texts) + len(found)
    assert not {match.kept for match in twice} & {match.dropped for match in twice}


def test_the_similarity_is_the_jaccard_index_of_the_words_ngrams():
    source = random.Random(0)
    texts = [random_text(source, 4, 20) for _ in range(300)]
    texts += [edited(text, source, source.randint(0, 2)) for text in texts]
    found = near_duplicates(texts, threshold=0.3)
    assert len(found) > 150
    for match in found:
        similarity = jaccard(texts[match.dropped], texts[match.kept])
        assert match.similarity == pytest.approx(similarity, abs=1e-12)
        assert similarity >= 0.3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
def test_recall_of_planted_pairs_is_as_promised(threshold, seed):
    source = random.Random(seed)
    originals = [random_text(source, 20, 60) for _ in range(3000)]
    copies = [edited(text, source, source.randint(0, 5)) for text in originals]
    near = near_duplicates(originals + copies, threshold=threshold, seed=seed)
    dropped = {match.dropped for match in near}
    similar = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    found = [row in dropped or row + 3000 in dropped for row in range(3000)]
    for bound, recall in ((threshold, 0.98), (threshold + 0.1, 0.999)):
        own = [hit for hit, similarity in zip(found, similar, strict=True) if similarity >= bound]
        assert len(own) > 400
        assert sum(own) / len(own) >= recall
    assert not any(
        hit for hit, similarity in zip(found, similar, strict=True) if similarity < threshold
    )


def test_all_pairs_above_the_threshold_lose_a_row_as_brute_force_finds_them():
    source = random.Random(1)
    texts = [random_text(source, 12, 12)]
    for _ in range(300):  # chains of edits: relations overlap
        texts.append(edited(source.choice(texts), source, 1))
    found = near_duplicates(texts, threshold=0.5)
    dropped = {match.dropped for match in found}
    kept = [index for index in range(len(texts)) if index not in dropped]
    close = [(a, b) for a in kept for b in kept if a < b and jaccard(texts[a], texts[b]) >= 0.5]
    assert 20 < len(kept) < 280
    assert len(close) <= 0.02 * len(kept)


def test_a_chain_of_edits_keeps_texts_unlike_each_other():
    own = [f"w{i}" for i in range(40)]
    chain = [" ".join(own[i : i + 20]) for i in range(20)]
    found = near_duplicates(chain, threshold=0.7)
    kept = set(range(20)) - {match.dropped for match in found}
    assert len(kept) >= 4  # neighbours share 17 of 19 n-grams, the ends none


def test_texts_shorter_than_the_ngram_are_compared_whole():
    texts = ["Ok lar", "ok, LAR!", "ok", "Ok.", "", " ", "!!", "?", "ok lar now"]
    found = [(match.dropped, match.kept) for match in near_duplicates(texts, threshold=0.1)]
    # "ok lar" and its repeat, "ok" and its repeat, the two empty ones.
    pairs = {frozenset((dropped, kept)) for dropped, kept in found}
    assert pairs == {frozenset(pair) for pair in ((0, 1), (2, 3), (4, 5))}


def test_scripts_without_spaces_are_compared_by_character():
    texts = [
        "野马队在最后三分钟拿下多少分？",
        "野马队在最后三分钟拿下了多少分",
        "特斯拉是哪一年去世的？",
    ]
    [match] = near_duplicates(texts, threshold=0.6)
    assert {match.dropped, match.kept} == {0, 1}
    # 12 and 13 n-grams of three characters; the character put in breaks two of the 12.
    assert match.similarity == 10 / 15


def test_many_texts_are_read_in_chunks_and_fast():
    source = random.Random(0)
    texts = [random_text(source, 8, 25) for _ in range(20_000)]
    texts += [edited(text, source, 1) for text in texts[:2_000]]
    tracemalloc.start()
    start_s = time.process_time()
    found = near_duplicates(texts)
    assert time.process_time() - start_s < 20  # about 1 s, untraced 0.4 s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 60e6
    expected = [row for row in range(2_000) if jaccard(texts[row], texts[20_000 + row]) >= 0.8]
    assert abs(len(found) - len(expected)) <= 0.02 * len(expected)


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": 1.1}, {"ngram": 0}, {"num_permutations": 0}]
)
def test_near_duplicates_refuses_what_has_no_meaning(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        near_duplicates(["a"], **wrong)


# Contamination


@properties
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), max_size=6),
    st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), max_size=6),
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_contamination_is_what_brute_force_finds(train, evaluation, ngram, min_overlap):
    expected = []
    for row, text in enumerate(train):
        overlaps = []
        for other in evaluation:
            wanted = ngrams(other, ngram)
            share = len(wanted & ngrams(text, ngram)) / len(wanted)
            overlaps.append(1.0 if split_key(text) == split_key(other) else share)
        best = max(overlaps, default=0)
        if best > 0 and best >= min_overlap:
            expected.append((row, best))
    found = contaminated(train, evaluation, ngram=ngram, min_overlap=min_overlap)
    assert [(match.train, match.overlap) for match in found] == expected
    for match in found:
        wanted = ngrams(evaluation[match.evaluation], ngram)
        own = ngrams(train[match.train], ngram)
        same = split_key(train[match.train]) == split_key(evaluation[match.evaluation])
        assert same or len(wanted & own) / len(wanted) == match.overlap


def test_thirteen_shared_words_are_enough_and_twelve_are_not():
    source = random.Random(0)
    leak = random_text(source, 13, 13)
    evaluation = [random_text(source, 30, 30), "before " + leak + " after"]
    train = [f"Read: {leak.upper()}, please", "Read: " + leak.rsplit(" ", 1)[0] + " please"]
    assert contaminated(train, evaluation) == [(0, 1, 1 / 3)]
    assert contaminated(train, evaluation, min_overlap=0.5) == []
    assert contaminated(train, evaluation, ngram=8, min_overlap=0.5) == [
        (0, 1, 6 / 8),
        (1, 1, 5 / 8),
    ]


def test_short_texts_match_only_whole():
    evaluation = ["How do I track my card?", "", "Don't!"]
    train = ["how do i track  my card", "How do I track my card today?", "dont", " \n", "Hi"]
    assert contaminated(train, evaluation) == [(0, 0, 1.0), (2, 2, 1.0), (3, 1, 1.0)]


def test_the_evaluation_row_held_most_is_named_and_the_first_of_equals():
    evaluation = ["a b c d e f", "a b c d", "a b c d"]
    assert contaminated(["x a b c d y"], evaluation, ngram=2) == [(0, 1, 1.0)]
    # An n-gram that the training row repeats counts once.
    repeats = "a b a b a b c d e"
    assert contaminated([repeats], ["a b x y", "c d e z"], ngram=2) == [(0, 1, 2 / 3)]


def test_the_same_letters_are_an_overlap_of_one_where_words_part_differently():
    found = contaminated(["dont stop now please"], ["Don't stop now please"], ngram=2)
    assert found == [(0, 0, 1.0)]


def test_nothing_is_contaminated_by_nothing():
    assert contaminated([], ["a"]) == contaminated(["a"], []) == contaminated([], []) == []
    assert contaminated([""], ["a"]) == []
    with pytest.raises(InputError, match="ngram"):
        contaminated([], [], ngram=0)
    with pytest.raises(InputError, match="min_overlap"):
        contaminated([], [], min_overlap=1.5)


# Real sets. INDEX.md counts repeats by letters and digits alone, as `split_key` nearly does;
# `content_key`, which punctuation changes, finds fewer, and raw texts fewer still.


def read(name, encoding="utf-8"):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set IFT_JAX_DATA")
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode(encoding)


def read_lines(name):
    return [line for line in read(name).split("\n") if line]


def read_jsonl(name, field):
    return [json.loads(line)[field] for line in read_lines(name)]


def num_repeats(texts, key):
    return len(texts) - len({key(text) for text in texts})


def test_sms_spam_repeats():
    texts = [line.split("\t", 1)[1] for line in read_lines("sms_spam/sms.tsv.gz")]
    assert len(texts) - len(set(texts)) == 403
    # 11 more differ in spacing, 1 in case; 30 more in punctuation.
    assert num_repeats(texts, content_key) == 415
    assert num_repeats(texts, split_key) == 445
    found = near_duplicates(texts)
    assert sum(match.similarity == 1 for match in found) >= 415
    assert 480 <= len(found) <= 520


def test_banking77_texts_in_both_train_and_test():
    train, test = (
        [row["text"] for row in csv.DictReader(io.StringIO(read(f"banking77/{name}"), newline=""))]
        for name in ("train.csv.gz", "test.csv")
    )
    assert (len(train), len(test)) == (10003, 3080)

    def in_both(key):
        return len({key(text) for text in train} & {key(text) for text in test})

    # Line breaks and spaces hide them all from a comparison of the raw texts.
    assert (in_both(str), in_both(content_key), in_both(split_key)) == (0, 7, 29)
    test_keys = {split_key(text) for text in test}
    leaks = {row for row, text in enumerate(train) if split_key(text) in test_keys}
    found = contaminated(train, test)
    assert leaks <= {match.train for match in found if match.overlap == 1}
    assert len(found) < 100


def test_dialogsum_repeats_and_dialogues_in_both_train_and_dev():
    train = read_jsonl("dialogsum/dialogsum.train.jsonl.gz", "dialogue")
    dev = read_jsonl("dialogsum/dialogsum.dev.jsonl.gz", "dialogue")
    # No two are the same as they stand; by letters and digits alone 11,331 are distinct.
    # split_key counts two more, which repeat with a stray space inside a telephone number.
    distinct = [len(train) - num_repeats(train, key) for key in (str, content_key, split_key)]
    assert distinct == [12460, 11815, 11333]
    train_keys = {split_key(text) for text in train}
    assert sum(split_key(text) in train_keys for text in dev) == 52
    found = contaminated(train, dev, ngram=8, min_overlap=0.5)
    assert len({match.evaluation for match in found}) >= 100  # edited copies too


def test_gsm8k_of_flan_cot_is_gsm8k_train():
    flan = [line.split("\t")[0] for line in read_lines("flan_cot/gsm8k_train.tsv.gz")]
    train = read_jsonl("gsm8k/train.jsonl.gz", "question")
    test = read_jsonl("gsm8k/test.jsonl.gz", "question")
    assert len(set(flan) & set(train)) == 5657  # the others differ in spacing
    assert {content_key(text) for text in flan} == {content_key(text) for text in train}
    found = contaminated(flan, train)
    assert [match.train for match in found] == list(range(len(flan)))
    assert all(match.overlap == 1 for match in found)
    assert len(contaminated(train, test)) == 4  # the same story with other numbers
