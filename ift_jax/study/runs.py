"""A study from config to results: every run is trained and scored once, in a folder of its own."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import RunConfig, differences, read_run_config, to_json
from ift_jax.data import pipeline
from ift_jax.data.config import SPLITS
from ift_jax.data.files import locked, replace_text
from ift_jax.errors import InputError
from ift_jax.evaluation.drift import drift_entries
from ift_jax.evaluation.metrics import METRICS
from ift_jax.evaluation.tasks import Row, baseline_rows, check_scoring, evaluate
from ift_jax.language_model import LanguageModel
from ift_jax.pretrained import load_configured
from ift_jax.report.page import leave_report
from ift_jax.sharding import make_mesh
from ift_jax.study.config import StudyConfig
from ift_jax.study.outcome import (
    BASELINES,
    base_part,
    base_shots,
    interpolated_part,
    study_results,
)
from ift_jax.study.plan import Planned, make_plan, run_folder, scored_tasks
from ift_jax.study.summary import summary_text
from ift_jax.train.run import (
    alone_in,
    base_of,
    check_batch,
    check_frozen,
    check_mergeable,
    check_run,
    claim_workdir,
    refuse_other_data,
    tune,
    with_full_path,
)

HASHES = "data_hashes.json"
RUN_SHOTS = (0,)  # at which runs are scored; only the base is asked behind examples


def study(config: RunConfig, workdir: str | Path) -> dict[str, Any]:
    """Scores the base model, makes and scores all runs, and writes what comes out of them.

    Every run is a workdir of `ift train` under W/runs. Started again on the same W, a study goes
    on exactly where it stopped, and what is finished is not repeated. It can be given more
    runs, train_sizes and seeds; no other field may change.

    Returns:
        What results.json holds; `ift_jax.report.inputs` describes it.

    Raises:
        InputError: for a config, file or workdir that cannot be used, before anything runs.
    """
    workdir = Path(workdir)
    plan = make_plan(config, workdir)
    _check_metrics(config)
    stored = with_full_path(config)
    _claim(stored, workdir, plan)
    todo = _unfinished(config, workdir, plan)
    if todo:
        mesh = make_mesh(config.mesh)
        with alone_in(workdir), jax.set_mesh(mesh):
            _work(config, stored, workdir, plan, todo, mesh)
    else:
        with locked(workdir) as is_mine:
            for planned in plan if is_mine else ():  # not done if it was stopped at its very end
                _tidy(run_folder(workdir, planned.key), keep_model=True)
    replace_text(workdir / "config.json", to_json(stored))
    results = study_results(config, workdir, plan)
    replace_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    print(summary_text(results))
    leave_report(workdir)
    return results


def _claim(config: RunConfig, workdir: Path, plan: Sequence[Planned]) -> None:
    """Makes the folder, or checks that it holds this study, or less of it."""
    if not (workdir / "config.json").exists():
        claim_workdir(config, workdir)
        return
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir}: is a workdir of `ift train`; choose another --workdir")
    # What has become of `study` shows in the configs of the runs, below.
    alone = [
        dataclasses.replace(one, study=StudyConfig()) for one in (read_run_config(workdir), config)
    ]
    if found := differences(*alone):
        raise InputError(
            f"{workdir}: holds a study with another config; {found[0]}; choose another --workdir"
        )
    for planned in plan:
        folder = run_folder(workdir, planned.key)
        if (folder / "config.json").exists():
            claim_workdir(with_full_path(planned.config), folder)
        asks = f"config.study.runs: {planned.run.name}.scores and config.study.probes ask for"
        for key in _parts(planned):
            _check_scored(workdir, key, planned.scores, asks)
    for key in _base_parts(config):
        _check_scored(workdir, key, scored_tasks(config), "config.study.probes asks for")


def _check_scored(workdir: Path, key: str, tasks: Sequence[str], asks: str) -> None:
    """Refuses a finished part that was scored on other tasks than it should have been."""
    if not _is_finished(workdir, key):
        return
    folder = run_folder(workdir, key)
    results = _read(folder)
    # Some tasks have no baseline, as plain text has none, so that rows do not tell.
    scored = set(results.get("tasks") or (row["task"] for row in results["rows"]))
    if scored != set(tasks):
        raise InputError(
            f"{folder}: was scored on {', '.join(sorted(scored))}, not on what {asks}; choose "
            "another --workdir"
        )


def _hashes(data: pipeline.DataSet) -> dict[str, dict[str, str]]:
    """Of all splits."""
    return {
        task.config.name: {name: pipeline.content_hash(task.splits[name]) for name in SPLITS}
        for task in data.tasks
    }


def _check_metrics(config: RunConfig) -> None:
    """A task's first metric stands in the matrix, so more of it must be better."""
    for task in config.data.tasks:
        metrics = config.evaluation.metrics or task.metrics
        if metrics and metrics[0] in METRICS and not METRICS[metrics[0]].higher_is_better:
            raise InputError(
                f"config.data.tasks: {task.name}.metrics: a study compares by the first, of which "
                f"more must be better; {metrics[0]} cannot be it"
            )


