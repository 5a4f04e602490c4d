"""Tokenizes examples and drops, cuts or refuses those that do not fit."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ift_jax.data.chat import Chat, UnusableTurns
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.records import Rejected
from ift_jax.data.tokenization import Encoded
from ift_jax.errors import InputError

_ELLIPSIS = " ... "


class Fitted(NamedTuple):
    """An example that fits, its tokens, and whether its prompt was cut."""

    example: Example
    tokens: Encoded
    truncated: bool = False


def encode_examples(chat: Chat, examples: Iterable[Example]) -> list[Encoded]:
    """Token ids of examples and what of them is trained."""
    return chat.encode_layouts(chat.layout(example.turns) for example in examples)


def fit_examples(
    examples: Sequence[Example], config: DataConfig, chat: Chat, rejected: list[Rejected]
) -> list[Fitted]:
    """Examples with their tokens; those of no use go to `rejected`, with the reason.

    Dropped are those over `max_length` (or cut, or refused), those with special tokens as
    text or characters that the tokenizer lacks, and those that the chat template refuses.

    Raises:
        InputError: for a long example, if `on_too_long` says so.
    """
    clean, layouts = [], []
    for example in examples:
        texts = (*(m["content"] for m in example.messages), example.completion)
        if token := chat.special_token_in(*texts):
            detail = f"the text holds the special token {token!r}"
            rejected.append(Rejected(example.origin, "special_token", detail))
            continue
        try:
            layouts.append(chat.layout(example.turns))
        except UnusableTurns as error:
            rejected.append(Rejected(example.origin, "chat_template", str(error)))
        else:
            clean.append(example)
    encoded = chat.encode_layouts(layouts)
    # Ranking puts each choice behind the prompt, so there must be room for the longest.
    counts = chat.count_tokens({c for e in clean for c in (*e.choices, e.completion) if e.choices})
    some_missing = chat.missing_character("".join(layout.text for layout in layouts))
    fitted = []
    for example, tokens in zip(clean, encoded, strict=True):
        if some_missing and (missing := chat.missing_character(tokens.text)):
            detail = f"the tokenizer has no token for {missing!r} and would drop it"
            rejected.append(Rejected(example.origin, "no_token", detail))
            continue
        more = [counts[choice] - counts[example.completion] for choice in example.choices]
        room = config.max_length - max(more, default=0)
        length = len(tokens.ids) + max(more, default=0)
        if length <= config.max_length:
            fitted.append(Fitted(example, tokens))
            continue
        detail = f"{length} tokens, max_length is {config.max_length}"
        if config.on_too_long == "error":
            raise InputError(f"{example.origin}: {detail}; see config.data.on_too_long")
        cut = None
        if config.on_too_long == "truncate":
            cut = _truncated(example, tokens, room, chat)
        if cut is None:
            rejected.append(Rejected(example.origin, "too_long", detail))
        else:
            fitted.append(cut)
    return fitted


def _truncated(example: Example, tokens: Encoded, max_length: int, chat: Chat) -> Fitted | None:
    """Cuts the middle of the last turn that is not the assistant's until the example fits.

    Returns None if that does not help. What the assistant said is left whole: it may be trained.
    """
    asked = [n for n, turn in enumerate(example.messages) if turn["role"] in ("user", "tool")]
    if not asked:
        return None
    last_asked = example.messages[asked[-1]]
    content = last_asked["content"]
    for margin in (4, 12, 40):
        start = tokens.text.rfind(content)
        inside = np.flatnonzero(
            (tokens.spans[:, 0] >= start) & (tokens.spans[:, 1] <= start + len(content))
        )
        excess = len(tokens.ids) - max_length + margin
        if start < 0 or len(inside) <= excess:
            return None
        middle = (len(inside) - excess) // 2
        first = int(tokens.spans[inside[middle], 0]) - start
        last = int(tokens.spans[inside[middle + excess - 1], 1]) - start
        shorter = content[:first].rstrip() + _ELLIPSIS + content[last:].lstrip()
        messages = list(example.messages)
        messages[asked[-1]] = {**last_asked, "content": shorter}
        shortened = example.with_messages(tuple(messages))
        new = encode_examples(chat, [shortened])[0]
        if len(new.ids) <= max_length:
            return Fitted(shortened, new, truncated=True)
    return None
