"""What a held-out record forbids to train, and what training on a record would show.

Both are digests of texts, a few a record, so that any record of any task can be compared with any
other. Leaks are found without reading a text twice.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_jax.data.splits import has_words, split_key

# What a digest is of: text that must not be shown if the record is held out; that only if no other
# record of its task says it, as told by keys, or by keys and what prompts show; text that is shown
# if the record is trained.
HELD, HELD_IF_OWN, SHOWN, HELD_IF_ALONE = 1, 2, 4, 8
MARKS = np.dtype([("record", "i8"), ("digest", "u8"), ("kind", "u1")])

Marks = dict[int, int]  # digest -> kinds
_BEGINNING = 0x5BD1E9955BD1E995  # tells a whole conversation from the beginning of one


def record_digest(fields: Mapping[str, Any]) -> int:
    """64 bits of all that a record holds; 0 of no fields."""
    return _number(repr(sorted(fields.items()))) if fields else 0


def record_marks(
    asked: Sequence[str], prompts: Sequence[str], shown: Iterable[str], whole: int
) -> Marks:
    """What one record holds out and shows.

    Held out are the record as a whole, `asked` as a whole, and each of several texts in it that no
    other record of the task has: a question, but not the passage that other questions share.

    Args:
        asked: the texts that decide the split.
        prompts: what the prompts show, where something else decides the split: held out too,
            all of it and each text, where no other record has it.
        shown: all texts that are trained or stand in a prompt.
        whole: `record_digest` of it; 0 if many examples are made of it.
    """
    marks: Marks = {}
    for text in shown:
        _mark(marks, text, SHOWN)
    for text in asked:
        _mark(marks, text, HELD if len(asked) == 1 else HELD_IF_OWN)
    if len(asked) > 1:
        _mark(marks, "\n".join(asked), HELD | SHOWN)
    for text in prompts:
        _mark(marks, text, HELD_IF_ALONE)
    if len(prompts) > 1:
        _mark(marks, "\n".join(prompts), HELD_IF_ALONE | SHOWN)
    if whole:
        marks[whole] = HELD | SHOWN
    return marks


def turn_marks(asked: Sequence[str]) -> Marks:
    """Marks by which two conversations meet where the turns of one begin the other.

    Args:
        asked: what is said to the assistant, turn by turn.
    """
    marks: Marks = {}
    so_far = ""
    for number, text in enumerate(asked, start=1):
        so_far = split_key(so_far, split_key(text))
        whole = int(so_far[:16], 16)
        is_last = number == len(asked)
        marks[whole] = SHOWN | (HELD if is_last else 0)
        marks[whole ^ _BEGINNING] = HELD | (SHOWN if is_last else 0)
    return marks


def mark_shown(marks: Marks, text: str) -> None:
    """Adds a text that is shown if the record is trained."""
    _mark(marks, text, SHOWN)


def _mark(marks: Marks, text: str, kind: int) -> None:
    if has_words(text):
        digest = _text_digest(text)
        marks[digest] = marks.get(digest, 0) | kind


@lru_cache(maxsize=16)  # a text is often both asked and shown
def _text_digest(text: str) -> int:
    return int(split_key(text)[:16], 16)


def _number(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def own_texts(marks: NDArray[Any], key_of: NDArray[np.int64], kind: int) -> NDArray[np.bool_]:
    """Which marks are held because no record with another key says the same.

    Args:
        marks: MARKS [m]; of one task.
        key_of: int64 [m]; a number for the key of each mark's record.
        kind: which of the marks are asked about.
    """
    candidates = np.flatnonzero(marks["kind"] & kind)
    pairs = np.stack([marks["digest"][candidates], key_of[candidates].astype("u8")], axis=1)
    distinct = np.unique(pairs, axis=0)
    digests, counts = np.unique(distinct[:, 0], return_counts=True)
    found = np.zeros(len(marks), bool)
    found[candidates] = np.isin(pairs[:, 0], digests[counts == 1])
    return found


def leaking(
    record: NDArray[np.int64],
    digest: NDArray[np.uint64],
    held: NDArray[np.bool_],
    shown: NDArray[np.bool_],
    split: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which records show what a record of a split with precedence holds out.

    Args:
        record: int64 [m]; the record that each mark is of.
        digest: uint64 [m].
        held: bool [m].
        shown: bool [m].
        split: int64 [n]; of each record, 0 first in precedence; below 0 for dropped ones.

    Returns:
        bool [n].
    """
    _, text = np.unique(digest, return_inverse=True)
    text = text.reshape(-1)
    leaks = np.zeros(len(split), bool)
    for code in range(1, int(split.max(initial=0)) + 1):
        holds = held & (split[record] >= 0) & (split[record] < code) & ~leaks[record]
        forbidden = np.zeros(len(text), bool)
        forbidden[text[holds]] = True
        leaks[record[shown & (split[record] == code) & forbidden[text]]] = True
    return leaks
