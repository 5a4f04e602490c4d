"""Text to token ids with what is trained marked: what the tokenizer gives for each whole text.

A text is a row of words, and data repeats its words. A byte-level tokenizer gives a word the
same tokens wherever it stands, so each is tokenized once, and the ids of a text are those of its
words one behind the other. `word_pattern` says of which tokenizers that is known, and why; all
others tokenize every text whole.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_HELD_CHARACTERS = 2**22  # of words whose tokens are kept, some 50 MB

# Expressions by which byte-level tokenizers part words. In all of them a match that holds
# anything but whitespace holds no space behind it, nothing looks behind, and only whitespace looks
# ahead. So wherever a space follows a character that is not whitespace, one match ends and
# another begins, whatever stands around them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PARTING = (
    # GPT-2, RoBERTa, SmolLM; what ByteLevel has built in.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3 and Qwen: up to three digits, or one.
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}",
)
# Spaces and what stands behind them up to the next space. A space behind other whitespace
# begins no word.
_WORDS = re.compile(r" *[^ ]+(?:(?<=\s) +[^ ]*)*| +").findall


def whole(backend: Any) -> Any:
    """The tokenizer, without the truncation and padding that its file or its last call left in it.

    The tokenizer itself: transformers sets both anew for each call, and a tokenizer.json that is
    saved after this is without them.
    """
    backend.no_truncation()
    backend.no_padding()
    return backend


class Layout(NamedTuple):
    """A conversation as text, and the spans of characters whose tokens are trained."""

    text: str
    trained: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """A conversation as token ids.

    Attributes:
        ids: int32 [n].
        trained: bool [n]; True where token i is a target.
        text: what was tokenized.
        backend: the tokenizer.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    text: str
    backend: Any

    @property
    def spans(self) -> NDArray[np.int32]:
        """int32 [n, 2]; the characters of the text that token i covers."""
        encoding = whole(self.backend).encode(self.text, add_special_tokens=False)
        return np.array(encoding.offsets, np.int32).reshape(-1, 2)


