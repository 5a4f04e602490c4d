"""Which split a row belongs to, and which rows make a smaller data set: by content, not position.

Every decision here is a hash of the row's own text, so it is the same in any row order, on any
machine, and after rows are added or repeated. No random generator, no state.
"""

import hashlib
import heapq
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from ift_jax.errors import InputError

# Places on the unit interval: test at the bottom, validation at the top, train between them.
# Whichever of the two grows, only rows that train gives up move.
SPLITS = ("test", "train", "validation")

# What ends a word, inside a regex's []: spaces and punctuation, of normalised text. Not \W, which
# holds the vowel signs of Indic scripts too.
BREAKS = r"\s!-/:-@\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u0964\u0965\u2010-\u205e\u3001-\u303f"
# Scripts written without spaces (kana, ideographs): each character is a word.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
MIN_WORDS = 5  # a shorter text may be a label, or stand in two records by chance
_LONG = re.compile(rf"(?:[{BREAKS}]*+(?:[{UNSPACED}]|[^{BREAKS}{UNSPACED}]++)){{{MIN_WORDS}}}")
_BREAK = re.compile(rf"[{BREAKS}]+")
_BETWEEN_DIGITS = re.compile(rf"(?<=\d)[{BREAKS}]+(?=\d)")
_SPACED_DIGITS = re.compile(rf"\d[{BREAKS}]+\d")  # a quick look whether there are any
# Deletes the breaks of a text of ASCII characters, faster than an expression does.
_ASCII_BREAKS = dict.fromkeys(c for c in range(128) if _BREAK.match(chr(c)))


