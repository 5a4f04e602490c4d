"""The loop: batches through the train step, with validation and checkpoints on the way."""

import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from ift_jax.batch import Batch
from ift_jax.checkpoint import Checkpoints
from ift_jax.config import RunConfig
from ift_jax.data import pipeline
from ift_jax.data.loader import Batches
from ift_jax.errors import InputError
from ift_jax.evaluation.drift import drift_values
from ift_jax.language_model import LanguageModel
from ift_jax.metrics_log import MetricsLog
from ift_jax.models.decoder import Params
from ift_jax.peft.adapter import FROZEN, combine, separate
from ift_jax.sharding import place_batch
from ift_jax.train.fisher import stored_fisher
from ift_jax.train.loss import Reference
from ift_jax.train.optimizer import make_optimizer, make_schedule
from ift_jax.train.selection import Chosen, choose, is_over, oriented_score
from ift_jax.train.step import (
    Constants,
    StepMetrics,
    TrainState,
    make_step,
    place_state,
    reference_of,
)
from ift_jax.train.validation import Packed, Plan, divided, pack_split, sample, validate

FEW_STEPS = 10  # that may be lost without a checkpoint


def fit(
    config: RunConfig,
    workdir: Path,
    mesh: Mesh,
    model: LanguageModel,
    data: pipeline.DataSet,
    plan: Plan,
) -> tuple[LanguageModel, Chosen]:
    """Trains from the last checkpoint, or from the start, to the last step or an early stop.

    Consumes the arrays that are trained: all of the model's, or its adapter's. Returns the
    model of the checkpoint that `plan` chose.

    Raises:
        InputError: if a step's loss or gradient is no finite number; the checkpoints before it
            stay.
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
    # What a kill costs is no more than a tenth of a long run.
    tenth = max(-(-num_steps // 10), FEW_STEPS)
    save_every = settings.save_every or (0 if settings.eval_every else tenth)
    optimizer = make_optimizer(config.optimizer, num_steps, config.peft.b_lr_ratio)
    step_fn = jax.jit(
        make_step(
            model.structure,
            optimizer,
            settings.micro_batches,
            packed.prefix,
            settings.seed,
            config.remedies,
        ),
        donate_argnums=0,
    )
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest() is None:  # a start that was cut off may have seen other data
        shutil.rmtree(workdir / "fisher", ignore_errors=True)
    kept = _kept(config, workdir, mesh, model, data)
    state, base = _restored(model, optimizer, mesh, checkpoints)
    constants = Constants(base, *kept)
    first = int(state.step)
    schedule = make_schedule(config.optimizer, num_steps)
    log = MetricsLog(workdir, first)
    print(
        f"{packed.batches.source.summary()}; {len(packed.prefix)} tokens that all begin with "
        f"stand beside; steps {first} to {num_steps} of {settings.batch_size} rows",
        file=sys.stderr,
    )
    look = partial(_look, config, plan, mesh, log, reference_of(model.structure, constants))
    if first == 0:
        look(model.with_params(combine(state.params, base)), 0)
    bar = progress_bar(first, num_steps)
    pending: tuple[int, StepMetrics] | None = None
    before = time.monotonic()
    steps = range(first, first if is_over(settings, checkpoints) else num_steps)
    batches = _batches(config, packed, plan, first, mesh)
    with closing(bar), closing(log):
        for step, inputs in zip(steps, batches, strict=False):
            state, metrics = step_fn(state, constants, *inputs)
            # Reading the step before last keeps the device busy while the host reads.
            before = _report(pending, log, bar, schedule, before)
            pending = (step + 1, metrics)
            if step == first:
                jax.block_until_ready(metrics)
                tqdm.write(f"first step after {time.monotonic() - started:.1f} s", file=sys.stderr)
            validates = step + 1 == num_steps or _due(settings.eval_every, step + 1)
            if validates or _due(save_every, step + 1):
                _report(pending, log, bar, schedule, before)
                pending = None
                tuned = model.with_params(combine(state.params, base))
                score = look(tuned, step + 1) if validates else None
                del tuned
                checkpoints.save(state, score, base.get(FROZEN))
                if is_over(settings, checkpoints):
                    break
                before = time.monotonic()
    chosen = choose(settings, checkpoints, num_steps)
    trained = state.params
    del state
    if chosen.step != chosen.last_step:
        trained = checkpoints.restore_params(chosen.step, trained)
    checkpoints.close()
    print(f"step {chosen.step} is taken: {chosen.why}", file=sys.stderr)
    return model.with_params(combine(trained, base)), chosen


def _restored(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Params]:
    """The state to go on from and the frozen weights: of the last checkpoint, or at the start.

    It takes the model's trained arrays, which cannot be read afterwards.
    """
    trained, base = separate(model.params)
    state = place_state(trained, optimizer, mesh)
    latest = checkpoints.latest()
    if latest is not None:
        state = checkpoints.restore(latest, state)
        if FROZEN in base:
            base = {**base, FROZEN: checkpoints.restore_frozen(latest, base[FROZEN])}
    return state, base


def _kept(
    config: RunConfig, workdir: Path, mesh: Mesh, model: LanguageModel, data: pipeline.DataSet
) -> tuple[Params, Params]:
    """What of the base is kept beside the trained weights: a copy, and its Fisher information."""
    watched = config.remedies.needs_base or config.train.watch_drift
    if not watched or model.structure.adapter is not None:
        return {}, {}
    fisher = {}
    if config.remedies.ewc_weight:
        fisher = stored_fisher(config.remedies, config.train.seed, workdir, mesh, model, data)
    return jax.tree.map(jnp.copy, model.params), fisher


def _batches(
    config: RunConfig, packed: Packed, plan: Plan, first: int, mesh: Mesh
) -> Iterator[tuple[Batch, ...]]:
    """The step's inputs from step `first` on: a batch, and one of neutral text if it is used."""
    streams = [packed.batches.from_step(first)]
    if config.remedies.text_kl_weight and plan.texts is not None:
        rows = plan.texts.training_rows(config.train.seed)
        part = (jax.process_index(), jax.process_count())
        streams.append(Batches(rows, config.remedies.text_rows, 0, part).from_step(first))
    for batches in zip(*streams, strict=False):
        yield tuple(place_batch(batch, mesh) for batch in batches)


