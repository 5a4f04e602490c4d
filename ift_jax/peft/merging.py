"""The check of a merge: by the logits of a few random token sequences, in float32; tokens whose
rows are trained are among them.

Accepted is a change by 0.001 of the largest logit, and four times what a random change of all
weights by half a unit in their last place does. Of what the adapter changes against the base,
rounding may take half (root mean squares): small changes fall below the last place of bfloat16
weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.models import decoder
from ift_jax.models.decoder import Compute, Params, Structure

Model = tuple[Structure, Params]


def check(base: Model, adapted: Model, merged: Model, dtype: str = "") -> None:
    """Compares the base, the same with an adapter beside it, and with the adapter merged in.

    Args:
        dtype: to which the merged weights will be rounded; default: as they are.

    Raises:
        InputError: if merging changes more than is accepted, or loses the adapter; the message
            says how much.
    """
    c = base[0].config
    draws = np.random.default_rng(0).integers(0, c.vocab_size, (4, min(32, c.max_positions)))
    adapter = adapted[0].adapter
    rows = [token for row in (adapter.rows if adapter else ()) for token in row.ids]
    draws.flat[: len(rows)] = rows[: draws.size]  # else hardly any of them is among the draws
    ids = jnp.asarray(draws)

    def logits(model: Model) -> NDArray[np.float32]:
        structure = model[0]._replace(compute=Compute(dtype="float32"))
        return np.asarray(decoder.logits(structure, model[1], ids, jnp.ones_like(ids)))

    def rounded(x: Array) -> Array:
        return x.astype(dtype or x.dtype).astype(x.dtype)

    def moved(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        half = float(jnp.finfo(dtype or x.dtype).eps) / 2
        signs = jax.random.uniform(jax.random.key(0), x.shape, jnp.float32, -half, half)
        return (x.astype(jnp.float32) * (1 + signs)).astype(jnp.float32)

    structure, params = merged
    before = logits(adapted)
    lost = logits((structure, jax.tree.map(rounded, params))) - before
    change = np.abs(lost).max()
    noise = np.abs(logits((structure, jax.tree.map(moved, params))) - logits(merged)).max()
    accepted = 1e-3 * np.abs(before).max() + 4 * noise
    if not change <= accepted:
        raise InputError(
            f"merging changes logits by up to {change:.3g}, more than the {accepted:.3g} that "
            f"are accepted, {4 * noise:.3g} of it for rounding; keep the adapter beside the "
            "base, or merge in float32"
        )
    effect = _root_mean_square(before - logits(base))
    # An adapter at its start changes nothing, up to what float32 rounds.
    if effect > 1e-5 * np.abs(before).max() and _root_mean_square(lost) > effect / 2:
        raise InputError(
            f"the adapter changes logits by {effect:.3g} (root mean square), and merging into "
            f"{dtype or 'these'} weights would lose {_root_mean_square(lost):.3g} of it; keep "
            "the adapter beside the base (ift export without --merge_adapter), or merge in "
            "float32 (--dtype=float32)"
        )


def _root_mean_square(x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