@lru_cache(maxsize=64)  # a record's columns are asked for more than once
def normalise(text: str) -> str:
    """`text` as duplicates see it: Unicode NFKC, casefolded, whitespace runs made one space.

    Applying it twice changes nothing. Punctuation, digits, accents and HTML stay.

    Example:
        >>> normalise("  The ＦＩＮＥ Straße\\r\\n")
        'the fine strasse'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Decomposed first: casefold alone misses letters that were composed with a capital's mark.
    folded = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_key(*texts: str) -> str:
    """A 128-bit digest, in hex, of the texts after `normalise`.

    Rows with the same words in another case or spacing get the same key. Texts are kept apart:
    ("a b",) and ("a", "b") differ.

    Example:
        >>> content_key("Great  dryer!") == content_key("great dryer!\\n")
        True
    """
    return _digest(normalise(text) for text in texts)


def split_key(*texts: str) -> str:
    """As `content_key`, but blind to punctuation and to where words part: the key to split by.

    Real sets repeat a text with a comma or a space more (dialogsum's train has 1,127 repeats by
    this key, 645 by `content_key`). Two rows too many in one split cost nothing, a leak costs
    the result. To drop rows, `content_key` is the safer. Runs of digits stay apart.

    To keep all rows of a group in one split (a product, a dialogue, the text behind several
    templates), make the key from the group's value alone.

    Example:
        >>> split_key("Look!This is hers.") == split_key("Look! This is hers")
        True
        >>> split_key("1 23") == split_key("12 3")
        False
        >>> rows = [{"product": "B003", "text": "Hot."}, {"product": "B003", "text": "Cold."}]
        >>> fractions = {"train": 0.8, "validation": 0.1, "test": 0.1}
        >>> [assign_split(split_key(row["product"]), fractions) for row in rows]
        ['train', 'train']
    """
    return _digest(_letters(normalise(text)) for text in texts)


def has_words(text: str) -> bool:
    """Whether a text has the five words that tell it from a label.

    Example:
        >>> has_words("not good"), has_words("The lamp is not good.")
        (False, True)
    """
    return _LONG.match(text) is not None


def check_fractions(fractions: Mapping[str, float], field: str = "fractions") -> None:
    """Refuses fractions that are not shares of train, validation and test summing to 1.

    Args:
        fractions: Split name to share of the rows; a split left out has none.
        field: What the user calls it, for the message.

    Raises:
        InputError: If a name is unknown, a share is negative or not finite, or the sum is off 1
            by more than 1e-6.

    Example:
        >>> check_fractions({"train": 0.8, "test": 0.1})
        Traceback (most recent call last):
            ...
        ift_jax.errors.InputError: fractions: must sum to 1, got 0.9 (train=0.8, test=0.1)
    """
    for name, share in fractions.items():
        if name not in SPLITS:
            raise InputError(f"{field}.{name}: no such split; expected train, validation or test")
        if not (math.isfinite(share) and share >= 0):
            raise InputError(f"{field}.{name}: expected a share from 0 to 1, got {share}")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        shares = ", ".join(f"{name}={share}" for name, share in fractions.items()) or "none given"
        raise InputError(f"{field}: must sum to 1, got {total:.7g} ({shares})")


def assign_split(key: str, fractions: Mapping[str, float], *, salt: str = "") -> str:
    """The split of the row with this key: "train", "validation" or "test".

    The key is hashed to a place in [0, 1). Test holds [0, test), validation the top
    [1 - validation, 1), train what lies between. So the answer depends on the key alone, and
    a change of the fractions moves as few rows as any rule could: raising test from 0.1 to 0.2
    at train's cost moves a tenth of the rows, all from train to test.

    Args:
        key: From `split_key`, or any other stable name of the row or of its group.
        fractions: Shares of the rows, see `check_fractions`. Each split's size is binomial: of
            N distinct keys, N * share, give or take sqrt(N * share * (1 - share)).
        salt: Another salt gives an independent assignment, for repeated splits.

    Raises:
        InputError: As `check_fractions`.

    Example:
        >>> key = split_key("My dryer broke after a week.")
        >>> assign_split(key, {"train": 0.8, "validation": 0.1, "test": 0.1})
        'train'
        >>> assign_split(key, {"test": 1.0})
        'test'
    """
    check_fractions(fractions)
    place = (_keyed_hash(key, salt, purpose=b"split") >> 11) / 2**53
    present = [name for name in SPLITS if fractions.get(name, 0) > 0]
    end = 0.0
    for name in present[:-1]:
        end += fractions[name]
        if place < end:
            return name
    return present[-1]  # to the very top, so that rounding leaves no gap


def subset_order(keys: Sequence[str], *, seed: int = 0) -> list[int]:
    """All indices into `keys`, in an order that the keys and the seed decide, not the rows.

    Rows with the same key stay together, among themselves in input order.

    Example:
        >>> keys = ["ant", "bee", "cat", "bee"]
        >>> [keys[index] for index in subset_order(keys)]
        ['bee', 'bee', 'ant', 'cat']
        >>> [keys[::-1][index] for index in subset_order(keys[::-1])]
        ['bee', 'bee', 'ant', 'cat']
    """
    ranks = {key: (_keyed_hash(key, str(seed), purpose=b"subset"), key) for key in set(keys)}
    return sorted(range(len(keys)), key=lambda index: ranks[keys[index]])


def take_subset(
    keys: Sequence[str],
    size: int,
    *,
    labels: Sequence[Hashable] | None = None,
    balance: bool = False,
    stratify: bool = False,
    fill: bool = False,
    seed: int = 0,
) -> list[int]:
    """Indices of `size` rows; every smaller subset of the same rows is its beginning.

    Within a class rows come in `subset_order`; balance and stratify decide only how the classes
    interleave. So shuffling the rows changes nothing, and adding one row changes at most one
    row (plain, or balanced over the same classes) or about one row a class (stratified).

    Args:
        keys: One a row, from `content_key`.
        size: How many rows.
        labels: One a row, the class; needed to balance or stratify.
        balance: Equal counts per class at every size; what `size` leaves over goes one each to
            the first classes in the order of their `repr`.
        stratify: At every size n each class has its share of n among all rows, rounded down or
            up (the chairman assignment problem, Tijdeman 1980).
        fill: With balance, a class that runs out of rows leaves its turns to the others.
        seed: Another seed gives an independent order.

    Raises:
        InputError: If there are fewer rows than `size`, if a class is too small to balance
            without `fill`, or if the options contradict.

    Example:
        >>> keys, labels = [f"row {i}" for i in range(8)], ["ham"] * 6 + ["spam"] * 2
        >>> [labels[index] for index in take_subset(keys, 4, labels=labels, balance=True)]
        ['ham', 'spam', 'ham', 'spam']
        >>> [labels[index] for index in take_subset(keys, 4, labels=labels, stratify=True)]
        ['ham', 'ham', 'ham', 'spam']
        >>> take_subset(keys, 5)[:3] == take_subset(keys, 3)
        True
    """
    if not 0 <= size <= len(keys):
        raise InputError(f"subset size: asked for {size} rows of {len(keys)}")
    order = subset_order(keys, seed=seed)
    if not (balance or stratify):
        return order[:size]
    if balance and stratify:
        raise InputError("subset: balance and stratify exclude each other; choose one")
    if labels is None:
        raise InputError("subset: balance and stratify need a label for each row")
    if len(labels) != len(keys):
        raise ValueError(f"expected {len(keys)} labels, one a key; got {len(labels)}")
    rows_by_class: dict[Hashable, list[int]] = {
        label: [] for label in sorted(set(labels), key=repr)
    }
    for index in order:
        rows_by_class[labels[index]].append(index)
    counts = {label: len(rows) for label, rows in rows_by_class.items()}
    if balance and fill:
        sequence = list(islice(_filled(counts), size))
    else:
        sequence = _balanced(counts, size) if balance else _stratified(counts, size)
    remaining = {label: iter(rows) for label, rows in rows_by_class.items()}
    return [next(remaining[label]) for label in sequence]


def _digest(normalised: Iterable[str]) -> str:
    # Normalised text holds no newline, so one after each text keeps the list recoverable.
    joined = "".join(f"{text}\n" for text in normalised)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _letters(text: str) -> str:
    """`text` without breaks, but for one space between digits; unless nothing else is left."""
    if not _SPACED_DIGITS.search(text):
        return (text.translate(_ASCII_BREAKS) if text.isascii() else _BREAK.sub("", text)) or text
    return " ".join(_BREAK.sub("", part) for part in _BETWEEN_DIGITS.split(text)) or text


def _keyed_hash(key: str, salt: str, *, purpose: bytes) -> int:
    """64 bits; `purpose` keeps splits and subsets independent of each other."""
    digest = _keyed(salt, purpose).copy()
    digest.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big")


@lru_cache(maxsize=16)
def _keyed(salt: str, purpose: bytes) -> Any:
    salt_digest = hashlib.blake2b(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(digest_size=8, key=salt_digest, person=purpose)


def _balanced(counts: Mapping[Hashable, int], size: int) -> list[Hashable]:
    """Classes in turn, `size` long."""
    classes = list(counts)
    sequence = [classes[position % len(classes)] for position in range(size)]
    wanted = Counter(sequence)
    short = [label for label in classes if counts[label] < wanted[label]]
    if short:
        most = min(counts.values()) * len(classes)
        lacks = ", ".join(f"{label!r} has {counts[label]} of {wanted[label]}" for label in short)
        raise InputError(
            f"subset size: {size} rows cannot be balanced over {len(classes)} classes: "
            f"{lacks}; ask for at most {most}"
        )
    return sequence


def _filled(counts: Mapping[Hashable, int]) -> Iterator[Hashable]:
    """Classes in turn, those left out that have no rows left."""
    for turn in range(max(counts.values(), default=0)):
        yield from (label for label, count in counts.items() if count > turn)


def _stratified(counts: Mapping[Hashable, int], size: int) -> list[Hashable]:
    """Classes in an order whose every beginning holds each class's quota, rounded down or up.

    With share c / N, a class's j-th row may come no earlier than place (j-1) N // c + 1 (else the
    count exceeds the quota rounded up) and no later than ceil(j N / c) (else it falls below the
    quota rounded down). Earliest deadline first finds a schedule of such unit jobs if there is
    one, and Tijdeman (1980) shows that there is.
    """
    total = sum(counts.values())
    classes = list(counts)
    # (release place, class number, j) of each class's next row; of released rows, by deadline.
    waiting = [(1, number, 1) for number in range(len(classes))]
    ready: list[tuple[int, int, int]] = []
    sequence = []
    for place in range(1, size + 1):
        while waiting and waiting[0][0] <= place:
            _, number, j = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-j * total // counts[classes[number]]), number, j))
        _, number, j = heapq.heappop(ready)
        sequence.append(classes[number])
        count = counts[classes[number]]
        if j < count:
            heapq.heappush(waiting, (j * total // count + 1, number, j + 1))
    return sequence
