"""A run from config to results: load, prepare, train, validate, checkpoint, score."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from ift_jax.batch import Batch
from ift_jax.checkpoint import Checkpoints
from ift_jax.config import RunConfig, differences, read_run_config, to_json
from ift_jax.data import pipeline
from ift_jax.data.files import replace_text
from ift_jax.data.loader import Batches
from ift_jax.data.prepared import load_data
from ift_jax.data.rows import packed_rows
from ift_jax.errors import InputError
from ift_jax.evaluation.tasks import Row, baseline_rows, check_scoring, evaluate
from ift_jax.hf.folder import read_json
from ift_jax.language_model import LanguageModel, load_pretrained
from ift_jax.metrics_log import MetricsLog
from ift_jax.models import decoder
from ift_jax.report.table import results_table
from ift_jax.sharding import make_mesh, num_row_shards, place_batch
from ift_jax.train.loss import LossSums, loss_sums
from ift_jax.train.optimizer import make_optimizer, make_schedule
from ift_jax.train.step import StepMetrics, TrainState, make_step, place_state


def train(config: RunConfig, workdir: str | Path) -> list[Row]:
    """Trains, scores base and tuned model on the test split, and writes the workdir.

    Run again on the same workdir, it goes on exactly where it stopped; a finished run only
    shows its results.

    Returns:
        The rows of results.json.

    Raises:
        InputError: for a config, file or workdir that cannot be used.
    """
    workdir = Path(workdir)
    stored = with_full_path(config)
    claim_workdir(stored, workdir)
    results = workdir / "results.json"
    if results.exists():
        rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
        print(results_table(rows))
        return rows
    mesh = make_mesh(config.mesh)
    _check_batch(config, mesh)
    with jax.set_mesh(mesh):
        base = load_base(config, mesh)
        data = load_data(config.data, base.chat)
        check_run(config, base, data)
        # Only now, so that a run that could not begin leaves the folder free for another.
        replace_text(workdir / "config.json", to_json(stored))
        pipeline.write_card(data, workdir / "data")
        best = fit(config, workdir, mesh, base, data)
        base = base.with_params(None)  # type: ignore[arg-type]  # training consumed them
        rows = final_scores(config, mesh, base, data, best)
    replace_text(results, json.dumps({"rows": rows}, indent=2) + "\n")
    print(results_table(rows))
    return rows


def with_full_path(config: RunConfig) -> RunConfig:
    """The config with a local model's path made absolute: a workdir can be used from anywhere."""
    path = Path(config.model.path).expanduser()
    if not path.exists():
        return config
    model = dataclasses.replace(config.model, path=str(path.resolve()))
    return dataclasses.replace(config, model=model)


