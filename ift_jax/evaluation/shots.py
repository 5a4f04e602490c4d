"""In-context learning: solved examples before the question, as many as the context has room for."""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from ift_jax.data.chat import Message, Turns, UnusableTurns
from ift_jax.data.examples import Example
from ift_jax.data.pipeline import TaskData
from ift_jax.data.shots import behind, exemplar_pool, has_question, next_count, solved
from ift_jax.data.splits import subset_order, take_subset
from ift_jax.errors import InputError, one_line
from ift_jax.evaluation.scoring import Question, encode_questions
from ift_jax.language_model import LanguageModel


class Asked(NamedTuple):
    """An item as a model is asked it.

    Attributes:
        messages: exemplars and question; its own system turns stay before them.
        shots: exemplars among them.
        prompt: the same as tokens.
        options: answers to score, the item's choices first; () where nothing is scored.
        question: prompt and options as tokens; None where nothing is scored.
    """

    messages: list[Message]
    shots: int
    prompt: NDArray[np.int32]
    options: tuple[str, ...] = ()
    question: Question | None = None


def exemplars(task: TaskData, template: str, count: int, seed: int) -> list[Message]:
    """Solved examples as turns of a chat: of the training split, of the same template.

    Balanced over the answers where they are choices: none comes more than once more often than
    another, as far as the split has them. The seed decides which do, and the order.
    """
    return list(solved(_chosen(task, template, count, seed)))


def _chosen(
    task: TaskData, template: str, count: int, seed: int, besides: str = ""
) -> list[Example]:
    """Those examples.

    Args:
        besides: the key of an item that is not to be among them.
    """
    pool = [
        e
        for e in exemplar_pool(task.splits["train"], template)
        if has_question(e) and e.key != besides
    ]
    if count > len(pool):
        raise InputError(
            f"task {task.config.name}: {count} shots asked for, the training split has "
            f"{len(pool)} examples of template {template!r}"
        )
    keys = [f"{e.key} {e.content}" for e in pool]  # not its file's path, which may change
    balance = bool(pool) and all(e.choices for e in pool)
    labels = None
    if balance:  # in the seed's order, which decides who has the turns that are left over
        answers = sorted({e.completion for e in pool})
        order = subset_order(answers, seed=seed)
        turns = {answers[index]: f"{turn:09}" for turn, index in enumerate(order)}
        labels = [turns[e.completion] for e in pool]
    chosen = take_subset(keys, count, labels=labels, balance=balance, fill=balance, seed=seed)
    # They would come class by class; the seed's order is another.
    order = subset_order([keys[index] for index in chosen], seed=seed)
    return [pool[chosen[place]] for place in order]


def ask(
    model: LanguageModel,
    task: TaskData,
    items: Sequence[Example],
    shots: int,
    seed: int,
    *,
    scored: bool,
    new_tokens: int,
) -> list[Asked]:
    """Each item behind `shots` exemplars, or behind as many as leave room for its answer.

    Args:
        scored: whether answers will be scored, so that options must fit.
        new_tokens: how many will be generated; 0 if none.

    Raises:
        InputError: if an item does not fit without any exemplar, the chat template refuses it
            behind exemplars, or the training split has fewer than `shots` examples of an item's
            template.
    """
    limit = model.structure.context_length
    found: dict[int, Asked] = {}
    # How many exemplars an item may still turn out to have room for.
    most = dict.fromkeys(range(len(items)), shots)
    waiting = {shots: list(most)}
    while waiting:
        tried, waiting = waiting, {}
        for count, members in tried.items():
            asked = _ask(model, task, [items[i] for i in members], count, seed, scored)
            for i, one in zip(members, asked, strict=True):
                if (length := _length(one, new_tokens)) <= limit:
                    found[i] = one
                elif count:
                    most[i] = count - 1
                else:
                    raise InputError(
                        f"task {task.config.name}: a prompt with its answer has {length} tokens, "
                        f"the model's context is {limit}; lower config.data.max_length or "
                        "config.evaluation.max_new_tokens"
                    )
                fewest = found[i].shots if i in found else -1
                if fewest < most[i]:
                    following = next_count(fewest, most[i], first=count == shots)
                    waiting.setdefault(following, []).append(i)
    return [found[i] for i in range(len(items))]


def _ask(
    model: LanguageModel,
    task: TaskData,
    items: Sequence[Example],
    count: int,
    seed: int,
    scored: bool,
) -> list[Asked]:
    before = {t: _chosen(task, t, count, seed) for t in sorted({e.template for e in items})}
    keys = {template: {e.key for e in chosen} for template, chosen in before.items()}
    turns = {template: list(solved(chosen)) for template, chosen in before.items()}

    def behind_others(item: Example) -> list[Message]:
        shown = turns[item.template]
        if item.key in keys[item.template]:  # an item of the training split
            shown = list(solved(_chosen(task, item.template, count, seed, item.key)))
        return list(behind(shown, item.messages))

    messages = [behind_others(e) for e in items]
    options = [options_of(e) for e in items]
    try:
        prompts = [
            np.zeros(0, np.int32) if e.turns.plain else model.chat.prompt_ids(m)
            for e, m in zip(items, messages, strict=True)
        ]
        asked = [Asked(m, count, p) for m, p in zip(messages, prompts, strict=True)]
        if not scored:
            return asked
        questions = encode_questions(
            model.chat,
            [
                [_option(e, answer)._replace(messages=tuple(m)) for answer in own]
                for e, m, own in zip(items, messages, options, strict=True)
            ],
        )
    except (jinja2.TemplateError, UnusableTurns) as error:
        remedy = "ask without shots, or use another" if count else "use another"
        raise InputError(
            f"config.evaluation.shots: task {task.config.name}: behind {count} solved examples: "
            f"the chat template refuses a prompt ({one_line(error)}); {remedy} chat template"
        ) from error
    return [
        a._replace(options=o, question=q) for a, o, q in zip(asked, options, questions, strict=True)
    ]


def with_answer(item: Example, answer: str) -> Turns:
    """The item's turns with an answer of which alone is asked; only its own has its reasoning."""
    thought = item.turns.reasoning if answer == item.completion else ""
    return item.turns._replace(completion=answer, reasoning=thought, earlier=(), whole=False)


def _option(item: Example, answer: str) -> Turns:
    """The turns of an answer to score. Of choices none has the reasoning that leads to the right
    one, so that all are of one kind.
    """
    turns = with_answer(item, answer)
    return turns._replace(reasoning="") if item.choices else turns


def options_of(item: Example) -> tuple[str, ...]:
    """What is scored: the choices, and the answer if it is none of them."""
    known = item.completion in item.choices
    return item.choices if known else (*item.choices, item.completion)


def _length(asked: Asked, new_tokens: int) -> int:
    """The positions that an item takes, answer included."""
    length = len(asked.prompt) + new_tokens
    if asked.question is not None:
        prompt, choices = asked.question
        length = max(length, len(prompt) + max(map(len, choices)))
    return length
