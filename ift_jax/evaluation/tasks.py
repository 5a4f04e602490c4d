"""Scoring a model on tasks: the same path for base and tuned models, at any number of shots."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ift_jax.data.examples import Example
from ift_jax.data.pipeline import DataSet, TaskData
from ift_jax.errors import InputError
from ift_jax.evaluation.answers import ITEMS_AT_ONCE, Answers, answer, num_new_tokens
from ift_jax.evaluation.baselines import copy_scores, majority_scores, random_scores
from ift_jax.evaluation.intervals import Score
from ift_jax.evaluation.metrics import (
    METRICS,
    Need,
    check_metrics,
    check_packages,
    check_references,
    class_score,
    score,
)
from ift_jax.evaluation.predictions import Line, Prediction
from ift_jax.evaluation.shots import Asked, ask, exemplars
from ift_jax.interpolation import check_share
from ift_jax.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The config's section `evaluation`.

    Attributes:
        shots: numbers of examples before the question, for the base model. Plain text, which asks
            nothing, is scored without any.
        exemplar_seeds: each draws its own examples; scores are averaged over them.
        max_items: items per task and split; 0 for all.
        metrics: for all tasks; () takes each task's own.
        max_new_tokens: of a generated answer; 0 takes what the longest reference needs.
        interpolation: shares of the tuned weights, 0 (base) to 1 (tuned), at which a run also
            scores the model in between, for the curve of what was learned against what was kept
            (WiSE-FT). Rows of these models say their share.
    """

    shots: tuple[int, ...] = (0,)
    exemplar_seeds: tuple[int, ...] = (0,)
    max_items: int = 0
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 0
    interpolation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.shots, default=0) < 0 or self.max_items < 0 or self.max_new_tokens < 0:
            raise InputError("config.evaluation: shots and counts must not be negative")
        if not self.exemplar_seeds:
            raise InputError("config.evaluation.exemplar_seeds: expected one or more numbers")
        for name in ("shots", "exemplar_seeds", "metrics", "interpolation"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"config.evaluation.{name}: expected each once, got {values}")
        check_metrics(self.metrics, "config.evaluation.metrics")
        for share in self.interpolation:
            check_share(share, "config.evaluation.interpolation")


Row = dict[str, Any]


class Scored(NamedTuple):
    """What of a task is scored, and by which metrics.

    Attributes:
        items: one a prompt.
        references: for each item all right answers; () for its own alone.
    """

    task: TaskData
    items: list[Example]
    references: list[tuple[str, ...]]
    metrics: tuple[str, ...]

    @property
    def needs(self) -> set[Need]:
        """What predictions must hold."""
        return {METRICS[metric].needs for metric in self.metrics}

    def shots(self, asked: Sequence[int]) -> Sequence[int]:
        """Numbers of examples before the question; texts that ask nothing have none."""
        return asked if any(e.messages for e in self.items) else (0,)


