"""Weights between those of a base and of a tuned model.

A model on the straight line between the two often keeps most of what tuning gained and most of
what the base could do besides (WiSE-FT, Wortsman et al. 2022). It costs no training: one chooses
a point on the line afterwards.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.errors import InputError
from ift_jax.language_model import LanguageModel
from ift_jax.models.decoder import Params
from ift_jax.models.quantization import dense_tree


def interpolate(base: Params, tuned: Params, share: float) -> Params:
    """(1 - share) base + share tuned, computed in float32, in the dtype of the tuned weights.

    Example:
        >>> base, tuned = {"w": jnp.array([0.0, 2.0])}, {"w": jnp.array([4.0, 2.0])}
        >>> interpolate(base, tuned, 0.25)["w"].tolist()
        [1.0, 2.0]
    """
    return _interpolate(base, tuned, jnp.asarray(share, jnp.float32))


@jax.jit
def _interpolate(base: Params, tuned: Params, share: Array) -> Params:
    def between(w0: Array, w: Array) -> Array:
        mixed = (1 - share) * w0.astype(jnp.float32) + share * w.astype(jnp.float32)
        return mixed.astype(w.dtype)

    return jax.tree.map(between, base, tuned)


def interpolated(base: LanguageModel, tuned: LanguageModel, share: float) -> LanguageModel:
    """The model between the two, an adapter merged; `tuned` itself for a share of 1.

    Between quantized weights lie floats.

    Raises:
        InputError: for a share that is not between 0 and 1.
    """
    check_share(share, "share")
    if share == 1.0:
        return tuned
    ends = (dense_tree(base.params), dense_tree(tuned.merged().params))
    return base.with_params(interpolate(*ends, share))


def check_share(share: float, where: str) -> None:
    """Raises InputError, with `where`, unless the share is between 0 (base) and 1 (tuned)."""
    if not 0 <= share <= 1:
        raise InputError(f"{where}: expected 0 (base) to 1 (tuned), got {share}")
