"""Token cross-entropy as (sum, weight), without ever holding [B, S, V] logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ift_jax.batch import Batch
from ift_jax.models.decoder import Params, Structure

CHUNK_TARGETS = 1024  # logits alive at once: this many times V, 200 MB for V = 49k in float32


class LossSums(NamedTuple):
    """Sums over target positions; dividing comes last, on the host or after the last addition.

    Attributes:
        nll: summed negative log-likelihood in nats.
        weight: summed loss weights; the divisor.
        correct: summed weights of targets that had the highest score.
        tokens: tokens in the batch that are not padding.
    """

    nll: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""]
    tokens: Float[Array, ""]

    def __add__(self, other: "LossSums") -> "LossSums":  # type: ignore[override]
        return LossSums(*(a + b for a, b in zip(self, other, strict=True)))


def token_nll(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Negative log-likelihood of each target in nats, and whether it scored highest (1 or 0).

    Example:
        >>> nll, correct = token_nll(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> [round(float(x), 4) for x in nll]  # ln 4
        [1.3863, 1.3863]
        >>> correct.tolist()  # ties go to the first token
        [1.0, 0.0]
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return nll, (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def loss_sums(
    structure: Structure,
    params: Params,
    batch: Batch,
    prefix: Int[Array, "T0"] | None = None,
    key: Array | None = None,
) -> LossSums:
    """Cross-entropy of a batch's target positions.

    `prefix` is what all examples begin with; see `Decoder.hidden_states`. `key` is that of
    dropout, in training only.

    Hidden states of target positions are gathered before the output projection, which runs
    in chunks of P whose logits are recomputed in the backward pass.
    """
    module = structure.merge(params, key)
    hidden = module.hidden_states(batch.tokens, batch.positions, batch.segment_ids, prefix)
    gathered = jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
    rows, slots = batch.targets.shape
    chunks = -(-rows * slots // CHUNK_TARGETS)
    size = -(-slots // chunks)

    # Everything is cut along P, so that rows stay where the mesh put them.
    def cut(x: Array) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, chunks * size - slots)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk_sums(hidden: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
        nll, correct = token_nll(module.logits(hidden), targets)
        return jnp.sum(nll * weights), jnp.sum(correct * weights)

    def body(
        sums: tuple[Array, Array], xs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        nll, correct = chunk_sums(*xs)
        return (sums[0] + nll, sums[1] + correct), None

    if chunks == 1:
        nll, correct = chunk_sums(gathered, batch.targets, batch.weights)
    else:
        start = (jnp.zeros(()), jnp.zeros(()))
        (nll, correct), _ = jax.lax.scan(
            body, start, (cut(gathered), cut(batch.targets), cut(batch.weights))
        )
    tokens = jnp.sum(batch.segment_ids > 0).astype(jnp.float32)
    return LossSums(nll, jnp.sum(batch.weights), correct, tokens)