def _unfinished(config: RunConfig, workdir: Path, plan: Sequence[Planned]) -> list[str]:
    """Keys of what has no results yet."""
    keys = [*_base_parts(config), *(key for planned in plan for key in _parts(planned))]
    return [key for key in keys if not _is_finished(workdir, key)]


def _base_parts(config: RunConfig) -> list[str]:
    """What is scored without training."""
    return [BASELINES, *(base_part(shots) for shots in base_shots(config))]


def _parts(planned: Planned) -> list[str]:
    """A run, and the weights between it and what it went on from."""
    shares = planned.run.interpolations
    return [planned.key, *(interpolated_part(planned.key, share) for share in shares)]


def _is_finished(workdir: Path, key: str) -> bool:
    return (run_folder(workdir, key) / "results.json").exists()


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def _work(
    config: RunConfig,
    stored: RunConfig,
    workdir: Path,
    plan: Sequence[Planned],
    todo: Sequence[str],
    mesh: Mesh,
) -> None:
    """All that is unfinished."""
    base = load_configured(config.model, mesh)
    known = pipeline.Known()
    whole = pipeline.build(config.data, base.chat, known)
    names = scored_tasks(config)
    data = _only(whole, names)
    _check(config, workdir, plan, todo, base, data, known, mesh)
    hashes, kept = _hashes(whole), workdir / HASHES
    if kept.exists():
        refuse_other_data(json.loads(kept.read_text(encoding="utf-8")), hashes, workdir, "study")
    # Only now, so that a study that could not begin leaves the folder free for another; and the
    # config first, since a folder with other files and no config belongs to nobody.
    replace_text(workdir / "config.json", to_json(stored))
    replace_text(kept, json.dumps(hashes, indent=2) + "\n")
    told = _Progress(len(todo))
    if BASELINES in todo:
        told.begin(BASELINES, "scored")
        rows = baseline_rows(data, config.evaluation, split="test")
        _write(run_folder(workdir, BASELINES), rows, tasks=names)
    for shots in base_shots(config):
        if base_part(shots) in todo:
            told.begin(base_part(shots), "scored")
            folder = run_folder(workdir, base_part(shots))
            _score(base, data, config, folder, name="base", shots=shots, mesh=mesh)
    del base  # the runs load their own
    for planned in plan:
        folder = run_folder(workdir, planned.key)
        own = _only(data, planned.scores)
        if planned.key in todo:
            told.begin(planned.key, "trained and scored")
            tuned = tune(planned.config, folder, mesh, known, shots=RUN_SHOTS)
            before = base_of(planned.config, mesh, tuned.model)
            drift = drift_entries(planned.run.name, before, tuned.model, tuned.texts, mesh)
            del before
            also = {"chosen": tuned.chosen.to_json(), "drift": drift}
            _score(tuned.model, own, config, folder, name=planned.run.name, mesh=mesh, also=also)
            del tuned
        for share in planned.run.interpolations:
            key = interpolated_part(planned.key, share)
            if key in todo:
                told.begin(key, "scored")
                model = _between(planned.config, folder, share, mesh)
                into = run_folder(workdir, key)
                _score(model, own, config, into, name=planned.run.name, mesh=mesh)
                del model
        needed = any(one.after == planned.key for one in plan)
        _tidy(folder, keep_model=config.study.keep_models or needed)


def _only(data: pipeline.DataSet, names: Sequence[str]) -> pipeline.DataSet:
    tasks = tuple(task for task in data.tasks if task.config.name in names)
    return dataclasses.replace(data, tasks=tasks)


