"""A model's answers to a task's items: one pass of scores, one of generation."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ift_jax.data.examples import Example
from ift_jax.data.pipeline import TaskData
from ift_jax.evaluation.frames import neutral_prompt, template_frames
from ift_jax.evaluation.metrics import Need
from ift_jax.evaluation.predictions import Prediction
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.scoring import ChoiceScores, encode_questions, score_choices
from ift_jax.evaluation.shots import Asked, ask
from ift_jax.evaluation.texts import generate_texts
from ift_jax.language_model import LanguageModel

Choices = tuple[str, ...]


class Answers(NamedTuple):
    """One run over the items of a task: how each was asked, and what came."""

    seed: int
    asked: list[Asked]
    predictions: list[Prediction]

    def of(self, items: Sequence[int]) -> "Answers":
        """The same, of some items."""
        return Answers(
            self.seed, [self.asked[i] for i in items], [self.predictions[i] for i in items]
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
) -> Answers:
    """Asks a model every item behind `shots` exemplars drawn by `seed`.

    Args:
        needs: what the metrics read; nothing else is computed.
        max_new_tokens: of a generated answer; 0 takes what the longest reference needs.

    Raises:
        InputError: as `ask`.
    """
    scored = needs != {"generated"}
    new_tokens = num_new_tokens(model, items, needs, max_new_tokens)
    asked = ask(model, task, items, shots, seed, scored=scored, new_tokens=new_tokens)
    predictions = [
        Prediction(e.completion, references=r) for e, r in zip(items, references, strict=True)
    ]
    if scored:
        found = _scores(model, items, asked, mesh)
        predictions = [
            _with_scores(*each) for each in zip(predictions, items, asked, found, strict=True)
        ]
    if "calibrated" in needs:
        neutral = _neutral_scores(model, task, items, asked, mesh)
        predictions = [
            p._replace(neutral_scores=n) for p, n in zip(predictions, neutral, strict=True)
        ]
    if "generated" in needs:
        texts = _generated(model, items, asked, new_tokens, mesh)
        predictions = [p._replace(generated=t) for p, t in zip(predictions, texts, strict=True)]
    return Answers(seed, asked, predictions)


def num_new_tokens(
    model: LanguageModel, items: Sequence[Example], needs: Set[Need], max_new_tokens: int
) -> int:
    """How many tokens are generated at most: 0 if no metric reads them."""
    if "generated" not in needs:
        return 0
    encoded = model.chat.encode((e.messages, e.completion) for e in items)
    return max_new_tokens or max(int(e.trained.sum()) for e in encoded) + 1


def _scores(
    model: LanguageModel, items: Sequence[Example], asked: Sequence[Asked], mesh: Mesh | None
) -> list[ChoiceScores]:
    found: dict[int, ChoiceScores] = {}
    for members in _sharing(items, asked):
        questions = [question for i in members if (question := asked[i].question) is not None]
        scores = score_choices(model.structure, model.params, questions, mesh=mesh)
        found |= dict(zip(members, scores, strict=True))
    return [found[i] for i in range(len(items))]


def _with_scores(
    prediction: Prediction, item: Example, asked: Asked, found: ChoiceScores
) -> Prediction:
    """Scores of the choices, and of the reference, which is one of the options."""
    assert asked.question is not None
    sizes = [len(choice) for choice in asked.question.choices]
    count, place = len(item.choices), asked.options.index(item.completion)
    scores = found.log_likelihoods[:count]
    return prediction._replace(
        ranked=item.choices[int(np.argmax(scores))] if count else "",
        choices=item.choices,
        scores=tuple(scores.tolist()),
        num_choice_tokens=tuple(sizes[:count]),
        log_likelihood=float(found.log_likelihoods[place]),
        num_tokens=sizes[place],
        num_correct=int(found.num_correct[place]),
    )


def _neutral_scores(
    model: LanguageModel,
    task: TaskData,
    items: Sequence[Example],
    asked: Sequence[Asked],
    mesh: Mesh | None,
) -> list[tuple[float, ...]]:
    """Each item's choices behind its template's prompt about "N/A", and the same exemplars.

    The prompt without content is what Holtzman et al. 2021 call the domain premise; the
    exemplars stay, as in contextual calibration (Zhao et al. 2021).
    """
    frames = template_frames(task, items)
    found: dict[tuple[str, int, Choices], tuple[float, ...]] = {}
    keys = [(e.template, a.shots, e.choices) for e, a in zip(items, asked, strict=True)]
    for members in _sharing(items, asked):
        first = {keys[i]: i for i in reversed(members)}
        prompts = []
        for (template, _, choices), i in first.items():
            before = asked[i].messages[: -len(items[i].messages)]
            question = {"role": "user", "content": neutral_prompt(frames[template])}
            prompts.append(([*before, question], choices))
        questions = encode_questions(model.chat, prompts)
        scores = score_choices(model.structure, model.params, questions, mesh=mesh)
        for key, score in zip(first, scores, strict=True):
            found[key] = tuple(score.log_likelihoods.tolist())
    return [found[key] for key in keys]


def _generated(
    model: LanguageModel,
    items: Sequence[Example],
    asked: Sequence[Asked],
    new_tokens: int,
    mesh: Mesh | None,
) -> list[str]:
    texts: dict[int, str] = {}
    sampling = Sampling(max_new_tokens=new_tokens)
    for members in _sharing(items, asked):
        found = generate_texts(
            model.structure,
            model.params,
            model.chat,
            [asked[i].prompt for i in members],
            sampling,
            stop_ids=model.stop_ids,
            mesh=mesh,
        )
        texts |= dict(zip(members, found, strict=True))
    return [texts[i] for i in range(len(items))]


def _sharing(items: Sequence[Example], asked: Sequence[Asked]) -> list[list[int]]:
    """Numbers of items with the same exemplars, which one call computes once for all of them."""
    groups: dict[tuple[str, int], list[int]] = {}
    for number, (item, question) in enumerate(zip(items, asked, strict=True)):
        key = (item.template, question.shots) if question.shots else ("", 0)
        groups.setdefault(key, []).append(number)
    return list(groups.values())