def check_run(config: RunConfig, base: LanguageModel, data: pipeline.DataSet) -> None:
    """Refuses what would otherwise fail only after training.

    Raises:
        InputError: naming the field.
    """
    limit = base.structure.config.max_positions
    if config.data.max_length > limit:
        raise InputError(
            f"config.data.max_length={config.data.max_length}: the model's context is {limit}"
        )
    if config.train.select_by == "accuracy":
        _ranked(data)
    check_scoring(base, data, config.evaluation, split="test", shots=config.evaluation.shots)


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Makes the workdir, or checks that it belongs to this very config.

    Raises:
        InputError: if it cannot be written, is no workdir, or holds another config.
    """
    if (workdir / "config.json").exists():
        if "model_type" in read_json(workdir / "config.json"):
            raise InputError(f"{workdir}: is a Hugging Face folder; choose another --workdir")
        found = differences(read_run_config(workdir), config)
        if found:
            raise InputError(
                f"{workdir}: holds a run with another config; {found[0]}"
                + (f" (and {len(found) - 1} more)" if found[1:] else "")
                + "; choose another --workdir"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if any(workdir.iterdir()):
            raise InputError(f"{workdir}: is not empty and holds no run; choose another --workdir")
        probe = workdir / "writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written ({error.strerror})") from error


def load_base(config: RunConfig, mesh: Mesh) -> LanguageModel:
    """The base model, its parameters on the mesh."""
    model = config.model
    return load_pretrained(
        model.path, dtype=model.dtype, param_dtype=model.param_dtype, remat=model.remat, mesh=mesh
    )


class Packed(NamedTuple):
    """A split as batches, and the tokens that all its examples begin with."""

    batches: Batches
    prefix: jax.Array


def pack_split(
    config: RunConfig, data: pipeline.DataSet, split: str, *, num_epochs: float
) -> Packed:
    """Tokenizes and packs a split.

    Raises:
        InputError: if it has no example, or one that a row has no room for.
    """
    rows, prefix = packed_rows(data, split, config.train.seed)
    part = (jax.process_index(), jax.process_count()) if split == "train" else (0, 1)
    batches = Batches(rows, config.train.batch_size, num_epochs, part)
    return Packed(batches, jnp.asarray(prefix))


def fit(
    config: RunConfig, workdir: Path, mesh: Mesh, base: LanguageModel, data: pipeline.DataSet
) -> decoder.Params:
    """Trains from the last checkpoint, or from the start, to the last step.

    Consumes the base model's parameters. Returns those of the best checkpoint.
    """
    started = time.monotonic()
    settings = config.train
    packed = pack_split(
        config,
        data,
        "train",
        num_epochs=0 if settings.num_steps else settings.num_epochs,
    )
    num_steps = settings.num_steps or packed.batches.num_steps
    optimizer = make_optimizer(config.optimizer, num_steps)
    step_fn = jax.jit(
        make_step(base.structure, optimizer, settings.micro_batches, packed.prefix),
        donate_argnums=0,
    )
    state = place_state(base.params, optimizer, mesh)
    checkpoints = Checkpoints(workdir)
    latest = checkpoints.latest()
    if latest is not None:
        state = checkpoints.restore(latest, state)
    first = int(state.step)
    validation = None
    if data.examples("validation"):
        validation = pack_split(config, data, "validation", num_epochs=1)
    schedule = make_schedule(config.optimizer, num_steps)
    log = MetricsLog(workdir, first)
    print(
        f"{packed.batches.source.summary()}; {len(packed.prefix)} tokens that all begin with "
        f"stand beside; steps {first} to {num_steps} of {settings.batch_size} rows",
        file=sys.stderr,
    )
    bar = progress_bar(first, num_steps)
    pending: tuple[int, StepMetrics] | None = None
    before = time.monotonic()
    for step, host_batch in zip(
        range(first, num_steps), packed.batches.from_step(first), strict=False
    ):
        batch = place_batch(host_batch, mesh)
        state, metrics = step_fn(state, batch)
        # Reading the step before last keeps the device busy while the host reads.
        before = _report(pending, log, bar, schedule, before)
        pending = (step + 1, metrics)
        if step == first:
            jax.block_until_ready(metrics)
            tqdm.write(f"first step after {time.monotonic() - started:.1f} s", file=sys.stderr)
        validates = step + 1 == num_steps or _due(settings.eval_every, step + 1)
        if validates or _due(settings.save_every, step + 1):
            _report(pending, log, bar, schedule, before)
            pending = None
            score = (
                _validate(config, base, data, state, validation, mesh, log) if validates else None
            )
            checkpoints.save(state, score)
            before = time.monotonic()
    bar.close()
    log.close()
    best = checkpoints.choose("best")
    params = state.params
    del state
    if best != num_steps:
        params = checkpoints.restore_params(best, params)
    checkpoints.close()
    print(f"best checkpoint: step {best}", file=sys.stderr)
    return params


def progress_bar(first: int, num_steps: int) -> Any:
    """A bar with time left; rarely redrawn where nobody watches."""
    watched = sys.stderr.isatty()
    return tqdm(
        initial=first,
        total=num_steps,
        unit="step",
        dynamic_ncols=watched,
        mininterval=0.5 if watched else 30.0,
        file=sys.stderr,
    )


def _report(
    pending: tuple[int, StepMetrics] | None,
    log: MetricsLog,
    bar: Any,
    schedule: optax.Schedule,
    before: float,
) -> float:
    """Logs a finished step; returns the time from which the next is counted."""
    if pending is None:
        return before
    step, metrics = pending
    sums = metrics.sums
    loss, accuracy = divided(sums)  # waits for the step
    now = time.monotonic()
    speed = float(sums.tokens) / max(now - before, 1e-9)
    log.write(
        step,
        {
            "loss": loss,
            "token_accuracy": accuracy,
            "tokens": float(sums.tokens),
            "trained_tokens": float(sums.weight),
            "learning_rate": float(schedule(step - 1)),
            "gradient_norm": float(metrics.gradient_norm),
            "tokens_per_s": speed,
        },
    )
    bar.set_postfix_str(
        f"loss {loss:.3f}, token accuracy {accuracy:.2f}, {speed:.0f} tokens/s", refresh=False
    )
    bar.update(1)
    return now


def divided(sums: LossSums) -> tuple[float, float]:
    """Mean loss in nats per target, and the share of targets that scored highest."""
    weight = max(float(sums.weight), 1.0)
    return float(sums.nll) / weight, float(sums.correct) / weight


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _validate(
    config: RunConfig,
    base: LanguageModel,
    data: pipeline.DataSet,
    state: TrainState,
    validation: Packed | None,
    mesh: Mesh,
    log: MetricsLog,
) -> float | None:
    """Scores the validation split; returns what checkpoints are compared by, higher better."""
    if validation is None:
        return None
    total = validation_sums(base.structure, state.params, validation, mesh)
    loss, accuracy = divided(total)
    values = {"validation_loss": loss, "validation_token_accuracy": accuracy}
    if config.train.select_by == "accuracy":
        ranking = pipeline.DataSet(data.config, _ranked(data), data.chat)
        rows = evaluate(
            base.with_params(state.params),
            ranking,
            config.evaluation.ranking(),
            name="tuned",
            split="validation",
            shots=(0,),
            mesh=mesh,
        )
        values["validation_accuracy"] = float(np.mean([row["value"] for row in rows]))
    step = int(state.step)
    log.write(step, values)
    shown = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in values.items())
    tqdm.write(f"step {step}: {shown}", file=sys.stderr)
    return values.get("validation_accuracy", -loss)


def _ranked(data: pipeline.DataSet) -> tuple[pipeline.TaskData, ...]:
    ranked = tuple(
        task
        for task in data.tasks
        if task.splits["validation"] and all(e.choices for e in task.splits["validation"])
    )
    if not ranked:
        raise InputError(
            "config.train.select_by=accuracy: no task has validation examples with answer "
            "choices; set it to loss"
        )
    return ranked


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


def final_scores(
    config: RunConfig,
    mesh: Mesh,
    base: LanguageModel,
    data: pipeline.DataSet,
    best: decoder.Params,
) -> list[Row]:
    """Base model at each of evaluation.shots and tuned model at 0 shots, on the same test items."""

    tasks = tuple(task for task in data.tasks if task.splits["test"])
    if not tasks:
        print("nothing is scored: no task has a test split", file=sys.stderr)
        return []
    data = pipeline.DataSet(data.config, tasks, data.chat)

    def scored(model: LanguageModel, name: str, shots: Sequence[int]) -> list[Row]:
        print(f"scoring {name} model on the test split", file=sys.stderr)
        return evaluate(
            model, data, config.evaluation, name=name, split="test", shots=shots, mesh=mesh
        )

    tuned = scored(base.with_params(best), "tuned", (0,))
    del best
    base_rows = scored(load_base(config, mesh), "base", config.evaluation.shots)
    return baseline_rows(data, config.evaluation, split="test") + base_rows + tuned


def _check_batch(config: RunConfig, mesh: Mesh) -> None:
    parts = num_row_shards(mesh) * config.train.micro_batches
    if config.train.batch_size % parts:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} does not divide over "
            f"{num_row_shards(mesh)} row shards and {config.train.micro_batches} micro-batches"
        )
