"""How far a model has moved from its base: cheap early signs of forgetting.

The distance of the weights costs one pass over them, the KL divergence on neutral text two
forward passes over a few texts. Both can be watched while a model is trained.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ift_jax.batch import Batch
from ift_jax.data.loader import Batches
from ift_jax.data.neutral import NeutralTexts
from ift_jax.evaluation.batching import place_rows, row_shards
from ift_jax.evaluation.classification import mean
from ift_jax.evaluation.intervals import Score, bootstrap
from ift_jax.language_model import LanguageModel
from ift_jax.models.decoder import Params, Structure
from ift_jax.models.quantization import dense_tree
from ift_jax.train.loss import CHUNK_TARGETS, token_kl

_ROWS = 8  # texts at a time, per part of the mesh that rows are cut over


def weight_drift(base: Params, tuned: Params) -> dict[str, float]:
    """Relative L2 distance |tuned - base| / |base| of each array, by path, and of "all".

    Layers lie stacked in one array, so an entry covers a kind of weight in all layers.

    Example:
        >>> base = {"a": jnp.array([3.0, 4.0]), "b": {"c": jnp.array([12.0])}}
        >>> tuned = {"a": jnp.array([3.0, 4.5]), "b": {"c": jnp.array([12.0])}}
        >>> {name: round(value, 4) for name, value in weight_drift(base, tuned).items()}
        {'a': 0.1, 'b.c': 0.0, 'all': 0.0385}
    """
    moved, size = (_squares(tuned, base), _squares(base, None))
    paths = [".".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(moved)]
    pairs = list(zip(map(float, jax.tree.leaves(moved)), map(float, jax.tree.leaves(size)),
                     strict=True))  # fmt: skip
    pairs.append((sum(m for m, _ in pairs), sum(s for _, s in pairs)))
    return {
        path: float(np.sqrt(m / s)) if s else float(np.sqrt(m))
        for path, (m, s) in zip([*paths, "all"], pairs, strict=True)
    }


@jax.jit
def _squares(tree: Params, minus: Params | None) -> Params:
    def of(x: Array, y: Array | None) -> Array:
        difference = x.astype(jnp.float32)
        if y is not None:
            difference = difference - y.astype(jnp.float32)
        return jnp.sum(difference * difference)

    tree = dense_tree(tree)
    return (
        jax.tree.map(lambda x: of(x, None), tree)
        if minus is None
        else jax.tree.map(of, tree, dense_tree(minus))
    )


def kl_from_base(
    base: LanguageModel, tuned: LanguageModel, texts: NeutralTexts, mesh: Mesh | None = None
) -> Score:
    """KL(base || tuned) of the next token, in nats per token of the texts that measure.

    The interval is the bootstrap's over texts.
    """
    batches = Batches(texts.measuring_rows(), _ROWS * row_shards(mesh), 1)
    sums = []
    for number in range(batches.num_steps):
        batch = Batch._make(place_rows(mesh, np.asarray(array)) for array in batches[number])
        kl = _row_kl(tuned.structure, base.structure, tuned.params, base.params, batch)
        sums.append(np.stack([np.asarray(kl), np.asarray(batch.weights.sum(axis=1))], axis=-1))
    rows = np.concatenate(sums).astype(np.float64)
    return bootstrap(rows[None, rows[:, 1] > 0], mean)


@partial(jax.jit, static_argnums=(0, 1))
def _row_kl(
    structure: Structure,
    base_structure: Structure,
    params: Params,
    base_params: Params,
    batch: Batch,
) -> Float[Array, "B"]:
    module, base = structure.merge(params), base_structure.merge(base_params)
    states = [
        jnp.take_along_axis(
            one.hidden_states(batch.tokens, batch.positions, batch.segment_ids),
            batch.target_positions[..., None],
            axis=1,
        )
        for one in (base, module)
    ]

    def one_row(xs: tuple[Array, Array, Array]) -> Array:
        return jnp.sum(token_kl(base.logits(xs[0]), module.logits(xs[1])) * xs[2])

    together = max(CHUNK_TARGETS // batch.targets.shape[1], 1)
    return jax.lax.map(one_row, (*states, batch.weights), batch_size=together)


def drift_values(
    base: LanguageModel, tuned: LanguageModel, texts: NeutralTexts | None, mesh: Mesh | None
) -> dict[str, float]:
    """Both signs, as metrics.jsonl holds them: weight_drift and kl_from_base."""
    moved = _moved(base, tuned)
    values = {"weight_drift": moved["all"]} if moved else {}
    if texts is not None and len(texts.measured.lengths):
        values["kl_from_base"] = kl_from_base(base, tuned, texts, mesh).value
    return values


def _moved(base: LanguageModel, tuned: LanguageModel) -> dict[str, float]:
    """How far the weights moved; {} beside an adapter that no weights express."""
    adapter = tuned.structure.adapter
    if adapter is not None and not adapter.can_merge:
        return {}
    return weight_drift(base.params, tuned.merged().params)


def drift_entries(
    name: str,
    base: LanguageModel,
    tuned: LanguageModel,
    texts: NeutralTexts | None,
    mesh: Mesh | None,
) -> list[dict[str, Any]]:
    """Both signs, as results.json holds them in "drift": KL, all weights, and each array.

    Args:
        name: stands in "model".
        texts: without it there is no KL.
    """
    entries: list[dict[str, Any]] = []
    if texts is not None and len(texts.measured.lengths):
        kl = kl_from_base(base, tuned, texts, mesh)
        entries.append({"measure": "KL divergence on neutral text, nats/token", **kl._asdict()})
    moved = _moved(base, tuned)
    for path in sorted(moved, key=lambda path: path != "all"):
        which = "all weights" if path == "all" else path
        entries.append({"measure": f"relative L2 distance of {which}", "value": moved[path]})
    return [{"model": name, **entry} for entry in entries]
