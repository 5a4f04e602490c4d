"""What comes out of a study's runs: rows, matrices, changes and costs, as results.json holds them.

Everything is computed from the files that the runs left, so it can be computed again.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ift_jax.config import RunConfig
from ift_jax.evaluation.forgetting import (
    PROBE_BASELINES,
    changes,
    matrix_entry,
    matrix_means,
    probes,
    score_matrix,
)
from ift_jax.evaluation.predictions import Line, read_lines
from ift_jax.evaluation.tasks import Row
from ift_jax.metrics_log import MetricsLog
from ift_jax.study.config import StudyRun
from ift_jax.study.findings import Model, findings
from ift_jax.study.plan import Planned, run_folder, scored_tasks, study_task

BASELINES = "baselines"


def base_shots(config: RunConfig) -> tuple[int, ...]:
    """The numbers of shots at which the base model is scored; 0 is always among them."""
    return tuple(sorted({0, *config.evaluation.shots}))


def base_part(shots: int) -> str:
    """The folder of the base model's scores at this number of shots."""
    return f"base-{shots}-shots"


def interpolated_part(key: str, share: float) -> str:
    """The folder of the scores of a model this share of the way to what a run made."""
    return f"{key}-at-{share:g}"


def study_results(config: RunConfig, workdir: Path, plan: Sequence[Planned]) -> dict[str, Any]:
    """Everything that results.json of a study holds; see `ift_jax.report.inputs`."""
    rows = _rows(config, workdir, plan)
    models = _models(config, workdir, plan)
    target, tasks = study_task(config), scored_tasks(config)
    counted = {label: _counted(rows, model) for label, model in models.items()}
    complete = [m for m in models.values() if m.plan and set(m.plan[0].scores) == set(tasks)]
    reference = reference_run(config)
    before = models[reference.after or "base" if reference else "base"].label
    retained = [
        t for t in tasks if t != target and (t, _first_metric(models, t)) in counted[before]
    ]
    results: dict[str, Any] = {
        "rows": rows,
        "target": target,
        "retained": retained,
        "probes": _probe_entries(rows, before, target, counted[before]),
        "runs": [f"runs/{planned.key}" for planned in sorted(plan, key=_in_report(config))],
        "matrices": [_matrix(m, models, target, counted) for m in complete],
        "changes": [
            {**row, "model": m.label, "before": _before(m, models).label, "after": m.label}
            for m in complete
            for row in changes(
                _before(m, models).lines, m.lines, counted=counted[_before(m, models).label]
            )
        ],
        "drift": [entry for planned in plan for entry in _drift(workdir, planned)],
        "costs": [_cost(workdir, planned) for planned in plan],
    }
    results["findings"] = findings(config, results, models, reference)
    return results


def _in_report(config: RunConfig) -> Callable[[Planned], tuple[int, bool]]:
    """Where a run stands among others: a seed behind the other, its learning curve last."""
    return lambda planned: (config.study.seeds.index(planned.seed), planned.train_size > 0)


def _rows(config: RunConfig, workdir: Path, plan: Sequence[Planned]) -> list[Row]:
    rows = list(_part_rows(workdir, BASELINES))
    for shots in base_shots(config):
        own = [row for row in _part_rows(workdir, base_part(shots)) if row["shots"] == shots]
        rows += [{**row, "stage": 0} for row in own]
    for planned in plan:
        where: dict[str, Any] = {"seed": planned.seed, "stage": planned.stage}
        if planned.train_size:
            where["train_size"] = planned.train_size
        own = [{**row, **where} for row in _part_rows(workdir, planned.key)]
        rows += own
        if planned.run.interpolations:
            start = planned.after or base_part(0)
            ends = [(0.0, _part_rows(workdir, start)), (1.0, own)]
            middle = [
                (share, _part_rows(workdir, interpolated_part(planned.key, share)))
                for share in planned.run.interpolations
            ]
            for share, part in sorted([*ends, *middle], key=lambda pair: pair[0]):
                rows += [
                    {**row, **where, "model": planned.run.name, "interpolation": share}
                    for row in part
                    if not row.keys() & {"template", "class"} and row["task"] in planned.scores
                ]
    return rows


def _part_rows(workdir: Path, key: str) -> list[Row]:
    text = (run_folder(workdir, key) / "results.json").read_text(encoding="utf-8")
    return json.loads(text)["rows"]


def part_lines(workdir: Path, key: str) -> list[Line]:
    """Every item's prediction of a part."""
    return read_lines(run_folder(workdir, key) / "predictions.jsonl")


def _models(config: RunConfig, workdir: Path, plan: Sequence[Planned]) -> dict[str, Model]:
    """By label: the base model at each number of shots, each run, each interpolation of one."""
    models = {}
    for shots in base_shots(config):
        label = f"base at {shots} shots" if shots else "base"
        # Plain text, which asks nothing, is scored without shots in each of these parts.
        lines = [one for one in part_lines(workdir, base_part(shots)) if one.shots == shots]
        models[label] = Model("base", label, [], lines)
    for planned in plan:
        name = planned.run.name
        size = f" of {planned.train_size}" if planned.train_size else ""
        parts = [(f"{name}{size}", planned.key)]
        parts += [
            (f"{name}{size} at {share:g}", interpolated_part(planned.key, share))
            for share in planned.run.interpolations
        ]
        for label, key in parts:
            model = models.setdefault(label, Model(name, label, [], []))
            model.plan.append(planned)
            model.lines.extend(
                line._replace(model=label, seed=planned.seed) for line in part_lines(workdir, key)
            )
    return models


