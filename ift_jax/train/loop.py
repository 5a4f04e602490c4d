"""A run from config to results: load, prepare, train, validate, checkpoint, score."""

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ift_jax.batch import Batch
from ift_jax.checkpoint import Checkpoints
from ift_jax.config import RunConfig, differences, read_run_config, to_json
from ift_jax.data import pipeline
from ift_jax.data.loader import Batches, RowSource
from ift_jax.errors import InputError
from ift_jax.evaluation.tasks import Row, evaluate, majority_rows
from ift_jax.language_model import LanguageModel, load_pretrained
from ift_jax.metrics_log import MetricsLog
from ift_jax.models import decoder
from ift_jax.report.table import results_table
from ift_jax.sharding import make_mesh, num_row_shards, param_shardings, row_sharding
from ift_jax.train.loss import LossSums, loss_sums
from ift_jax.train.optimizer import make_optimizer, make_schedule
from ift_jax.train.step import StepMetrics, TrainState, init_state, make_step


def train(config: RunConfig, workdir: str | Path) -> list[Row]:
    """Trains, scores base and tuned model on the test split, and writes the workdir.

    Run again on the same workdir, it goes on exactly where it stopped.

    Returns:
        The rows of results.json.

    Raises:
        InputError: for a config, file or workdir that cannot be used.
    """
    workdir = Path(workdir)
    claim_workdir(config, workdir)
    mesh = make_mesh(config.mesh)
    _check_batch(config, mesh)
    with jax.set_mesh(mesh):
        base = load_base(config, mesh)
        data = pipeline.build(config.data, base.chat)
        pipeline.write_card(data, workdir / "data")
        best = fit(config, workdir, mesh, base, data)
        base = base.with_params(None)  # type: ignore[arg-type]  # training consumed them
        rows = final_scores(config, mesh, base, data, best)
    text = json.dumps({"rows": rows}, indent=2)
    (workdir / "results.json").write_text(text + "\n", encoding="utf-8")
    print(results_table(rows))
    return rows


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Makes the workdir, or checks that it belongs to this very config.

    Raises:
        InputError: if it cannot be written, is no workdir, or holds another config.
    """
    file = workdir / "config.json"
    if file.exists():
        if "model_type" in json.loads(file.read_text(encoding="utf-8")):
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
        file.write_text(to_json(config), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written ({error.strerror})") from error


def load_base(config: RunConfig, mesh: Mesh) -> LanguageModel:
    """The base model, its parameters on the mesh."""
    model = config.model
    return load_pretrained(
        model.path, dtype=model.dtype, param_dtype=model.param_dtype, remat=model.remat, mesh=mesh
    )


class Training(NamedTuple):
    """What a run's steps need, all of it decided by the config."""

    batches: Batches
    num_steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def prepare(config: RunConfig, data: pipeline.DataSet) -> Training:
    """Packs the training split, and fixes the number of steps and the optimizer."""
    source = RowSource(
        data.tokens("train"), config.data.max_length, seed=config.train.seed, pack=config.data.pack
    )
    batches = Batches(source, config.train.batch_size, config.train.num_epochs)
    num_steps = config.train.num_steps or batches.num_steps
    if config.train.num_steps:
        batches = Batches(source, config.train.batch_size, 0)
    schedule = make_schedule(config.optimizer, num_steps)
    return Training(batches, num_steps, make_optimizer(config.optimizer, num_steps), schedule)


def fit(
    config: RunConfig, workdir: Path, mesh: Mesh, base: LanguageModel, data: pipeline.DataSet
) -> decoder.Params:
    """Trains from the last checkpoint, or from the start, to the last step.

    Consumes the base model's parameters. Returns those of the best checkpoint.
    """
    started = time.monotonic()
    run = prepare(config, data)
    structure = base.structure
    step_fn = jax.jit(
        make_step(structure, run.optimizer, config.train.micro_batches), donate_argnums=0
    )
    state = place_state(base.params, run.optimizer, mesh)
    checkpoints = Checkpoints(workdir)
    latest = checkpoints.latest()
    if latest is not None:
        state = checkpoints.restore(latest, state)
    first = int(state.step)
    validation = _validation_batches(config, data)
    log = MetricsLog(workdir, first)
    print(
        f"{run.batches.source.summary()}; steps {first} to {run.num_steps} "
        f"of {config.train.batch_size} rows",
        file=sys.stderr,
    )
    bar = progress_bar(first, run.num_steps)
    pending: tuple[int, StepMetrics] | None = None
    before = time.monotonic()
    for step, host_batch in zip(
        range(first, run.num_steps), run.batches.from_step(first), strict=False
    ):
        batch = jax.device_put(host_batch, row_sharding(mesh))
        state, metrics = step_fn(state, batch)
        # Reading the step before last keeps the device busy while the host reads.
        before = _report(pending, log, bar, run, before)
        pending = (step + 1, metrics)
        if step == first:
            jax.block_until_ready(metrics)
            tqdm.write(f"first step after {time.monotonic() - started:.1f} s", file=sys.stderr)
        last = step + 1 == run.num_steps
        if last or _due(config.train.eval_every, step + 1):
            before = _report(pending, log, bar, run, before)
            pending = None
            score = _validate(config, base, data, state, validation, mesh, log)
            checkpoints.save(state, score)
            before = time.monotonic()
        elif _due(config.train.save_every, step + 1):
            checkpoints.save(state, None)
    bar.close()
    log.close()
    best = checkpoints.choose("best")
    params = state.params
    del state
    if best != run.num_steps:
        params = checkpoints.restore_params(best, params)
    checkpoints.close()
    print(f"best checkpoint: step {best}", file=sys.stderr)
    return params


