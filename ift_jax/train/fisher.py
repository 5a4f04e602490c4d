"""The diagonal of the Fisher information of a model's weights on a few examples."""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ift_jax.batch import Batch
from ift_jax.checkpoint import restore_tree, save_tree
from ift_jax.data.loader import RowSource
from ift_jax.data.packing import Tokens
from ift_jax.data.pipeline import DataSet
from ift_jax.data.store import Chosen, stored_tokens
from ift_jax.errors import InputError
from ift_jax.language_model import LanguageModel
from ift_jax.models.decoder import Params, Structure
from ift_jax.train.loss import loss_sums
from ift_jax.train.remedies import RemediesConfig

_ROWS = 16  # examples a call; they are taken one by one inside it


def stored_fisher(
    config: RemediesConfig,
    seed: int,
    workdir: Path,
    mesh: Mesh,
    model: LanguageModel,
    data: DataSet,
) -> Params:
    """F of the base model, estimated once in a run and kept in W/fisher.

    A run that goes on reads what the first start wrote, so that it is held by the very same.
    """
    path = workdir.resolve() / "fisher"
    like = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), model.params
    )
    if path.exists():
        return restore_tree(path, like)
    examples = fisher_examples(data, config.fisher_tasks, config.fisher_examples)
    print(
        f"estimating the Fisher information on {len(examples.lengths)} examples of "
        f"{', '.join(config.fisher_tasks)}, with {config.fisher_labels} labels",
        file=sys.stderr,
    )
    fisher = estimate_fisher(
        model.structure,
        model.params,
        examples,
        labels=config.fisher_labels,
        seed=seed,
        mesh=mesh,
    )
    save_tree(path, fisher)
    return fisher


def fisher_examples(data: DataSet, tasks: tuple[str, ...], count: int) -> Tokens:
    """The first training examples of these tasks, `count` in all, shared evenly.

    Raises:
        InputError: if a task has none.
    """
    splits = {task.config.name: task.splits["train"] for task in data.tasks}
    chosen: list[Chosen] = []
    for number, task in enumerate(tasks):
        share = count // len(tasks) + (number < count % len(tasks))
        if not len(splits[task]):
            raise InputError(f"config.remedies.fisher_tasks: {task} has no training example")
        chosen.append(splits[task][:share])
    return stored_tokens(chosen)


def estimate_fisher(
    structure: Structure,
    params: Params,
    examples: Tokens,
    *,
    labels: Literal["sampled", "given"],
    seed: int,
    mesh: Mesh,
) -> Params:
    """F, in float32, placed as the weights: each weight's mean squared gradient.

    F = mean over examples of (d log p(y | x) / dw)^2, where p(y | x) is the product over the
    example's target tokens. "sampled" draws each target from the model behind the example's own
    text before it, so that F is the Fisher information of the next-token distributions; the
    squares of "given" targets are the empirical Fisher, which is not the same away from a
    perfect fit (Kunstner et al. 2019).

    Examples are taken one by one, since the square of a sum is no sum of squares; every device
    works on each.
    """
    rows = RowSource(examples, int(examples.lengths.max()), seed=0, packing="none", shuffle=False)
    count = rows.rows_per_epoch
    replicated = NamedSharding(mesh, PartitionSpec())
    total = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32, device=p.sharding), params)
    for start in range(0, count, _ROWS):
        numbers = range(start, start + _ROWS)
        batch = [rows[i] if i < count else rows.padding() for i in numbers]
        stacked = Batch._make(np.stack(arrays) for arrays in zip(*batch, strict=True))
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.array(numbers))
        placed = jax.device_put((stacked, keys), replicated)
        total = _add_squares(structure, labels == "sampled", params, total, *placed)
    return jax.tree.map(lambda x: x / count, total)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _add_squares(
    structure: Structure, sampled: bool, params: Params, total: Params, rows: Batch, keys: Array
) -> Params:
    def body(total: Params, xs: tuple[Batch, Array]) -> tuple[Params, None]:
        row = jax.tree.map(lambda x: x[None], xs[0])
        if sampled:
            row = row._replace(targets=_drawn(structure, params, row, xs[1]))
        gradient = jax.grad(lambda p: loss_sums(structure, p, row).nll)(params)
        return jax.tree.map(
            lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradient
        ), None

    return jax.lax.scan(body, total, (rows, keys))[0]


def _drawn(structure: Structure, params: Params, row: Batch, key: Array) -> Array:
    """A token for each target position, from the model's own distribution there."""
    module = structure.merge(params)
    hidden = module.hidden_states(row.tokens, row.positions, row.segment_ids)
    states = jnp.take_along_axis(hidden, row.target_positions[..., None], axis=1)
    return jax.random.categorical(key, module.logits(states)).astype(jnp.int32)
