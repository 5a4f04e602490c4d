"""Tokenizes examples and drops, cuts or refuses those that do not fit."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ift_jax.data.chat import REASONING, Chat, UnusableTurns
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.records import Rejected
from ift_jax.data.tokenization import Encoded, Layout
from ift_jax.errors import InputError

_ELLIPSIS = " ... "
_KEPT_TOKENS = 8  # of a turn that is cut, at least
_BATCH_CHARACTERS = 2**22  # that are tokenized at once


class Fitted(NamedTuple):
    """An example that fits, its tokens, and whether its prompt was cut."""

    example: Example
    tokens: Encoded
    truncated: bool = False

    @property
    def leaves_out_reasoning(self) -> bool:
        """Whether the chat template does not print all the reasoning that the record has."""
        turns = (*self.example.messages, self.example.turns.answer)
        return any(turn.get(REASONING, "").strip() not in self.tokens.text for turn in turns)


def encode_examples(chat: Chat, examples: Iterable[Example]) -> list[Encoded]:
    """Token ids of examples and what of them is trained."""
    return chat.encode_layouts(chat.layout(example.turns) for example in examples)


def fit_examples(
    examples: Iterable[Example], config: DataConfig, chat: Chat, rejected: list[Rejected]
) -> list[Fitted]:
    """Examples with their tokens; those of no use go to `rejected`, with the reason.

    Dropped are those over `max_length` (or cut, or refused), those with special tokens as
    text or characters that the tokenizer lacks, and those that the chat template refuses.

    Raises:
        InputError: for a long example, if `on_too_long` says so; and if the tokenizer does not
            end an example with a trained end-of-turn token.
    """
    fitted: list[Fitted] = []
    batch, num_characters = [], 0
    for example in examples:
        if kept := _not_hopeless(example, config, chat, rejected):
            batch.append(kept)
            num_characters += sum(map(len, kept.example.turns.texts()))
        if num_characters > _BATCH_CHARACTERS:
            fitted += _fit_batch(batch, config, chat, rejected)
            batch, num_characters = [], 0
    return fitted + _fit_batch(batch, config, chat, rejected)


class _Candidate(NamedTuple):
    example: Example
    truncated: bool


def _not_hopeless(
    example: Example, config: DataConfig, chat: Chat, rejected: list[Rejected]
) -> _Candidate | None:
    """The example, unless its characters alone say that it cannot fit.

    Where it may be cut, its longest turns are cut by characters, to what could be left of them at
    most: a text of millions is not worth tokenizing.
    """
    most = chat.most_characters(config.max_length)
    length = sum(len(turn["content"]) for turn in (*example.messages, example.turns.answer))
    if length <= most:
        return _Candidate(example, False)
    detail = f"{length} characters, more than max_length={config.max_length} tokens can hold"
    if config.on_too_long == "error":
        raise InputError(f"{example.origin}: {detail}; see config.data.on_too_long")
    said = [m["content"] for m in example.messages if m["role"] == "assistant"]
    if config.on_too_long == "drop" or sum(map(len, said)) + len(example.completion) > most:
        rejected.append(Rejected(example.origin, "too_long", detail))
        return None
    half = most // 2
    messages = tuple(
        {**m, "content": m["content"][:half] + _ELLIPSIS + m["content"][-half:]}
        if m["role"] != "assistant" and len(m["content"]) > most
        else m
        for m in example.messages
    )
    return _Candidate(example.with_messages(messages), True)


def _fit_batch(
    batch: Sequence[_Candidate], config: DataConfig, chat: Chat, rejected: list[Rejected]
) -> list[Fitted]:
    clean, layouts = [], []
    for candidate in batch:
        example = candidate.example
        if token := chat.special_token_in(*example.turns.texts()):
            detail = f"the text holds the special token {token!r}"
            rejected.append(Rejected(example.origin, "special_token", detail))
            continue
        try:
            layouts.append(chat.layout(example.turns))
        except UnusableTurns as error:
            rejected.append(Rejected(example.origin, "chat_template", str(error)))
        else:
            clean.append(candidate)
    encoded = chat.encode_layouts(layouts)
    # Ranking puts each choice behind the prompt, so there must be room for the longest.
    counts = chat.count_tokens(
        {c for e, _ in clean for c in (*e.choices, e.completion) if e.choices}
    )
    some_missing = chat.missing_character("".join(layout.text for layout in layouts))
    fitted = []
    for (example, truncated), tokens in zip(clean, encoded, strict=True):
        if tokens.ids[-1:].tolist() != [chat.end_of_turn_id] or not tokens.trained[-1]:
            raise InputError(
                f"{example.origin}: the tokenizer does not give {chat.end_of_turn!r} behind the "
                f"answer the token {chat.end_of_turn_id}, so that nothing would teach the model to "
                "stop; see the tokenizer's special tokens"
            )
        if some_missing and (missing := chat.missing_character(tokens.text)):
            detail = f"the tokenizer has no token for {missing!r} and would drop it"
            rejected.append(Rejected(example.origin, "no_token", detail))
            continue
        more = [counts[choice] - counts[example.completion] for choice in example.choices]
        longer = max([0, *more])
        room = config.max_length - longer
        length = len(tokens.ids) + longer
        if length <= config.max_length:
            fitted.append(Fitted(example, tokens, truncated))
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
    """Cuts the middle of the longest turn until the example fits, then that of the next one.

    What users and tools say is cut before what the system says. What the assistant said is left
    whole: it may be trained. Returns None if all that does not help.
    """
    turns = [(n, turn) for n, turn in enumerate(example.messages) if turn["role"] != "assistant"]
    alone = chat.encode_layouts(Layout(turn["content"], ()) for _, turn in turns)
    # Of equally long ones the last first: what is asked stands at its ends.
    longest = sorted(
        zip(turns, alone, strict=True),
        key=lambda pair: (pair[0][1]["role"] == "system", -len(pair[1].ids), -pair[0][0]),
    )
    messages, length = list(example.messages), len(tokens.ids)
    for (number, turn), content in longest:
        spans, most = content.spans, len(content.ids) - _KEPT_TOKENS
        for margin in (4, 12, 40):
            excess = min(length - max_length + margin, most)
            if excess <= 0:
                break
            first = (len(spans) - excess) // 2
            before = content.text[: spans[first, 0]].rstrip()
            after = content.text[spans[first + excess - 1, 1] :].lstrip()
            messages[number] = {**turn, "content": before + _ELLIPSIS + after}
            shortened = example.with_messages(tuple(messages))
            [new] = encode_examples(chat, [shortened])
            if len(new.ids) <= max_length:
                return Fitted(shortened, new, truncated=True)
            if excess == most:
                length = len(new.ids)
                break
    return None
