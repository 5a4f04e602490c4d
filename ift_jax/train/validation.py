"""The splits as batches, and what validation says of a model on its way."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ift_jax.batch import Batch
from ift_jax.config import RunConfig
from ift_jax.data import pipeline
from ift_jax.data.loader import Batches
from ift_jax.data.rows import packed_rows
from ift_jax.errors import InputError
from ift_jax.evaluation.tasks import evaluate
from ift_jax.language_model import LanguageModel
from ift_jax.metrics_log import MetricsLog
from ift_jax.models import decoder
from ift_jax.sharding import place_batch
from ift_jax.train.loss import LossSums, loss_sums
from ift_jax.train.step import TrainState


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


def divided(sums: LossSums) -> tuple[float, float]:
    """Mean loss in nats per target, and the share of targets that scored highest."""
    weight = max(float(sums.weight), 1.0)
    return float(sums.nll) / weight, float(sums.correct) / weight


def validate(
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
        ranking = pipeline.DataSet(data.config, ranked_tasks(data), data.chat)
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


def ranked_tasks(data: pipeline.DataSet) -> tuple[pipeline.TaskData, ...]:
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
