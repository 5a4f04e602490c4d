"""A model's answers to a task's items: one pass of scores, one of generation.

Items are asked some at a time: as tokens, and behind exemplars, they take far more memory than as
the texts that they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import NamedTuple, TypeVar

from jax.sharding import Mesh

from ift_jax.data.examples import Example
from ift_jax.data.pipeline import TaskData
from ift_jax.data.shots import num_system_turns
from ift_jax.evaluation.classification import highest
from ift_jax.evaluation.frames import neutral_prompt, template_frames
from ift_jax.evaluation.metrics import Need
from ift_jax.evaluation.predictions import Prediction
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.scoring import (
    ChoiceScores,
    choice_turns,
    encode_questions,
    score_choices,
)
from ift_jax.evaluation.shots import Asked, ask, with_answer
from ift_jax.evaluation.texts import generate_texts
from ift_jax.language_model import LanguageModel

Choices = tuple[str, ...]
T = TypeVar("T")
Frames = dict[str, tuple[str, str]]

ITEMS_AT_ONCE = 1024  # enough that rows of one length fill their batches


class Answers(NamedTuple):
    """One run over the items of a task: an entry of each list an item.

    Attributes:
        predictions: what came.
        prompt_tokens: tokens of the prompt, exemplars included.
        shots: exemplars that the context had room for.
    """

    predictions: list[Prediction]
    prompt_tokens: list[int]
    shots: list[int]

    def of(self, items: Sequence[int]) -> "Answers":
        """The same, of some items."""
        return Answers(
            [self.predictions[i] for i in items],
            [self.prompt_tokens[i] for i in items],
            [self.shots[i] for i in items],
        )


def answer(
    model: LanguageModel,
    task: TaskData,
    items: Sequence[Example],
    references: Sequence[tuple[str, ...]],
    *,
    shots: int,
    seed: int,
    needs: Set[Need],
    max_new_tokens: int,
    mesh: Mesh | None = None,
    keep: Callable[[Example, Asked, Prediction], object] | None = None,
) -> Answers:
    """Asks a model every item behind `shots` exemplars drawn by `seed`.

    Args:
        needs: what the metrics read; nothing else is computed.
        max_new_tokens: of a generated answer; 0 takes what the longest reference needs.
        keep: gets every item with how it was asked, which nothing else keeps.

    Raises:
        InputError: as `ask`.
    """
    new_tokens = num_new_tokens(model, items, references, needs, max_new_tokens)
    frames = template_frames(task, items) if "calibrated" in needs else {}
    whole = Answers([], [], [])
    for some in _some_at_once(zip(items, references, strict=True)):
        own = [item for item, _ in some]
        asked = ask(
            model, task, own, shots, seed, scored=needs != {"generated"}, new_tokens=new_tokens
        )
        found = [Prediction(item.completion, references=right) for item, right in some]
        if needs != {"generated"}:
            scores = _scores(model, asked, mesh)
            found = [_with_scores(*each) for each in zip(found, own, asked, scores, strict=True)]
        if "calibrated" in needs:
            neutral = _neutral_scores(model, frames, own, asked, mesh)
            found = [p._replace(neutral_scores=n) for p, n in zip(found, neutral, strict=True)]
        if "generated" in needs:
            texts = _generated(model, asked, new_tokens, mesh)
            found = [p._replace(generated=t) for p, t in zip(found, texts, strict=True)]
        whole.predictions.extend(found)
        whole.prompt_tokens.extend(len(each.prompt) for each in asked)
        whole.shots.extend(each.shots for each in asked)
        if keep is not None:
            for each in zip(own, asked, found, strict=True):
                keep(*each)
    return whole


def _some_at_once(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, ITEMS_AT_ONCE)):
        yield some


def num_new_tokens(
    model: LanguageModel,
    items: Sequence[Example],
    references: Sequence[tuple[str, ...]],
    needs: Set[Need],
    max_new_tokens: int,
) -> int:
    """How many tokens are generated at most: 0 if no metric reads them.

    Args:
        references: of each item all right answers, () where its completion is the only one.
    """
    if "generated" not in needs:
        return 0
    chat = model.chat
    right = (
        chat.layout(with_answer(item, one))
        for item, accepted in zip(items, references, strict=True)
        for one in accepted or (item.completion,)
    )
    return max_new_tokens or 1 + max(
        int(encoded.trained.sum())
        for some in _some_at_once(right)
        for encoded in chat.encode_layouts(some)
    )


def _scores(model: LanguageModel, asked: Sequence[Asked], mesh: Mesh | None) -> list[ChoiceScores]:
    questions = [each.question for each in asked if each.question is not None]
    return score_choices(model.structure, model.params, questions, mesh=mesh)


def _with_scores(
    prediction: Prediction, item: Example, asked: Asked, found: ChoiceScores
) -> Prediction:
    """Scores of the choices, and of the reference, which is one of the options."""
    assert asked.question is not None
    sizes = [len(choice) for choice in asked.question.choices]
    count, place = len(item.choices), asked.options.index(item.completion)
    scores = found.log_likelihoods[:count]
    return prediction._replace(
        ranked=highest(item.choices, scores) if count else "",
        choices=item.choices,
        scores=tuple(scores.tolist()),
        num_choice_tokens=tuple(sizes[:count]),
        log_likelihood=float(found.log_likelihoods[place]),
        num_tokens=sizes[place],
        num_correct=int(found.num_correct[place]),
    )


def _neutral_scores(
    model: LanguageModel,
    frames: Frames,
    items: Sequence[Example],
    asked: Sequence[Asked],
    mesh: Mesh | None,
) -> list[tuple[float, ...]]:
    """Each item's choices behind its template's prompt about "N/A".

    The prompt without content is what Holtzman et al. 2021 call the domain premise. The item's
    system turns stay, and so do its exemplars, as in contextual calibration (Zhao et al. 2021);
    earlier turns of a chat are content.
    """
    keys = []
    for item, one in zip(items, asked, strict=True):
        own = num_system_turns(item.messages)
        before = one.messages[: len(one.messages) + own - len(item.messages)]
        keys.append((item.template, tuple(tuple(t.items()) for t in before), item.choices))
    first = dict.fromkeys(keys)
    questions = encode_questions(
        model.chat,
        [
            choice_turns(
                [
                    *map(dict, before),
                    {"role": "user", "content": neutral_prompt(frames[template])},
                ],
                choices,
            )
            for template, before, choices in first
        ],
    )
    scores = score_choices(model.structure, model.params, questions, mesh=mesh)
    found = dict(zip(first, scores, strict=True))
    return [tuple(found[key].log_likelihoods.tolist()) for key in keys]


def _generated(
    model: LanguageModel, asked: Sequence[Asked], new_tokens: int, mesh: Mesh | None
) -> list[str]:
    """What is said; reasoning before it is left out."""
    texts = generate_texts(
        model.structure,
        model.params,
        model.chat,
        [each.prompt for each in asked],
        Sampling(max_new_tokens=new_tokens),
        stop_ids=model.stop_ids,
        mesh=mesh,
    )
    return [model.chat.spoken(text) for text in texts]
