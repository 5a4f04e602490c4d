"""Training examples with solved examples before them, as a few-shot prompt has them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ift_jax.data.chat import Chat, Message
from ift_jax.data.config import TaskConfig
from ift_jax.data.examples import Example
from ift_jax.data.fitting import encode_examples
from ift_jax.data.store import Chosen
from ift_jax.data.tokenization import Encoded

EXEMPLARS = 1024  # training examples a template that prompts choose their exemplars from
_LOOKED_AT = 64  # others of the pool, where the first ones drawn ask the example's own question
_CHUNK = 2048  # prompts that are tokenized at a time


def solved(examples: Sequence[Example]) -> tuple[Message, ...]:
    """Examples with their answers, as turns of a chat; without shots of their own."""
    return tuple(turn for e in examples for turn in (*e.messages[e.own_turns :], e.turns.answer))


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
    """
    pools = {name: train.of_template(name) for name in train.templates()}
    numbers = train.numbers.copy()
    missing: Counter[int] = Counter()
    for first in range(0, len(train), _CHUNK):
        asked: dict[int, int] = {}
        waiting: dict[int, tuple[Example, list[Example]]] = {}
        for number in range(first, min(first + _CHUNK, len(train))):
            example = train[number]
            rng = _generator(example, seed)
            count = int(rng.choice(task.train_shots))
            if count and not example.turns.plain:
                asked[number] = count
                waiting[number] = example, _drawn(example, pools[example.template], count, rng)
        for number, example, tokens in _fitting(waiting, chat, max_length):
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
    for wanted in (count + 1, count + _LOOKED_AT):
        picked = rng.choice(len(pool), min(wanted, len(pool)), replace=False).tolist()
        others = [other for other in map(pool.__getitem__, picked) if not _alike(example, other)]
        if len(others) >= count:
            break
    return others[:count]


def _alike(one: Example, other: Example) -> bool:
    """Whether they are of one record, or ask the same: one would show the other's answer."""
    return one.origin == other.origin or one.key == other.key or one.asked == other.asked


def _fitting(
    waiting: dict[int, tuple[Example, list[Example]]], chat: Chat, max_length: int
) -> Iterator[tuple[int, Example, Encoded]]:
    """Each example behind as many of its shots as fit."""
    while waiting:
        made = [_behind(example, shots) for example, shots in waiting.values()]
        longer: dict[int, tuple[Example, list[Example]]] = {}
        for number, example, tokens in zip(
            list(waiting), made, encode_examples(chat, made), strict=True
        ):
            if len(tokens.ids) <= max_length or not example.shots:
                yield number, example, tokens
            else:
                alone, shots = waiting[number]
                longer[number] = alone, shots[:-1]
        waiting = longer


def _behind(example: Example, shots: Iterable[Example]) -> Example:
    shots = list(shots)
    before = solved(shots)
    earlier = tuple(number + len(before) for number in example.turns.earlier)
    turns = example.turns._replace(messages=(*before, *example.messages), earlier=earlier)
    return replace(example, turns=turns, shots=len(shots), own_turns=len(before))