def _check(
    config: RunConfig,
    workdir: Path,
    plan: Sequence[Planned],
    todo: Sequence[str],
    base: LanguageModel,
    data: pipeline.DataSet,
    known: pipeline.Known,
    mesh: Mesh,
) -> None:
    """Refuses, before anything runs, what would fail later.

    Raises:
        InputError: naming the run and the field.
    """
    for task in data.tasks:
        if not task.splits["test"]:
            raise InputError(f"task {task.config.name}: the test split is empty, nothing is scored")
    check_scoring(base, data, config.evaluation, split="test", shots=base_shots(config))
    held_out = {e.key: task.config.name for task in data.tasks for e in task.splits["test"]}
    for planned in plan:
        if planned.key not in todo:
            _check_kept(run_folder(workdir, planned.key), planned, plan, todo)
            continue
        try:
            check_frozen(planned.config)
            check_batch(planned.config, mesh)
            made = pipeline.build(planned.config.data, base.chat, known)
            made.counts()
            check_run(planned.config, base, made, RUN_SHOTS)
            if planned.config.peft.method != "none":
                base.adapter_for(planned.config.peft)
            if planned.run.interpolations:
                check_mergeable(planned.config.peft, base, "interpolations")
            if following := [one.run.name for one in plan if one.after == planned.key]:
                check_mergeable(planned.config.peft, base, f"{following[0]}.after")
        except InputError as error:
            raise InputError(f"config.study.runs: {planned.run.name}: {error}") from error
        for task in made.trained():
            leaked = next((e for e in task.splits["train"] if e.key in held_out), None)
            if leaked:
                raise InputError(
                    f"config.study.runs: {planned.run.name}: it would train on text of the test "
                    f"split of {held_out[leaked.key]} ({leaked.origin}); its config must leave the "
                    "splits as they are"
                )


def _check_kept(
    folder: Path, planned: Planned, plan: Sequence[Planned], todo: Sequence[str]
) -> None:
    """Refuses parts that need the model of a finished run, where it was deleted."""
    wanted = [one.key for one in plan if one.after == planned.key]
    wanted += _parts(planned)[1:]
    needing = [key for key in wanted if key in todo]
    if needing and not (folder / "checkpoints").exists():
        raise InputError(
            f"config.study.runs: {needing[0]} needs the model of {planned.key}, which was deleted "
            f"(config.study.keep_models=False); delete {folder} to make it anew, or leave out what "
            "needs it"
        )


def _score(
    model: LanguageModel,
    data: pipeline.DataSet,
    config: RunConfig,
    folder: Path,
    *,
    name: str,
    mesh: Mesh,
    shots: int = 0,
    also: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Scores a model on the test split; leaves rows and every item's prediction in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        rows = evaluate(
            model,
            data,
            config.evaluation,
            name=name,
            split="test",
            shots=(shots,),
            mesh=mesh,
            breakdown=True,
            keep=lambda line: file.write(line.to_json()),
        )
    _write(folder, rows, scoring_s=time.monotonic() - started, **also)


def _write(folder: Path, rows: list[Row], **more: Any) -> None:
    """The results of a part; that they exist says that it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "results.json", json.dumps({"rows": rows, **more}, indent=2) + "\n")


def _between(config: RunConfig, folder: Path, share: float, mesh: Mesh) -> LanguageModel:
    """The model whose weights lie between the one that a run went on from and the one it made."""
    model = config.model
    return load_workdir(
        folder, dtype=model.dtype, param_dtype=model.param_dtype, mesh=mesh, share=share
    )


def _tidy(folder: Path, *, keep_model: bool) -> None:
    """Removes what nobody needs of a finished run's checkpoints."""
    if not (folder / "checkpoints").exists():
        return
    shutil.rmtree(folder / "fisher", ignore_errors=True)  # as large as the model
    checkpoints = Checkpoints(folder)
    checkpoints.finish(keep_params=keep_model)
    checkpoints.close()


class _Progress:
    """Says on stderr what is being done, of how much."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0

    def begin(self, key: str, what: str) -> None:
        self.number += 1
        print(f"study, part {self.number} of {self.total}: {key} is {what}", file=sys.stderr)
