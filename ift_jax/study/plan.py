"""What a study does, as a list: which runs, by which configs, in which folders."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_jax.config import RunConfig, build_run_config, field_type
from ift_jax.errors import InputError
from ift_jax.study.config import StudyConfig, StudyRun

# Set by the plan itself.
_OWN = ("study", "model.path", "model.new_tokens", "train.seed", "evaluation", "mesh")


@dataclass(frozen=True)
class Planned:
    """One run of one seed, and of one number of training examples where there are several.

    Attributes:
        key: the name of its folder in W/runs.
        run: the entry of `study.runs`.
        train_size: of a learning curve; 0 elsewhere.
        config: the whole config of the run, a workdir of `ift train`.
        after: the key of the run that it goes on from; "" for config.model.path.
        stage: 1 for the first tuning, 2 for one that goes on from it, ...
        trains: all tasks that it trains.
        scores: the tasks that it is scored on.
    """

    key: str
    run: StudyRun
    seed: int
    train_size: int
    config: RunConfig
    after: str
    stage: int
    trains: tuple[str, ...]
    scores: tuple[str, ...]


def study_task(config: RunConfig) -> str:
    """The task that is to be learned."""
    return config.study.task or config.data.tasks[0].name


def scored_tasks(config: RunConfig) -> tuple[str, ...]:
    """The study's task and its probes, in the order of data.tasks."""
    names = [task.name for task in config.data.tasks]
    target = study_task(config)
    probes = config.study.probes or [name for name in names if name != target]
    return tuple(name for name in names if name == target or name in probes)


def run_folder(workdir: Path, key: str) -> Path:
    """Where a run lies."""
    return workdir / "runs" / key


def make_plan(config: RunConfig, workdir: Path) -> list[Planned]:
    """All runs, each behind what it goes on from.

    Raises:
        InputError: for names of tasks that there are not, and for what a run's `config` sets, as
            on the command line.
    """
    _check_names(config)
    _check_curves(config)
    stages: dict[str, int] = {"": 0}
    for run in config.study.runs:
        stages[run.name] = stages[run.after] + 1
    plan: list[Planned] = []
    # A whole seed after the other: a study that is stopped has finished some of them.
    for seed in config.study.seeds:
        for number, run in enumerate(config.study.runs):
            after = f"{run.after}-seed{seed}" if run.after else ""
            for size in run.train_sizes or (0,):
                size_name = f"-{size}" if size else ""
                made = Planned(
                    key=f"{run.name}{size_name}-seed{seed}",
                    run=run,
                    seed=seed,
                    train_size=size,
                    config=_run_config(config, number, seed, size, workdir, after),
                    after=after,
                    stage=stages[run.name],
                    trains=_trained(config, run),
                    scores=run.scores or scored_tasks(config),
                )
                _check_quantized(made, plan)
                plan.append(made)
    return plan


def _check_quantized(made: Planned, plan: Sequence[Planned]) -> None:
    """Weights that stand for codes of a few bits are not quantized again."""
    kind = made.config.model.quantize
    before = next((one for one in plan if one.key == made.after), None)
    if kind != "none" and before is not None and before.config.model.quantize != "none":
        raise InputError(
            f"config.study.runs: {made.run.name}: config.model.quantize={kind!r}: the base of "
            f"{made.run.after}, which it goes on from, is quantized; leave it out of either"
        )


def _trained(config: RunConfig, run: StudyRun) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(run.tasks or (study_task(config),)), *run.replay]))