def evaluate(
    model: LanguageModel,
    data: DataSet,
    config: EvaluationConfig,
    *,
    name: str,
    split: str,
    shots: Sequence[int],
    mesh: Mesh | None = None,
    breakdown: bool = False,
    keep: Callable[[Line], object] | None = None,
) -> list[Row]:
    """Scores a model: one row per task, number of shots and metric, as results.json holds them.

    A row also says what its prompts cost, in "prompt_tokens", and how many exemplars the
    context had room for, in "shots_given": means over items.

    Args:
        name: stands in the rows' "model": "base", "tuned", ...
        split: whose items are scored; exemplars always come from the training split.
        breakdown: adds, behind all others, rows of a part of the items each: those of one
            "template", or those whose answer is one "class".
        keep: gets every item's prediction, soon after it was made.

    Raises:
        InputError: if a split is empty, a metric cannot be computed, or a prompt without
            any shots exceeds the context.
    """
    prepared = list(_prepared(data, config, split))
    for scored in prepared:
        if not scored.items:
            raise InputError(f"task {scored.task.config.name}: the {split} split is empty")
    rows, parts = [], []
    for scored in prepared:
        for count in scored.shots(shots):
            where = _where(name, scored, split, count)
            runs = [
                answer(
                    model,
                    scored.task,
                    scored.items,
                    scored.references,
                    shots=count,
                    seed=seed,
                    needs=scored.needs,
                    max_new_tokens=config.max_new_tokens,
                    mesh=mesh,
                    keep=None if keep is None else _as_lines(where, model, scored, seed, keep),
                )
                for seed in config.exemplar_seeds[: None if count else 1]
            ]
            rows += _rows(where, scored, runs)
            parts += _parts(where, scored, runs) if breakdown else []
    return rows + parts


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
    for scored in _prepared(data, config, split):
        if not scored.items:
            continue
        for template in sorted({e.template for e in scored.items}):
            for count in scored.shots(shots):
                for seed in config.exemplar_seeds:
                    exemplars(scored.task, template, count, seed)
        longest = max(scored.items, key=lambda e: sum(map(len, e.turns.texts())))
        needs = scored.needs
        new = num_new_tokens(model, scored.items, scored.references, needs, config.max_new_tokens)
        most = max(scored.shots(shots), default=0)
        ranks = needs != {"generated"}
        ask(model, scored.task, [longest], most, 0, scored=ranks, new_tokens=new)
        # Text of fewer bytes than half of what there is room for fits, whatever its tokens, beside
        # what the chat template adds.
        room = model.structure.context_length - new
        doubtful = [e for e in scored.items if len("".join(e.turns.texts()).encode()) > room // 2]
        for start in range(0, len(doubtful), ITEMS_AT_ONCE):
            some = doubtful[start : start + ITEMS_AT_ONCE]
            ask(model, scored.task, some, 0, 0, scored=ranks, new_tokens=new)


def having(data: DataSet, split: str) -> DataSet:
    """The tasks with items of a split; says which have none.

    Raises:
        InputError: if none has any.
    """
    tasks = tuple(task for task in data.tasks if task.splits[split])
    without = [task.config.name for task in data.tasks if not task.splits[split]]
    if not tasks:
        raise InputError(f"no task has a {split} split, so nothing can be scored")
    if without:
        print(f"not scored, without a {split} split: {', '.join(without)}", file=sys.stderr)
    return replace(data, tasks=tasks)


def baseline_rows(data: DataSet, config: EvaluationConfig, *, split: str) -> list[Row]:
    """What needs no model, beside every score that it has a value for.

    "majority" always gives the most frequent answer, "copy" gives back the input, and "random"
    is what choosing among the answer choices scores on average.
    """
    rows = []
    for scored in _prepared(data, config, split):
        task, items, references, metrics = scored
        if not items:
            continue
        for name, scores in (
            ("majority", majority_scores(task, items, references, metrics)),
            ("copy", copy_scores(task, items, references, metrics)),
            ("random", random_scores(items, metrics)),
        ):
            where = _where(name, scored, split, 0)
            rows += [_row(where, metric, score, len(items)) for metric, score in scores]
    return rows


def default_metrics(items: Sequence[Example]) -> tuple[str, ...]:
    """Accuracy and exact match where all items have choices, exact match elsewhere; of plain text
    how well its tokens are predicted.
    """
    if any(e.turns.plain for e in items):
        return ("token_accuracy", "perplexity")
    return ("accuracy", "exact_match") if all(e.choices for e in items) else ("exact_match",)


def _prepared(data: DataSet, config: EvaluationConfig, split: str) -> Iterator[Scored]:
    """Every task's items with what they are scored by; see `evaluate` for what is refused."""
    for task in data.tasks:
        items, references = one_a_prompt(task.splits[split], config.max_items)
        metrics = config.metrics or task.config.metrics or default_metrics(items)
        check_metrics(metrics, f"config.data.tasks: {task.config.name}.metrics")
        check_packages(metrics)
        scored = Scored(task, items, references, metrics)
        where = f"task {task.config.name}"
        if scored.needs & {"ranked", "calibrated"}:
            _refuse_unranked(where, items)
        if "generated" in scored.needs and any(e.turns.plain for e in items):
            raise InputError(
                f"{where}: is plain text, which asks nothing that could be answered; choose "
                "token_accuracy or perplexity as its metrics"
            )
        accepted = [a for e, r in zip(items, references, strict=True) for a in r or (e.completion,)]
        check_references(metrics, accepted, where)
        yield scored


def one_a_prompt(
    examples: Sequence[Example], max_items: int
) -> tuple[list[Example], list[tuple[str, ...]]]:
    """The first examples, and all right answers to each.

    Where free text answers the same prompt in several examples, they are one item with several
    references, so that none of them counts against the others. Plain text has no prompt.
    """
    items: list[Example] = []
    answers: list[list[str]] = []
    place: dict[object, int] = {}
    for example in examples:
        prompt = (example.template, tuple(tuple(sorted(m.items())) for m in example.messages))
        alone = bool(example.choices) or example.turns.plain
        number = len(items) if alone else place.setdefault(prompt, len(items))
        if number == len(items):
            items.append(example)
            answers.append([])
        right = dict.fromkeys(example.references or (example.completion,))
        answers[number] += [a for a in right if a not in answers[number]]
    size = max_items or len(items)
    return items[:size], [tuple(a) if len(a) > 1 else () for a in answers[:size]]


def _refuse_unranked(where: str, items: Sequence[Example]) -> None:
    without = next((e for e in items if not e.choices), None)
    if without:
        raise InputError(
            f"{where}: template {without.template!r} has no answer choices "
            "to rank; choose metrics that generate, such as exact_match"
        )


def _where(name: str, scored: Scored, split: str, shots: int) -> Row:
    return {"model": name, "task": scored.task.config.name, "split": split, "shots": shots}


def _row(where: Row, metric: str, score: Score, count: int, **more: Any) -> Row:
    return {
        **where, "metric": metric, "value": score.value, "count": count, "low": score.low,
        "high": score.high, **more,
    }  # fmt: skip


def _rows(where: Row, scored: Scored, runs: Sequence[Answers]) -> list[Row]:
    """Each metric over all items."""
    predictions = [run.predictions for run in runs]
    return [
        _row(where, metric, score(metric, predictions), len(scored.items), **_costs(runs))
        for metric in scored.metrics
    ]


def _parts(where: Row, scored: Scored, runs: Sequence[Answers]) -> list[Row]:
    """Each metric over the items of each template, and of each class, where there are several."""
    predictions = [run.predictions for run in runs]
    templates = sorted({e.template for e in scored.items})
    classes = _classes(scored.items)
    rows = []
    for metric in scored.metrics:
        for template in templates if len(templates) > 1 else ():
            part = [i for i, e in enumerate(scored.items) if e.template == template]
            found = score(metric, [[run[i] for i in part] for run in predictions])
            costs = _costs([run.of(part) for run in runs])
            rows.append(_row(where, metric, found, len(part), **costs, template=template))
        for label in classes if METRICS[metric].by_class else ():
            part = [i for i, e in enumerate(scored.items) if e.completion == label]
            found = class_score(metric, predictions, label)
            costs = _costs([run.of(part) for run in runs])
            rows.append(_row(where, metric, found, len(part), **costs, **{"class": label}))
    return rows


def _costs(runs: Sequence[Answers]) -> Row:
    """What prompts hold, on average over items and seeds."""
    return {
        "prompt_tokens": float(np.mean([run.prompt_tokens for run in runs])),
        "shots_given": float(np.mean([run.shots for run in runs])),
    }


def _classes(items: Sequence[Example]) -> list[str]:
    """The answers that occur, where every prompt of a template offers the same choices."""
    choices = {(e.template, e.choices) for e in items}
    if not all(e.choices for e in items) or len(choices) > len({t for t, _ in choices}):
        return []
    return sorted({e.completion for e in items})


def _as_lines(
    where: Row, model: LanguageModel, scored: Scored, seed: int, keep: Callable[[Line], object]
) -> Callable[[Example, Asked, Prediction], None]:
    """Gives `keep` each item of a run as a line."""
    seen: Counter[tuple[str, str]] = Counter()

    def one(item: Example, asked: Asked, prediction: Prediction) -> None:
        seen[item.template, item.exact] += 1
        repeat = seen[item.template, item.exact]  # of a task that keeps its repeats
        line = Line(
            **where,
            seed=seed,
            shots_given=asked.shots,
            template=item.template,
            key=item.exact if repeat == 1 else f"{item.exact} {repeat}",
            metrics=scored.metrics,
            prompt="" if item.turns.plain else model.chat.prompt_text(asked.messages),
            prediction=prediction,
        )
        keep(line)

    return one
