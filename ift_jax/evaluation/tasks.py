"""Scoring a model on tasks: the same path for base and tuned models, at any number of shots."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ift_jax.data.chat import Message
from ift_jax.data.examples import Example
from ift_jax.data.pipeline import DataSet, TaskData
from ift_jax.data.shots import exemplar_pool, solved
from ift_jax.data.splits import take_subset
from ift_jax.errors import InputError
from ift_jax.evaluation.generation import Sampling, generate
from ift_jax.evaluation.metrics import METRICS, Prediction, check_metrics, share
from ift_jax.evaluation.scoring import choice_log_likelihoods, encode_questions
from ift_jax.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The config's section `evaluation`.

    Attributes:
        shots: numbers of examples before the question, for the base model.
        max_items: items per task and split; 0 for all.
        metrics: for all tasks; () takes each task's own.
        max_new_tokens: of a generated answer; 0 takes what the longest reference needs.
    """

    shots: tuple[int, ...] = (0,)
    max_items: int = 0
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.shots, default=0) < 0 or self.max_items < 0 or self.max_new_tokens < 0:
            raise InputError("config.evaluation: shots and counts must not be negative")
        check_metrics(self.metrics, "config.evaluation.metrics")

    def ranking(self) -> "EvaluationConfig":
        """The same, with accuracy as the only metric; validation steers by it."""
        return dataclasses.replace(self, metrics=("accuracy",))


Row = dict[str, Any]


def evaluate(
    model: LanguageModel,
    data: DataSet,
    config: EvaluationConfig,
    *,
    name: str,
    split: str,
    shots: Sequence[int],
    mesh: Mesh | None = None,
) -> list[Row]:
    """Scores a model: one row per task, number of shots and metric, as results.json holds them.

    Args:
        name: stands in the rows' "model": "base", "tuned", ...
        split: whose items are scored; exemplars always come from the training split.

    Raises:
        InputError: if a split is empty, or a prompt with its shots exceeds the context.
    """
    rows = []
    for task in data.tasks:
        items = task.splits[split][: config.max_items or None]
        if not items:
            raise InputError(f"task {task.config.name}: the {split} split is empty")
        metrics = config.metrics or task.config.metrics or default_metrics(items)
        check_metrics(metrics, f"config.data.tasks: {task.config.name}.metrics")
        for count in shots:
            predictions = _predict(
                model, task, items, count, data.config.seed, metrics, config, mesh
            )
            for metric in metrics:
                score = METRICS[metric].score(predictions)
                rows.append(
                    _row(name, task.config.name, split, count, metric, score, len(predictions))
                )
    return rows


def check_scoring(
    model: LanguageModel,
    data: DataSet,
    config: EvaluationConfig,
    *,
    split: str,
    shots: Sequence[int],
) -> None:
    """Refuses, before a long run, what `evaluate` would refuse after it; computes no model.

    Raises:
        InputError: as `evaluate`, but for an empty split.
    """
    for task in data.tasks:
        items = task.splits[split][: config.max_items or None]
        if not items:
            continue
        metrics = config.metrics or task.config.metrics or default_metrics(items)
        check_metrics(metrics, f"config.data.tasks: {task.config.name}.metrics")
        if any(METRICS[metric].needs == "ranked" for metric in metrics):
            _refuse_unranked(task, items)
        longest = max(items, key=lambda e: sum(len(m["content"]) for m in e.messages))
        for count in shots:
            before = exemplars(task, longest.template, count, data.config.seed)
            prompt = model.chat.prompt_ids([*before, *longest.messages])
            _refuse_long(model, task, [len(prompt) + _longest_answer(model, items)])


def majority_rows(data: DataSet, config: EvaluationConfig, *, split: str) -> list[Row]:
    """The score of always giving the training split's most frequent answer, where choices are."""
    rows = []
    for task in data.tasks:
        items = task.splits[split][: config.max_items or None]
        train = task.answers()
        if not items or not all(e.choices for e in items) or not train:
            continue
        answer = max(sorted(train), key=train.__getitem__)
        score = share(sum(e.completion == answer for e in items), len(items))
        rows.append(_row("majority", task.config.name, split, 0, "accuracy", score, len(items)))
    return rows


