"""Neutral text: what no task trains, and on which a model should go on as it was."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from ift_jax.data.chat import Chat
from ift_jax.data.loader import RowSource
from ift_jax.data.packing import Pair, Tokens
from ift_jax.data.records import Rejected
from ift_jax.data.sources import read_records
from ift_jax.errors import InputError

MAX_RECORDS = 20_000  # read of a source: more would not make a mean much surer


@dataclass(frozen=True, kw_only=True)
class NeutralConfig:
    """The config's section `neutral`.

    Attributes:
        source: a text file with a text a line, or any other source that `data` reads.
        column: the field that holds the text.
        num_texts: how many measure the KL divergence from the base, 0 for none; the others are
            those that `remedies.text_kl_weight` trains on.
        max_tokens: of a text; what is behind them is cut off.
    """

    source: str | tuple[str, ...] = "embedded:notes"
    column: str = "text"
    num_texts: int = 32
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if self.num_texts < 0:
            raise InputError(f"config.neutral.num_texts: must not be negative: {self.num_texts}")
        if self.max_tokens < 8:
            raise InputError(
                f"config.neutral.max_tokens: expected 8 or more, got {self.max_tokens}"
            )


class NeutralTexts(NamedTuple):
    """Neutral text as tokens, every token but the first a target: what measures, and the rest."""

    measured: Tokens
    rest: Tokens

    def measuring_rows(self) -> RowSource:
        """A row a text, in a fixed order."""
        return _rows(self.measured, pack=False)

    def training_rows(self, seed: int) -> RowSource:
        """Packed rows, without end, shuffled by a seed.

        Raises:
            InputError: if the source has no more texts than those that measure.
        """
        if not len(self.rest.lengths):
            raise InputError(
                f"config.neutral: the source has {len(self.measured.lengths)} texts, and "
                "num_texts takes all of them to measure; none is left for text_kl_weight"
            )
        return _rows(self.rest, pack=True, seed=seed)


def neutral_texts(config: NeutralConfig, chat: Chat) -> NeutralTexts:
    """Reads, tokenizes and splits neutral text; by content, not by the order of the source.

    Raises:
        InputError: if the source cannot be read, has no such column, or no text of two tokens.
    """
    texts, rejected = _read(config)
    # Cut here: truncation is a state of the tokenizer, which all others share.
    ids = chat.tokenizer(texts)["input_ids"] if texts else []
    kept = [np.array(one[: config.max_tokens], np.int32) for one in ids if len(one) > 1]
    first = f"; first: {rejected[0].origin}: {rejected[0].detail}" if rejected else ""
    if not kept:
        raise InputError(
            f"config.neutral.source={config.source!r}: has no text of two tokens{first}"
        )
    if rejected:
        print(f"config.neutral.source: {len(rejected)} records left out{first}", file=sys.stderr)
    return NeutralTexts(_tokens(kept[: config.num_texts]), _tokens(kept[config.num_texts :]))


def _read(config: NeutralConfig) -> tuple[list[str], list[Rejected]]:
    """The texts, and the records that could not be read."""
    found: dict[bytes, str] = {}
    rejected: list[Rejected] = []
    for row in islice(read_records(config.source), MAX_RECORDS):
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        text = row.fields.get(config.column)
        if not isinstance(text, str):
            raise InputError(
                f"config.neutral.column: {row.origin} has no text in {config.column!r}; there "
                f"are {', '.join(row.fields)}"
            )
        if text.strip():
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
            found[digest.digest()] = text
    return [found[digest] for digest in sorted(found)], rejected


def _tokens(ids: Sequence[np.ndarray]) -> Tokens:
    lengths = np.array([len(one) for one in ids], np.int64)

    def get(number: int) -> Pair:
        return ids[number], np.ones(len(ids[number]), bool)

    return Tokens(lengths, lengths - 1, get)


def _rows(tokens: Tokens, *, pack: bool, seed: int = 0) -> RowSource:
    return RowSource(
        tokens,
        int(tokens.lengths.max()),
        seed=seed,
        packing="first_fit" if pack else "none",
        shuffle=pack,
    )