def _look(
    config: RunConfig,
    plan: Plan,
    mesh: Mesh,
    log: MetricsLog,
    reference: Reference,
    model: LanguageModel,
    step: int,
) -> float | None:
    """Validates and samples; returns what checkpoints are compared by, higher better."""
    values = validate(config, plan, model, mesh)
    if config.train.watch_drift:
        base = replace(model, structure=reference.structure, params=reference.params)
        values |= drift_values(base, model, plan.texts, mesh)
    log.write_samples(step, sample(plan, model, mesh))
    if not values:
        return None
    log.write(step, values)
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
    tqdm.write(f"step {step}: {shown}", file=sys.stderr)
    return oriented_score(config.train.select_by, values)


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
    """Logs a finished step; returns the time from which the next is counted.

    Raises:
        InputError: if the step's loss or gradient is no finite number.
    """
    if pending is None:
        return before
    step, metrics = pending
    sums = metrics.sums
    loss, accuracy = divided(sums)  # waits for the step
    norm = float(metrics.gradient_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise InputError(
            f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}, so that nothing "
            "can be learned from here on; in another --workdir, "
            + (
                "lower config.optimizer.peak_lr or raise warmup_steps"
                if step > 1
                else "begin with other weights or another config.model.dtype, which is all that "
                "the first step depends on"
            )
        )
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
            "gradient_norm": norm,
            **{name: float(value) for name, value in metrics.remedies.items()},
            "tokens_per_s": speed,
        },
    )
    bar.set_postfix_str(
        f"loss {loss:.3f}, token accuracy {accuracy:.2f}, {speed:.0f} tokens/s", refresh=False
    )
    bar.update(1)
    return now


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0
