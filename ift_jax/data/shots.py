"""Training examples with solved examples before them, as a few-shot prompt has them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from ift_jax.data.chat import Chat, Message, UnusableTurns
from ift_jax.data.config import TaskConfig
from ift_jax.data.examples import Example
from ift_jax.data.store import Chosen
from ift_jax.data.tokenization import Encoded, Layout
from ift_jax.errors import InputError

EXEMPLARS = 1024  # training examples a template that prompts choose their exemplars from
_LOOKED_AT = 64  # others of the pool, where the first ones drawn ask the example's own question
_CHUNK = 2048  # prompts that are tokenized at a time


def solved(examples: Sequence[Example]) -> tuple[Message, ...]:
    """Examples with their answers, as turns of a chat; without shots of their own.

    Their system turns are left out: many chat templates take one as the first turn only.
    """
    return tuple(
        turn
        for e in examples
        for turn in (*e.messages[e.own_turns :], e.turns.answer)
        if turn["role"] != "system"
    )


def behind(before: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
    """Turns behind solved examples; only the system turns that they begin with stay first.

    Example:
        >>> turns = [{"role": role, "content": "..."} for role in ("user", "assistant")]
        >>> few_shot = behind(turns, [{"role": "system", "content": "Be brief."}, turns[0]])
        >>> [turn["role"] for turn in few_shot]
        ['system', 'user', 'assistant', 'user']
    """
    first = num_system_turns(messages)
    return (*messages[:first], *before, *messages[first:])


def num_system_turns(messages: Sequence[Message]) -> int:
    """How many system turns stand before all others."""
    return sum(1 for _ in takewhile(lambda turn: turn["role"] == "system", messages))


def has_question(example: Example) -> bool:
    """Whether it says more before its answer than system turns, which shots come without."""
    own = example.messages[example.own_turns :]
    return example.turns.plain or num_system_turns(own) < len(own)


def exemplar_pool(train: Chosen, template: str) -> Chosen:
    """The training examples that few-shot prompts for a template choose from."""
    return train.of_template(template, EXEMPLARS)


def add_shots(
    task: TaskConfig, train: Chosen, chat: Chat, max_length: int, seed: int
) -> tuple[Chosen, dict[int, int]]:
    """The training split with solved examples before those that draw some.

    Each example draws one of `train_shots`, and that many others of the split and of its own
    template, by a hash of its content; none with its own question or key. As many of them stand
    before it as `max_length` has room for.

    Returns:
        The split, and of the examples that drew shots, how many lack how many of them.

    Raises:
        InputError: if the chat template refuses one with its shots.
    """
    pools = {name: train.of_template(name) for name in train.templates()}
    numbers = train.numbers.copy()
    missing: Counter[int] = Counter()
    for first in range(0, len(train), _CHUNK):
        asked: dict[int, int] = {}
        drawn: dict[int, tuple[Example, list[Example]]] = {}
        for number in range(first, min(first + _CHUNK, len(train))):
            example = train[number]
            rng = _generator(example, seed)
            count = int(rng.choice(task.train_shots))
            if count and not example.turns.plain:
                asked[number] = count
                drawn[number] = example, _drawn(example, pools[example.template], count, rng)
        for number, example, tokens in _fitting(task, drawn, chat, max_length):
            missing[asked[number] - example.shots] += 1
            if example.shots:
                numbers[number] = train.store.append(example, tokens)
    return Chosen(train.store, numbers), dict(sorted(missing.items()))


def _generator(example: Example, seed: int) -> np.random.Generator:
    text = f"{seed} {example.content} {example.template}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def _drawn(example: Example, pool: Chosen, count: int, rng: np.random.Generator) -> list[Example]:
    """`count` others of the pool that ask something else, or as many as are found."""
    if not has_question(example):
        return []
    for wanted in (count + 1, count + _LOOKED_AT):
        picked = rng.choice(len(pool), min(wanted, len(pool)), replace=False).tolist()
        others = [other for other in map(pool.__getitem__, picked) if _shows(other, example)]
        if len(others) >= count:
            break
    return others[:count]


def _shows(shot: Example, example: Example) -> bool:
    """Whether one shows how to answer, and not the other's answer.

    It would if they were of one record, or asked the same.
    """
    same = (getattr(shot, name) == getattr(example, name) for name in ("origin", "key", "asked"))
    return has_question(shot) and not any(same)


def _fitting(
    task: TaskConfig,
    drawn: dict[int, tuple[Example, list[Example]]],
    chat: Chat,
    max_length: int,
) -> Iterator[tuple[int, Example, Encoded]]:
    """Each example behind as many of its shots as fit."""
    fitting: dict[int, tuple[Example, Encoded]] = {}
    most = {number: len(shots) for number, (_, shots) in drawn.items()}
    waiting = dict(most)
    while waiting:
        tried, waiting = waiting, {}
        made = [_behind(drawn[n][0], drawn[n][1][:count]) for n, count in tried.items()]
        encoded = chat.encode_layouts(_layout(task, chat, example) for example in made)
        for number, example, tokens in zip(tried, made, encoded, strict=True):
            if len(tokens.ids) <= max_length or not example.shots:
                fitting[number] = example, tokens
            else:
                most[number] = example.shots - 1
            fewest = fitting[number][0].shots if number in fitting else -1
            if fewest < most[number]:
                first = example.shots == len(drawn[number][1])
                waiting[number] = next_count(fewest, most[number], first=first)
    for number, (example, tokens) in sorted(fitting.items()):
        yield number, example, tokens


def next_count(fewest: int, most: int, *, first: bool) -> int:
    """How many shots to try next, where all did not fit: one less, then half of what is left.

    More shots never make a prompt shorter.

    Args:
        fewest: so many are known to fit; -1 if not even none are.
        most: more are known not to.
        first: only all of them were tried so far.

    Example:
        >>> next_count(-1, 39, first=True), next_count(-1, 38, first=False)
        (39, 19)
    """
    return most if first else (fewest + most + 1) // 2


def _layout(task: TaskConfig, chat: Chat, example: Example) -> Layout:
    try:
        return chat.layout(example.turns)
    except UnusableTurns as error:
        raise InputError(
            f"config.data.tasks: {task.name}.train_shots: {example.origin} behind {example.shots} "
            f"solved examples: {error}; leave train_shots out, or use another chat template"
        ) from error


def _behind(example: Example, shots: Sequence[Example]) -> Example:
    before = solved(shots)
    earlier = tuple(number + len(before) for number in example.turns.earlier)
    turns = example.turns._replace(messages=behind(before, example.messages), earlier=earlier)
    own_turns = num_system_turns(example.messages) + len(before) if shots else 0
    return replace(example, turns=turns, shots=len(shots), own_turns=own_turns)