class Tokenization:
    """Tokenizes texts, and keeps the tokens of their words."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._words_of = _parting(json.loads(backend.to_str()))
        self._ids: dict[str, bytes] = {}
        self._num_held = 0
        self._marks = lru_cache(maxsize=2**12)(self._trained_in_word)

    def __reduce__(self) -> tuple[type["Tokenization"], tuple[Any]]:
        return Tokenization, (self.backend,)

    @property
    def by_words(self) -> bool:
        """Whether words are known to have the same tokens in every text."""
        return (
            self._words_of is not None
            # This is set from outside, and can change.
            and not self.backend.encode_special_tokens
        )

    def encode(self, layouts: Sequence[Layout]) -> list[Encoded]:
        """Token ids of texts, no special tokens added, and which of them are trained."""
        whole(self.backend)
        if not self.by_words:
            return self.encode_whole(layouts)
        assert self._words_of is not None
        parted = [self._words_of(layout.text) for layout in layouts]
        self._learn(parted)
        encoded = []
        for layout, words in zip(layouts, parted, strict=True):
            found = list(map(self._ids.__getitem__, words))
            ids = np.frombuffer(b"".join(found), np.int32)
            trained = np.zeros(len(ids), bool)
            ends = list(accumulate(map(len, words)))
            for span in layout.trained:
                self._mark(trained, words, found, ends, span)
            encoded.append(Encoded(ids, trained, layout.text, self.backend))
        return encoded

    def encode_whole(self, layouts: Sequence[Layout]) -> list[Encoded]:
        """The same, each text given to the tokenizer as it is."""
        texts = [layout.text for layout in layouts]
        encodings = whole(self.backend).encode_batch(texts, add_special_tokens=False)
        return [
            Encoded(
                np.array(e.ids, np.int32), _trained(layout.trained, e), layout.text, self.backend
            )
            for layout, e in zip(layouts, encodings, strict=True)
        ]

    def _learn(self, parted: Sequence[Sequence[str]]) -> None:
        """Tokenizes the words that are not known yet."""
        if self._num_held > MAX_HELD_CHARACTERS:
            self._ids.clear()
            self._num_held = 0
        new = list(set().union(*parted) - self._ids.keys())
        encodings = self.backend.encode_batch(new, add_special_tokens=False)
        for word, encoding in zip(new, encodings, strict=True):
            self._ids[word] = np.array(encoding.ids, np.int32).tobytes()
            self._num_held += len(word)

    def _mark(
        self,
        trained: NDArray[np.bool_],
        words: Sequence[str],
        found: Sequence[bytes],
        ends: Sequence[int],
        span: tuple[int, int],
    ) -> None:
        """Marks the tokens of a span; only words that it cuts need to be looked into."""
        begin, end = span
        first, last = bisect_right(ends, begin), bisect_left(ends, end)
        at = sum(map(len, found[:first])) // 4
        cut = begin - (ends[first] - len(words[first])), end - (ends[last] - len(words[last]))
        if first == last:
            marks = self._marks(words[first], *cut)
            trained[at : at + len(marks)] |= marks
            return
        head = self._marks(words[first], cut[0], len(words[first]))
        tail = self._marks(words[last], 0, cut[1])
        upto = at + sum(map(len, found[first:last])) // 4
        trained[at : at + len(head)] |= head
        trained[at + len(head) : upto] = True
        trained[upto : upto + len(tail)] |= tail

    def _trained_in_word(self, word: str, begin: int, end: int) -> NDArray[np.bool_]:
        encoding = self.backend.encode(word, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return (offsets[:, 1] > begin) & (offsets[:, 0] < end)


def _trained(spans: Sequence[tuple[int, int]], encoding: Any) -> NDArray[np.bool_]:
    trained = np.zeros(len(encoding.ids), bool)
    for begin, end in spans:
        first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
        if first is None or last is None:  # a character that no token covers, such as a space
            offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            trained |= (offsets[:, 1] > begin) & (offsets[:, 0] < end)
        else:
            # The span ends in a special token, so no other token has its last character.
            trained[first : last + 1] = True
    return trained


def _parting(tokenizer: Mapping[str, Any]) -> Callable[[str], list[str]] | None:
    """What cuts a text into words with tokens of their own; None where that is not known.

    It cuts before and behind special tokens, which part a text before anything else is done, and
    before a space that follows a character which is not whitespace.

    Args:
        tokenizer: what its tokenizer.json holds.
    """
    added = tokenizer["added_tokens"]
    known = (
        _parts_words(_steps(tokenizer["pre_tokenizer"]))
        # NFC neither moves a space nor joins anything across one.
        and all(step["type"] == "NFC" for step in _steps(tokenizer["normalizer"]))
        and tokenizer["model"]["type"] == "BPE"
        and not tokenizer["model"]["dropout"]
        # Trimmed offsets depend on where in the text a word stands.
        and not any(step.get("trim_offsets") for step in _steps(tokenizer["post_processor"]))
        and all(_stands_alone(token) for token in added)
    )
    if not known:
        return None
    # The longest wins where several begin. Others are found in the words.
    parting = sorted((t["content"] for t in added if not t["normalized"]), key=len, reverse=True)
    split = re.compile(f"({'|'.join(map(re.escape, parting))})").split if parting else None

    def cut(text: str) -> list[str]:
        words: list[str] = []
        for piece in split(text) if split else [text]:
            words += _WORDS(piece)
        return words or [text]

    return cut


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or post-processor as the list of its steps."""
    if part is None:
        return []
    inner = next(
        (part[n] for n in ("normalizers", "pretokenizers", "processors") if n in part), None
    )
    return [part] if inner is None else [step for one in inner for step in _steps(one)]


def _parts_words(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the steps parts words at spaces, and none before it hides them.

    Single digits set apart before that leave every space where it is.
    """
    if not steps or steps[-1]["type"] != "ByteLevel":
        return False
    known = all(step["type"] == "Digits" or _parts_by_expression(step) for step in steps[:-1])
    return known and (steps[-1]["use_regex"] or any(map(_parts_by_expression, steps[:-1])))


def _parts_by_expression(step: Mapping[str, Any]) -> bool:
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in PARTING
        and step["behavior"] == "Isolated"
        and not step["invert"]
    )


def _stands_alone(token: Mapping[str, Any]) -> bool:
    """Whether an added token is found whatever stands beside it, and never across two words."""
    beside = token["lstrip"] or token["rstrip"] or token["single_word"]
    return not beside and len(_WORDS(token["content"])) == 1