def _before(model: Model, models: dict[str, Model]) -> Model:
    """What a model was tuned from."""
    return models[model.plan[0].run.after or "base"]


def _chain(model: Model, models: dict[str, Model]) -> list[Model]:
    """The base model, and every tuning up to this one."""
    chain = [model]
    while chain[0].plan:
        chain.insert(0, _before(chain[0], models))
    return chain


def _counted(rows: Iterable[Row], model: Model) -> set[tuple[str, str]]:
    """The (task, metric) pairs in which a model beats the baselines, with every seed."""
    whole = [row for row in rows if "interpolation" not in row]
    if model.label != model.name:  # a point of a curve: nothing goes on from it
        return set()
    found = []
    seeds: list[int | None] = [planned.seed for planned in model.plan] or [None]
    for seed in seeds:
        own = [row for row in whole if row["model"] in PROBE_BASELINES]
        own += [r for r in whole if r["model"] == model.name and r.get("seed") == seed]
        found.append({(p.task, p.metric) for p in probes(own, before=model.name) if p.counted})
    return set.intersection(*found)


def _first_metric(models: dict[str, Model], task: str) -> str:
    return next(line.metrics[0] for line in models["base"].lines if line.task == task)


def _probe_entries(
    rows: Sequence[Row], before: str, target: str, counted: set[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Which probes count for the model that the study's task is tuned from, and why."""
    models = (*PROBE_BASELINES, before)
    own = [r for r in rows if "interpolation" not in r and r["model"] in models]
    asked = probes(own, before=before)
    shown = {(probe.task, probe.metric): probe for probe in reversed(asked)}
    # Where a probe does not count, a seed says why in which it does not.
    shown |= {(p.task, p.metric): p for p in reversed(asked) if not p.counted}
    return [
        {"before": before, **shown[key]._asdict(), "counted": key in counted}
        for key in dict.fromkeys((probe.task, probe.metric) for probe in asked)
        if key[0] != target
    ]


def reference_run(config: RunConfig) -> StudyRun | None:
    """The plain tuning on the study's task alone that other runs are compared with."""
    everything = set(scored_tasks(config))
    plain = [
        run
        for run in config.study.runs
        if set(run.tasks) <= {study_task(config)}
        and not (run.replay or run.train_sizes)
        and set(run.scores or everything) == everything
    ]
    return next((run for run in plain if run.after), plain[0] if plain else None)


def _matrix(
    model: Model,
    models: dict[str, Model],
    target: str,
    counted: dict[str, set[tuple[str, str]]],
) -> dict[str, Any]:
    """R[i][j] of the tunings that led to a model; means are over the probes that count."""
    chain = _chain(model, models)
    scores = score_matrix([one.lines for one in chain])
    trained = [(), *(one.plan[0].trains for one in chain[1:])]
    learned = [
        next((i for i, tasks in enumerate(trained) if task in tasks), 0) for task in scores.tasks
    ]
    entry = matrix_entry(model.label, [one.label for one in chain], scores)
    known = counted[chain[-2].label]
    kept = [
        (task, stage)
        for task, metric, stage in zip(scores.tasks, scores.metrics, learned, strict=True)
        if task != target and (task, metric) in known
    ]
    if kept:
        own = scores.subset([task for task, _ in kept])
        entry |= matrix_means(own, [stage for _, stage in kept], before=len(chain) - 2)
    return entry


def _drift(workdir: Path, planned: Planned) -> list[dict[str, Any]]:
    """How far a run went from where it started, without the weights one by one."""
    path = run_folder(workdir, planned.key) / "results.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["drift"]
    size = f" of {planned.train_size}" if planned.train_size else ""
    return [
        {
            **entry,
            "model": f"{planned.run.name}{size}",
            "before": planned.run.after or "base",
            "seed": planned.seed,
        }
        for entry in entries
        if not entry["measure"].startswith("relative") or entry["measure"].endswith("all weights")
    ]


def _cost(workdir: Path, planned: Planned) -> dict[str, Any]:
    """What a run took: steps, tokens, and seconds of its steps, compilation included."""
    folder = run_folder(workdir, planned.key)
    steps = [line for line in MetricsLog.lines(folder / "metrics.jsonl") if "loss" in line]
    scored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    cost: dict[str, Any] = {
        "model": planned.run.name,
        "seed": planned.seed,
        "steps": len(steps),
        "tokens": int(sum(line["tokens"] for line in steps)),
        "trained_tokens": int(sum(line["trained_tokens"] for line in steps)),
        "training_s": sum(line["tokens"] / line["tokens_per_s"] for line in steps),
        "scoring_s": scored["scoring_s"],
    }
    if planned.train_size:
        cost["train_size"] = planned.train_size
    return cost
