"""What is looked at while a model is trained: loss, the tasks' metrics, and a few answers."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from ift_jax.batch import Batch
from ift_jax.config import RunConfig
from ift_jax.data.examples import Example
from ift_jax.data.loader import Batches
from ift_jax.data.neutral import NeutralTexts, neutral_texts
from ift_jax.data.pipeline import DataSet, TaskData
from ift_jax.data.rows import packed_rows
from ift_jax.errors import InputError
from ift_jax.evaluation.answers import num_new_tokens
from ift_jax.evaluation.metrics import METRICS, accepts, deciding_key, generates
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.shots import ask
from ift_jax.evaluation.tasks import (
    EvaluationConfig,
    check_scoring,
    default_metrics,
    evaluate,
    one_a_prompt,
)
from ift_jax.evaluation.texts import generate_texts
from ift_jax.language_model import LanguageModel
from ift_jax.models import decoder
from ift_jax.sharding import place_batch
from ift_jax.train.loss import LossSums, loss_sums


class Packed(NamedTuple):
    """A split as batches, and the tokens that all its examples begin with."""

    batches: Batches
    prefix: jax.Array


def pack_split(config: RunConfig, data: DataSet, split: str, *, num_epochs: float) -> Packed:
    """Tokenizes and packs a split.

    Raises:
        InputError: if it has no example, or one that a row has no room for.
    """
    rows, prefix = packed_rows(data, split, config.train.seed)
    part = (jax.process_index(), jax.process_count()) if split == "train" else (0, 1)
    batches = Batches(rows, config.train.batch_size, num_epochs, part)
    return Packed(batches, jnp.asarray(prefix))


class Scoring(NamedTuple):
    """A task, its validation items, and what they are scored by."""

    data: DataSet
    config: EvaluationConfig

    @property
    def name(self) -> str:
        return self.data.tasks[0].config.name


class Prompt(NamedTuple):
    """An item whose answer is followed from step to step."""

    task: str
    template: str
    text: str
    tokens: NDArray[np.int32]
    reference: str


class Plan(NamedTuple):
    """What validation looks at: the same items every time.

    Attributes:
        packed: validation examples of the tasks that are trained; None if they have none.
        tasks: those with a validation split; with train.eval_tasks="all" also those that are only
            evaluated.
        selecting: names of the tasks whose scores of train.select_by are averaged; () for loss.
        prompts: of the samples.
        max_new_tokens: of a sample.
        texts: neutral text, where drift is measured or a remedy trains on it.
    """

    packed: Packed | None
    tasks: tuple[Scoring, ...]
    selecting: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    max_new_tokens: int
    texts: NeutralTexts | None


def plan_validation(config: RunConfig, base: LanguageModel, data: DataSet) -> Plan:
    """Chooses the items, and refuses what could not be scored; computes no model.

    Raises:
        InputError: as `evaluate`, or where no task can be scored by what config.train asks for.
    """
    settings = config.train
    held = tuple(_shortened(t, settings.eval_items) for t in data.tasks if t.splits["validation"])
    trained = tuple(task for task in held if task.config.weight)
    names = {task.config.name for task in trained}
    packed = None
    if trained:
        without = [t.config.name for t in data.trained() if t.config.name not in names]
        if without:
            print(
                f"no say in which step is best, without a validation split: {', '.join(without)}",
                file=sys.stderr,
            )
        loss_data = DataSet(data.config, trained, data.chat)
        packed = pack_split(config, loss_data, "validation", num_epochs=1)
    looked_at = held if settings.eval_tasks == "all" else trained
    scored = [_scoring(config, data, task) for task in looked_at]
    for metric in dict.fromkeys(settings.eval_metrics):
        if metric != "loss" and not any(metric in each.config.metrics for each in scored):
            why = "can be scored by it: it needs answer choices, questions, or other answers"
            raise InputError(
                f"config.train.eval_metrics: {metric}: no task "
                + (f"with a validation split {why}" if scored else "has a validation split")
            )
    tasks = tuple(each for each in scored if each.config.metrics)
    for each in tasks:
        check_scoring(base, each.data, each.config, split="validation", shots=(0,))
    selecting = tuple(
        each.name
        for each in tasks
        if each.name in names and settings.select_by in each.config.metrics
    )
    _check_selection(config, bool(trained), selecting)
    prompts, max_new_tokens = _samples(config, base, data)
    texts = _neutral(config, base)
    return Plan(packed, tasks, selecting, prompts, max_new_tokens, texts)


def _neutral(config: RunConfig, base: LanguageModel) -> NeutralTexts | None:
    trains = bool(config.remedies.text_kl_weight)
    if not (trains or config.neutral.num_texts):
        return None
    texts = neutral_texts(config.neutral, base.chat)
    if trains:
        texts.training_rows(config.train.seed)
    return texts


def _shortened(task: TaskData, count: int) -> TaskData:
    if not count:
        return task
    validation = task.splits["validation"][:count]
    return dataclasses.replace(task, splits={**task.splits, "validation": validation})


def _scoring(config: RunConfig, data: DataSet, task: TaskData) -> Scoring:
    """The metrics that config.train.eval_metrics asks of a task, or its own."""
    items, _ = one_a_prompt(task.splits["validation"], 0)
    asked = config.train.eval_metrics
    own = config.evaluation.metrics or task.config.metrics or default_metrics(items)
    ranks, answers = all(e.choices for e in items), not any(e.turns.plain for e in items)
    references = [answer for e in items for answer in e.references or (e.completion,)]
    usable = (
        m
        for m in asked
        if m != "loss"
        and (ranks or not _ranks(m))
        and (answers or not generates(m))
        and accepts(m, references)
    )
    evaluation = dataclasses.replace(
        config.evaluation, metrics=tuple(usable) if asked else own, max_items=0
    )
    return Scoring(DataSet(data.config, (task,), data.chat), evaluation)


def _ranks(metric: str) -> bool:
    return METRICS[metric].needs in ("ranked", "calibrated")


def _check_selection(config: RunConfig, validated: bool, selecting: Sequence[str]) -> None:
    by = config.train.select_by
    if validated and by != "loss" and not selecting:
        raise InputError(
            f"config.train.select_by={by}: no task that is trained has a validation split that is "
            f"scored by it; add it to the task's metrics or to config.train.eval_metrics"
        )
    if not validated and (by != "loss" or config.train.patience):
        option = "patience" if by == "loss" else "select_by"
        raise InputError(
            f"config.train.{option}={getattr(config.train, option)}: no task that is trained has a "
            "validation split; give one a validation_fraction, validation_size or validation_source"
        )


def _samples(
    config: RunConfig, base: LanguageModel, data: DataSet
) -> tuple[tuple[Prompt, ...], int]:
    """The first items of each task in turn: of validation, or of training where it has none."""
    held = [task.splits["validation"] or task.splits["train"] for task in data.tasks]
    turns = [
        (task, examples[number])
        for number in range(config.train.num_samples)
        for task, examples in zip(data.tasks, held, strict=True)
        if number < len(examples) and not examples[number].turns.plain  # which asks nothing
    ][: config.train.num_samples]
    if not turns:
        return (), 0
    items: list[Example] = [example for _, example in turns]
    own = [()] * len(items)
    new = num_new_tokens(base, items, own, {"generated"}, config.evaluation.max_new_tokens)
    prompts = []
    for task, item in turns:
        (asked,) = ask(base, task, [item], 0, 0, scored=False, new_tokens=new)
        text = base.chat.prompt_text(asked.messages)
        prompts.append(Prompt(task.config.name, item.template, text, asked.prompt, item.completion))
    return tuple(prompts), new


def validate(config: RunConfig, plan: Plan, model: LanguageModel, mesh: Mesh) -> dict[str, float]:
    """What metrics.jsonl holds of a validation.

    validation_loss and validation_token_accuracy are over all targets of the tasks that are
    trained, "validation/<task>/<metric>" is a task's score, and what decides stands under
    `metrics.deciding_key`: of a metric the mean over tasks.
    """
    values = {}
    if plan.packed is not None:
        sums = validation_sums(model.structure, model.params, plan.packed, mesh)
        loss, accuracy = divided(sums)
        values = {"validation_loss": loss, "validation_token_accuracy": accuracy}
    by = config.train.select_by
    deciding = []
    for data, scoring in plan.tasks:
        rows = evaluate(
            model, data, scoring, name="tuned", split="validation", shots=(0,), mesh=mesh
        )
        for row in rows:
            values[f"validation/{row['task']}/{row['metric']}"] = row["value"]
            if row["metric"] == by and row["task"] in plan.selecting:
                deciding.append(row["value"])
    if deciding:
        values[deciding_key(by)] = float(np.mean(deciding))
    return values


def sample(plan: Plan, model: LanguageModel, mesh: Mesh) -> list[dict[str, str]]:
    """The model's most likely answers to the plan's prompts, as samples.jsonl holds them."""
    if not plan.prompts:
        return []
    texts = generate_texts(
        model.structure,
        model.params,
        model.chat,
        [prompt.tokens for prompt in plan.prompts],
        Sampling(max_new_tokens=plan.max_new_tokens),
        stop_ids=model.stop_ids,
        mesh=mesh,
    )
    return [
        {
            "task": prompt.task,
            "template": prompt.template,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "completion": text,
        }
        for prompt, text in zip(plan.prompts, texts, strict=True)
    ]


def divided(sums: LossSums) -> tuple[float, float]:
    """Mean loss in nats per target, and the share of targets that scored highest."""
    weight = max(float(sums.weight), 1.0)
    return float(sums.nll) / weight, float(sums.correct) / weight


def validation_sums(
    structure: decoder.Structure, params: decoder.Params, packed: Packed, mesh: Mesh
) -> LossSums:
    """Loss sums of one pass over all batches."""
    total = LossSums(*(jnp.zeros(()),) * len(LossSums._fields))
    for number in range(packed.batches.num_steps):
        batch = place_batch(packed.batches[number], mesh)
        total = total + _sums(structure, params, batch, packed.prefix)
    return total


@jax.jit(static_argnums=0)
def _sums(
    structure: decoder.Structure, params: decoder.Params, batch: Batch, prefix: jax.Array
) -> LossSums:
    return loss_sums(structure, params, batch, prefix)
