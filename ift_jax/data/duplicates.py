"""Rows that say the same thing twice: exact repeats, near repeats, and leaks of evaluation sets.

Give these functions the rows' own texts, not rendered prompts: a long template makes all rows
alike. Each returns the rows to drop; the caller drops and counts them.
"""

import functools
import hashlib
import math
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from ift_jax.data.splits import BREAKS, UNSPACED, content_key, normalise, split_key
from ift_jax.errors import InputError

_WORD = re.compile(rf"[{UNSPACED}]|[^{BREAKS}{UNSPACED}]+")

_WORDS_PER_CHUNK = 2**16  # keeps the arrays of one chunk in the processor's cache
_RECALL_AT_THRESHOLD = 0.98
_Ngrams = frozenset[tuple[str, ...]]
_MAX_READS = 100  # candidates a text is compared with in full, the most alike by sketch first


class NearDuplicate(NamedTuple):
    """Row `dropped` is much like row `kept`; `similarity`: the Jaccard index of their n-grams."""

    dropped: int
    kept: int
    similarity: float


class Contamination(NamedTuple):
    """Training row `train` holds the share `overlap` of the n-grams of row `evaluation`."""

    train: int
    evaluation: int
    overlap: float


def near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    num_permutations: int = 128,
    ngram: int = 3,
    seed: int = 0,
    parts: Sequence[Sequence[str]] = (),
    ranks: Sequence[int] = (),
    intact: Collection[int] = (),
) -> list[NearDuplicate]:
    """Rows to drop because a row that stays shares most of their word n-grams, by dropped index.

    Candidates come from MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman, Ullman,
    "Mining of Massive Datasets", 3.4). Each is then checked on the words themselves, so nothing
    below the threshold is dropped. A pair at the threshold is found with probability 0.98, one
    0.1 above it with 0.999 (for 64 permutations or more, and thresholds from 0.1).

    Texts are taken in the order of their `content_key`, each compared with those that stay, so
    the result does not depend on the row order, and no chain of small edits removes a text
    unlike all that stay. Of a repeated text that stays the first row does, and the others are
    dropped with similarity 1.

    Case, spacing and punctuation do not count. A text of fewer words than `ngram` is compared
    whole. Memory is about 4 * num_permutations bytes a text, 50 MB for 100,000. Only among
    hundreds of rows that all come near the threshold without reaching it does time grow with
    their square, and may recall be less, because a text is read beside 100 others at most.

    Args:
        texts: One a row.
        threshold: Smallest Jaccard index (shared n-grams over all n-grams of both) to drop.
        num_permutations: Length of the signatures.
        ngram: Words in an n-gram. With 3, one changed word amid 12 leaves an index of 0.54,
            amid 40 of 0.85; with 5, 0.23 and 0.76.
        seed: Of the hash functions; changes only which few pairs are missed.
        parts: What each text is joined of, such as a passage and a question. A part that two rows
            both have says nothing of whether the rest is alike, so it is left out of both.
        ranks: One a row: of rows that are alike one with the lowest rank stays.
        intact: Ranks whose rows never drop each other.

    Raises:
        InputError: If the threshold is not above 0 and at most 1, or a count is below 1.

    Example:
        >>> texts = ["I want to return my new dryer", "Hot.", "I want to return my new dryer soon"]
        >>> near_duplicates(texts)
        [NearDuplicate(dropped=2, kept=0, similarity=0.8333333333333334)]
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold: expected above 0 and at most 1, got {threshold}")
    if min(num_permutations, ngram) < 1:
        raise InputError(
            f"num_permutations and ngram: expected 1 or more, got {num_permutations} and {ngram}"
        )
    keys = [content_key(text) for text in texts]
    ranks = ranks or [0] * len(keys)
    # The first row of each text and rank, lower ranks first.
    first_rows: dict[tuple[int, str], int] = {}
    for row, rank_and_key in enumerate(zip(ranks, keys, strict=True)):
        first_rows.setdefault(rank_and_key, row)
    rows = [first_rows[place] for place in sorted(first_rows)]
    matches = {
        rows[dropped]: (rows[kept], similarity)
        for dropped, kept, similarity in _near_matches(
            [texts[row] for row in rows],
            lambda place: parts[rows[place]] if parts else [texts[rows[place]]],
            [ranks[row] for row in rows],
            intact,
            threshold,
            num_permutations,
            ngram,
            seed,
        )
    }
    found = []
    for row, (rank, key) in enumerate(zip(ranks, keys, strict=True)):
        first = first_rows[rank, key]
        if first in matches:
            found.append(NearDuplicate(row, *matches[first]))
        elif first != row and rank not in intact:
            found.append(NearDuplicate(row, first, 1.0))
    return found


def contaminated(
    train_texts: Sequence[str],
    evaluation_texts: Sequence[str],
    *,
    ngram: int = 13,
    min_overlap: float = 0.0,
) -> list[Contamination]:
    """Training rows that hold word n-grams of an evaluation row, each with its worst match.

    Overlap is the share of the evaluation row's distinct n-grams that stand in the training
    row. With the defaults one shared run of 13 words is enough (Brown et al. 2020, GPT-3, app. C);
    ngram=8, min_overlap=0.5 asks for half of the evaluation row (as Lambert et al. 2024, Tülu 3),
    which also catches short leaks and forgives stock phrases.

    Case, spacing and punctuation do not count. Whatever their length, texts with the same
    `split_key` match, with overlap 1; a text of fewer words than `ngram` matches only so. To
    find edited short texts, use `near_duplicates` on both sets.

    Args:
        train_texts: The rows that may be dropped.
        evaluation_texts: The rows to keep unseen, of any number of evaluation sets.
        ngram: Words in an n-gram.
        min_overlap: Smallest overlap to report, 0 to 1; at least one n-gram must be shared.

    Returns:
        One entry a contaminated training row, in input order, with the evaluation row of the
        largest overlap, the first of equals.

    Raises:
        InputError: If ngram is below 1 or min_overlap is not from 0 to 1.

    Example:
        >>> evaluation = ["How do I track my card?", "Tom has 3 apples and buys 2. How many now?"]
        >>> train = ["how do i track my card", "Solve: Tom has 3 apples and buys 2 pears.", "Hi"]
        >>> contaminated(train, evaluation, ngram=5)
        [Contamination(train=0, evaluation=0, overlap=1.0), \
Contamination(train=1, evaluation=1, overlap=0.5)]
    """
    if ngram < 1:
        raise InputError(f"ngram: expected 1 or more words, got {ngram}")
    if not 0 <= min_overlap <= 1:
        raise InputError(f"min_overlap: expected a share from 0 to 1, got {min_overlap}")
    same: dict[str, int] = {}
    for row, text in enumerate(evaluation_texts):
        same.setdefault(split_key(text), row)
    found = {
        row: Contamination(row, same[key], 1.0)
        for row, key in enumerate(map(split_key, train_texts))
        if key in same
    }
    for row, evaluation in _largest_overlaps(train_texts, evaluation_texts, ngram):
        # Counted again on the words, because hashes can collide.
        wanted = _ngram_set(evaluation_texts[evaluation], ngram)
        overlap = len(wanted & _ngram_set(train_texts[row], ngram)) / len(wanted)
        if row not in found and overlap > 0 and overlap >= min_overlap:
            found[row] = Contamination(row, evaluation, overlap)
    return sorted(found.values())


def num_words(text: str) -> int:
    """How many words a text has, as runs of words are counted."""
    return len(_WORD.findall(normalise(text)))


def _words(text: str, ngram: int) -> list[str]:
    """The text's words, filled up with "" to one n-gram; a text of punctuation is one word."""
    normalised = normalise(text)
    words = _WORD.findall(normalised) or [normalised]
    return words + [""] * (ngram - len(words))