def _check_names(config: RunConfig) -> None:
    if config.data.prepared:
        raise InputError(
            "config.data.prepared: a study makes a data set for each of its runs; leave it empty"
        )
    if not config.data.tasks:
        raise InputError("config.data.tasks: no task is given")
    if not config.study.runs:
        raise InputError("config.study.runs: no run is given")
    if config.evaluation.interpolation:
        raise InputError(
            "config.evaluation.interpolation: a study scores weights that lie between by the "
            "interpolations of its runs (config.study.runs); leave it empty"
        )
    study: StudyConfig = config.study
    names = [task.name for task in config.data.tasks]
    lists: list[tuple[str, Sequence[str], Sequence[str]]] = [
        ("config.study.task", [study_task(config)], names),
        ("config.study.probes", study.probes, names),
    ]
    scored = scored_tasks(config)
    for run in study.runs:
        where = f"config.study.runs: {run.name}"
        lists.append((f"{where}.tasks", run.tasks, names))
        lists.append((f"{where}.replay", run.replay, names))
        lists.append((f"{where}.scores", run.scores, scored))
        before = next((one for one in study.runs if one.name == run.after), None)
        earlier = before.scores if before else ()
        for task in (run.scores or scored) if earlier else ():
            if task not in earlier:
                raise InputError(
                    f"{where}: is scored on {task}, and {run.after}, which it goes on from, is "
                    f"not; add it to the scores of {run.after}, or leave it out of these"
                )
    for where, given, known in lists:
        for name in given:
            if name not in known:
                raise InputError(f"{where}: no task {name!r}; there are {', '.join(known)}")


def _check_curves(config: RunConfig) -> None:
    """A learning curve trains the study's task, and is scored on it."""
    target = study_task(config)
    for run in config.study.runs:
        where = f"config.study.runs: {run.name}"
        if run.train_sizes and target not in _trained(config, run):
            raise InputError(
                f"{where}.train_sizes: are numbers of examples of {target}, which it does not "
                "train; add it to tasks"
            )
        if run.train_sizes and target not in (run.scores or (target,)):
            raise InputError(
                f"{where}.scores: a learning curve is of {target}; add it to them, or leave out "
                "train_sizes"
            )


def _run_config(
    config: RunConfig, number: int, seed: int, size: int, workdir: Path, after: str
) -> RunConfig:
    run = config.study.runs[number]
    tree = dataclasses.asdict(config)
    tree["study"] = dataclasses.asdict(StudyConfig())
    tree["train"]["seed"] = seed
    if after:
        tree["model"]["path"] = str(run_folder(workdir, after).resolve())
        tree["model"]["quantize"] = "none"  # as that run left it, unless this one's config says so
    if not run.replay:
        tree["data"]["mixture"]["replay_share"] = 0.0
    tree["train"]["eval_tasks"] = "trained"
    trained = _trained(config, run)
    for task in tree["data"]["tasks"]:
        task["replay"] = task["name"] in run.replay
        if task["name"] not in trained:
            # It stays in the data set, so that what is trained holds nothing of its test split,
            # and samples of all runs are of the same prompts.
            task["weight"] = 0.0
        if size and task["name"] == study_task(config):
            task["train_size"] = size
    where = f"config.study.runs[{number}].config"
    for name, value in run.config.items():
        _set_field(tree, name, value, where)
    try:
        made = build_run_config(tree)
    except InputError as error:
        raise InputError(f"config.study.runs: {run.name}: {error}") from error
    for made_task in made.data.tasks:
        if made_task.name in trained and not made_task.weight:
            raise InputError(
                f"config.study.runs: {run.name}: trains {made_task.name}, whose weight is 0, so "
                "that nothing of it would be drawn; give the task a weight"
            )
    return made


def _set_field(tree: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Sets a field by its dotted name. Raises InputError, with `where`, if there is none."""
    if name in _OWN or name.partition(".")[0] in _OWN:
        raise InputError(f"{where}: {name} is the study's to set, not a run's")
    try:
        field_type(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    place: Any = tree
    *way, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", name)]
    try:
        for part in way:
            place = place[part]
        place[last] = copy.deepcopy(dict(value) if isinstance(value, Mapping) else value)
    except IndexError:
        raise InputError(f"{where}: {name}: there is no such entry, counted from 0") from None