def place_state(
    params: decoder.Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The first state, on the mesh: optimizer moments lie where their parameters do."""
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    like_params = jax.tree.map(lambda p: (p.sharding, p.shape), params)
    moments = optax.tree_map_params(
        optimizer,
        lambda leaf, placed: placed[0] if leaf.shape == placed[1] else replicated,
        shapes.opt_state,
        like_params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
    )
    shardings = TrainState(replicated, jax.tree.map(lambda p: p.sharding, params), moments)
    create = jax.jit(
        lambda p: init_state(p, optimizer), out_shardings=shardings, donate_argnums=0
    )
    return create(params)


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
    run: Training,
    before: float,
) -> float:
    """Logs a finished step; returns the time from which the next is counted."""
    if pending is None:
        return before
    step, metrics = pending
    sums = LossSums(*(float(x) for x in metrics.sums))
    now = time.monotonic()
    loss, accuracy = divided(sums)
    speed = sums.tokens / max(now - before, 1e-9)
    log.write(
        step,
        {
            "loss": loss,
            "token_accuracy": accuracy,
            "tokens": sums.tokens,
            "trained_tokens": sums.weight,
            "learning_rate": float(run.schedule(step - 1)),
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


def _validation_batches(config: RunConfig, data: pipeline.DataSet) -> Batches | None:
    if not data.examples("validation"):
        if config.train.select_by == "accuracy":
            raise InputError("config.train.select_by=accuracy needs a validation split")
        return None
    source = RowSource(
        data.tokens("validation"), config.data.max_length, seed=0, pack=config.data.pack,
        shuffle=False,
    )  # fmt: skip
    return Batches(source, config.train.batch_size, 1)


def _validate(
    config: RunConfig,
    base: LanguageModel,
    data: pipeline.DataSet,
    state: TrainState,
    validation: Batches | None,
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
    structure: decoder.Structure, params: decoder.Params, batches: Batches, mesh: Mesh
) -> LossSums:
    """Loss sums of one pass over all batches."""
    total = LossSums(*(jnp.zeros(()),) * len(LossSums._fields))
    for number in range(batches.num_steps):
        batch = jax.device_put(batches[number], row_sharding(mesh))
        total = total + _sums(structure, params, batch)
    return total


@jax.jit(static_argnums=0)
def _sums(structure: decoder.Structure, params: decoder.Params, batch: Batch) -> LossSums:
    return loss_sums(structure, params, batch)


def final_scores(
    config: RunConfig,
    mesh: Mesh,
    base: LanguageModel,
    data: pipeline.DataSet,
    best: decoder.Params,
) -> list[Row]:
    """Base model at each of evaluation.shots and tuned model at 0 shots, on the same test items."""

    def scored(model: LanguageModel, name: str, shots: Sequence[int]) -> list[Row]:
        print(f"scoring {name} model on the test split", file=sys.stderr)
        return evaluate(
            model, data, config.evaluation, name=name, split="test", shots=shots, mesh=mesh
        )

    tuned = scored(base.with_params(best), "tuned", (0,))
    del best
    base_rows = scored(load_base(config, mesh), "base", config.evaluation.shots)
    return majority_rows(data, config.evaluation, split="test") + base_rows + tuned


def _check_batch(config: RunConfig, mesh: Mesh) -> None:
    parts = num_row_shards(mesh) * config.train.micro_batches
    if config.train.batch_size % parts:
        raise InputError(
            f"config.train.batch_size={config.train.batch_size} does not divide over "
            f"{num_row_shards(mesh)} row shards and {config.train.micro_batches} micro-batches"
        )