def _ngram_set(text: str, ngram: int) -> _Ngrams:
    words = _words(text, ngram)
    return frozenset(zip(*(words[k:] for k in range(ngram)), strict=False))


def _hashed_ngrams(
    texts: Sequence[str], ngram: int
) -> Iterator[tuple[Int[np.ndarray, "M"], UInt64[np.ndarray, "M"]]]:
    """All n-grams as 64-bit hashes, and the row of each; in chunks of whole rows, in order."""

    @functools.cache
    def word_hash(word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    first_row, word_hashes, lengths = 0, array("Q"), array("q")
    for row, text in enumerate(texts):
        words = _words(text, ngram)
        word_hashes.extend(map(word_hash, words))
        lengths.append(len(words))
        if len(word_hashes) < _WORDS_PER_CHUNK and row < len(texts) - 1:
            continue
        words_W = np.array(word_hashes, dtype=np.uint64)
        num_windows = len(words_W) - ngram + 1
        windows_M = words_W[:num_windows]
        for k in range(1, ngram):
            windows_M = _mix(windows_M) + words_W[k : k + num_windows]
        lengths_T = np.array(lengths)
        place_in_text_W = np.arange(len(words_W)) - np.repeat(
            np.cumsum(lengths_T) - lengths_T, lengths_T
        )
        fits_M = (place_in_text_W <= np.repeat(lengths_T, lengths_T) - ngram)[:num_windows]
        rows_M = np.repeat(np.arange(first_row, row + 1), lengths_T - ngram + 1)
        yield rows_M, _mix(windows_M[fits_M])
        first_row, word_hashes, lengths = row + 1, array("Q"), array("q")


def _mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64-bit integers that spreads every bit (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _largest_overlaps(
    train_texts: Sequence[str], evaluation_texts: Sequence[str], ngram: int
) -> Iterator[tuple[int, int]]:
    """Training rows that share an n-gram, each with the evaluation row it holds most of."""
    index_hashes, index_rows, num_ngrams = _evaluation_index(evaluation_texts, ngram)
    for rows, hashes in _hashed_ngrams(train_texts, ngram):
        places = np.searchsorted(index_hashes, hashes)
        hit = np.append(index_hashes, np.uint64(0))[places] == hashes
        hit_rows, firsts = np.unique(rows[hit], return_index=True)
        for row, own in zip(hit_rows.tolist(), np.split(hashes[hit], firsts)[1:], strict=True):
            own = np.unique(own)
            lows = np.searchsorted(index_hashes, own, side="left")
            highs = np.searchsorted(index_hashes, own, side="right")
            holders = [index_rows[low:high] for low, high in zip(lows, highs, strict=True)]
            candidates, num_shared = np.unique(np.concatenate(holders), return_counts=True)
            yield row, int(candidates[np.argmax(num_shared / num_ngrams[candidates])])


def _evaluation_index(
    texts: Sequence[str], ngram: int
) -> tuple[UInt64[np.ndarray, "M"], Int[np.ndarray, "M"], Int[np.ndarray, "T"]]:
    """Distinct (n-gram hash, row) pairs, sorted; and how many n-grams each row has."""
    chunks = list(_hashed_ngrams(texts, ngram)) or [(np.empty(0, int), np.empty(0, np.uint64))]
    rows, hashes = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    order = np.lexsort((rows, hashes))
    rows, hashes = rows[order], hashes[order]
    is_repeat = (np.diff(hashes, prepend=~hashes[:1]) == 0) & (np.diff(rows, prepend=-1) == 0)
    rows, hashes = rows[~is_repeat], hashes[~is_repeat]
    return hashes, rows, np.bincount(rows, minlength=len(texts))


def _near_matches(
    texts: Sequence[str],
    parts_of: Callable[[int], Sequence[str]],
    ranks: Sequence[int],
    intact: Collection[int],
    threshold: float,
    num_permutations: int,
    ngram: int,
    seed: int,
) -> Iterator[tuple[int, int, float]]:
    """(dropped, kept, similarity); earlier texts stay, as do those of one intact rank."""
    ranks_T = np.array(ranks, np.int64)
    signatures_TP = _signatures(texts, num_permutations, ngram, seed)
    buckets_TB = _shared_buckets(signatures_TP, _rows_per_band(threshold, num_permutations))
    # Four standard deviations below the threshold a candidate is not worth reading.
    sketch_floor = threshold - 4 * math.sqrt(threshold * (1 - threshold) / num_permutations)

    @functools.lru_cache(maxsize=10_000)
    def ngrams(row: int) -> frozenset[_Ngrams]:
        return frozenset(_ngram_set(part, ngram) for part in parts_of(row))

    kept_in_bucket: dict[int, array[int]] = {}
    for row in np.flatnonzero((buckets_TB >= 0).any(axis=1)).tolist():
        buckets = [bucket for bucket in buckets_TB[row].tolist() if bucket >= 0]
        members = [np.array(kept_in_bucket[b]) for b in buckets if b in kept_in_bucket]
        candidates = np.unique(np.concatenate(members)) if members else np.empty(0, np.int64)
        if ranks[row] in intact:
            candidates = candidates[ranks_T[candidates] < ranks[row]]
        agreement = (signatures_TP[candidates] == signatures_TP[row]).mean(axis=1)
        best_first = np.argsort(-agreement, kind="stable")[:_MAX_READS]
        for other in candidates[best_first[agreement[best_first] >= sketch_floor]].tolist():
            similarity = _similarity(ngrams(row), ngrams(other))
            if similarity >= threshold:
                yield row, other, similarity
                break
        else:
            for bucket in buckets:
                kept_in_bucket.setdefault(bucket, array("q")).append(row)


def _similarity(one: frozenset[_Ngrams], other: frozenset[_Ngrams]) -> float:
    """The Jaccard index of what two rows say in the parts that they do not have in common."""
    own = _Ngrams().union(*(one - other))
    its = _Ngrams().union(*(other - one))
    return len(own & its) / len(own | its) if own or its else 1.0


def _signatures(
    texts: Sequence[str], num_permutations: int, ngram: int, seed: int
) -> UInt32[np.ndarray, "T P"]:
    """MinHash: per text and permutation, the least of its n-grams' hashes (the high 32 bits)."""
    random_bits = np.random.default_rng(seed)
    multipliers, offsets = random_bits.integers(2**64, size=(2, num_permutations), dtype=np.uint64)
    multipliers |= np.uint64(1)  # odd, so that multiplying modulo 2^64 is a permutation
    signatures_TP = np.empty((len(texts), num_permutations), dtype=np.uint32)
    for rows, hashes in _hashed_ngrams(texts, ngram):
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        for k in range(num_permutations):
            permuted = hashes * multipliers[k] + offsets[k]
            least = np.minimum.reduceat(permuted, starts)
            signatures_TP[rows[0] : rows[-1] + 1, k] = least >> np.uint64(32)
    return signatures_TP


def _rows_per_band(threshold: float, num_permutations: int) -> int:
    """The longest band that still finds a pair at the threshold with the recall we promise.

    With b bands of r rows a pair of Jaccard index s is found with probability 1 - (1 - s^r)^b.
    """
    return max(
        (
            r
            for r in range(1, num_permutations + 1)
            if 1 - (1 - threshold**r) ** (num_permutations // r) >= _RECALL_AT_THRESHOLD
        ),
        default=1,
    )


def _shared_buckets(
    signatures_TP: UInt32[np.ndarray, "T P"], rows_per_band: int
) -> Int[np.ndarray, "T B"]:
    """Per text and band, the number of its bucket, or -1 where no other text shares it."""
    num_texts, num_permutations = signatures_TP.shape
    num_bands = num_permutations // rows_per_band
    buckets_TB = np.full((num_texts, num_bands), -1, dtype=np.int64)
    for band in range(num_bands):
        hashes_T = np.zeros(num_texts, dtype=np.uint64)
        for k in range(band * rows_per_band, (band + 1) * rows_per_band):
            hashes_T = _mix(hashes_T + signatures_TP[:, k] + np.uint64(1))
        _, inverse, counts = np.unique(hashes_T, return_inverse=True, return_counts=True)
        is_shared = counts[inverse] > 1
        buckets_TB[is_shared, band] = inverse[is_shared] + band * num_texts
    return buckets_TB