def default_metrics(items: Sequence[Example]) -> tuple[str, ...]:
    """Accuracy and exact match where all items have choices, exact match elsewhere."""
    return ("accuracy", "exact_match") if all(e.choices for e in items) else ("exact_match",)


def exemplars(task: TaskData, template: str, count: int, seed: int) -> list[Message]:
    """Solved examples as turns of a chat: of the training split, of the same template.

    Balanced over the answers where they are choices; the order is the seed's too.
    """
    pool = exemplar_pool(task.splits["train"], template)
    if count > len(pool):
        raise InputError(
            f"task {task.config.name}: {count} shots asked for, the training split has "
            f"{len(pool)} examples of template {template!r}"
        )
    answers = [e.completion for e in pool]
    balance = all(e.choices for e in pool) and count >= len(set(answers))
    keys = [f"{e.key} {e.origin}" for e in pool]
    chosen = take_subset(keys, count, labels=answers, balance=balance, seed=seed)
    # Classes would come in their own order; exemplars in the order of their keys do not.
    return list(solved([pool[index] for index in sorted(chosen, key=lambda i: keys[i])]))


def _predict(
    model: LanguageModel,
    task: TaskData,
    items: Sequence[Example],
    shots: int,
    seed: int,
    metrics: Sequence[str],
    config: EvaluationConfig,
    mesh: Mesh | None,
) -> list[Prediction]:
    before = {t: exemplars(task, t, shots, seed) for t in sorted({e.template for e in items})}
    prompts = [[*before[e.template], *e.messages] for e in items]
    needs = {METRICS[metric].needs for metric in metrics}
    ranked, generated = [""] * len(items), [""] * len(items)
    if "ranked" in needs:
        _refuse_unranked(task, items)
        questions = encode_questions(
            model.chat, [(p, e.choices) for p, e in zip(prompts, items, strict=True)]
        )
        _refuse_long(model, task, [len(q.prompt) + max(map(len, q.choices)) for q in questions])
        scores = choice_log_likelihoods(model.structure, model.params, questions, mesh=mesh)
        ranked = [e.choices[int(np.argmax(s))] for e, s in zip(items, scores, strict=True)]
    if "generated" in needs:
        ids = [model.chat.prompt_ids(prompt) for prompt in prompts]
        new = config.max_new_tokens or _longest_answer(model, items)
        _refuse_long(model, task, [len(i) + new for i in ids])
        outputs = generate(
            model.structure, model.params, ids, Sampling(max_new_tokens=new),
            stop_ids=model.stop_ids, mesh=mesh,
        )  # fmt: skip
        generated = [model.chat.decode(output) for output in outputs]
    return [
        Prediction(e.completion, r, g) for e, r, g in zip(items, ranked, generated, strict=True)
    ]


def _refuse_unranked(task: TaskData, items: Sequence[Example]) -> None:
    without = next((e for e in items if not e.choices), None)
    if without:
        raise InputError(
            f"task {task.config.name}: template {without.template!r} has no answer choices "
            "to rank; choose metrics that generate, such as exact_match"
        )


def _longest_answer(model: LanguageModel, items: Sequence[Example]) -> int:
    encoded = model.chat.encode((e.messages, e.completion) for e in items)
    return max(int(e.trained.sum()) for e in encoded) + 1


def _refuse_long(model: LanguageModel, task: TaskData, lengths: Sequence[int]) -> None:
    limit = model.structure.config.max_positions
    if max(lengths) > limit:
        raise InputError(
            f"task {task.config.name}: a prompt with its shots and answer has {max(lengths)} "
            f"tokens, the model's context is {limit}; ask for fewer shots"
        )


def _row(model: str, task: str, split: str, shots: int, metric: str, score: Any, count: int) -> Row:
    return {
        "model": model, "task": task, "split": split, "shots": shots, "metric": metric,
        "value": score.value, "count": count, "low": score.low, "high": score.high,
    }  # fmt: skip
