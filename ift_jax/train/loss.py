"""Token cross-entropy as (sum, weight), without ever holding [B, S, V] logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ift_jax.batch import Batch
from ift_jax.models.decoder import Decoder, Params, Structure

Sums = tuple[Array, Array, Array]  # nll, correct, kl

CHUNK_TARGETS = 1024  # logits alive at once: this many times V, 200 MB for V = 49k in float32


class LossSums(NamedTuple):
    """Sums over target positions; dividing comes last, on the host or after the last addition.

    Attributes:
        nll: summed negative log-likelihood in nats.
        weight: summed loss weights; the divisor.
        correct: summed weights of targets that had the highest score.
        tokens: tokens in the batch that are not padding.
        kl: summed weights times KL(reference || model) in nats; 0 without a reference.
    """

    nll: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""]
    tokens: Float[Array, ""]
    kl: Float[Array, ""]

    def __add__(self, other: "LossSums") -> "LossSums":  # type: ignore[override]
        return LossSums(*(a + b for a, b in zip(self, other, strict=True)))


class Reference(NamedTuple):
    """A model that gets no gradient, and whose next-token distributions are to be kept."""

    structure: Structure
    params: Params


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


def token_kl(reference: Float[Array, "*B V"], logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """KL(reference || model) of the next token over the whole vocabulary, in nats.

    sum over v of p0(v) (log p0(v) - log p(v)): it grows where the model takes probability from
    what the reference gives it to (Kullback and Leibler 1951; the direction of distillation).

    Example:
        >>> even, sure = jnp.zeros(2), jnp.log(jnp.array([0.75, 0.25]))
        >>> round(float(token_kl(even, sure)), 4)  # ln 4 - ln 2 - ln 3 / 2
        0.1438
    """
    base = jax.nn.log_softmax(reference.astype(jnp.float32), axis=-1)
    own = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.exp(base) * (base - own), axis=-1)


def loss_sums(
    structure: Structure,
    params: Params,
    batch: Batch,
    prefix: Int[Array, "T0"] | None = None,
    key: Array | None = None,
    reference: Reference | None = None,
) -> LossSums:
    """Cross-entropy of a batch's target positions, and there the KL divergence from a reference.

    Hidden states of target positions are gathered before the output projection, which runs
    in chunks of P whose logits are recomputed in the backward pass.

    Args:
        prefix: what all examples begin with; see `Decoder.hidden_states`.
        key: of dropout, in training only.
        reference: the model to stay near; without it there is no KL.
    """
    module = structure.merge(params, key)
    base = None if reference is None else reference.structure.merge(reference.params)
    gathered = [_target_states(one, batch, prefix) for one in (module, base) if one is not None]
    rows, slots = batch.targets.shape
    chunks = -(-rows * slots // CHUNK_TARGETS)
    size = -(-slots // chunks)

    # Everything is cut along P, so that rows stay where the mesh put them.
    def cut(x: Array) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, chunks * size - slots)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk_sums(targets: Array, weights: Array, *hidden: Array) -> Sums:
        logits = module.logits(hidden[0])
        nll, correct = token_nll(logits, targets)
        kl = jnp.zeros(()) if base is None else token_kl(base.logits(hidden[1]), logits) * weights
        return jnp.sum(nll * weights), jnp.sum(correct * weights), jnp.sum(kl)

    def body(sums: Sums, xs: tuple[Array, ...]) -> tuple[Sums, None]:
        nll, correct, kl = chunk_sums(*xs)
        return (sums[0] + nll, sums[1] + correct, sums[2] + kl), None

    inputs = (batch.targets, batch.weights, *gathered)
    if chunks == 1:
        nll, correct, kl = chunk_sums(*inputs)
    else:
        start = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
        (nll, correct, kl), _ = jax.lax.scan(body, start, tuple(map(cut, inputs)))
    tokens = jnp.sum(batch.segment_ids > 0).astype(jnp.float32)
    return LossSums(nll, jnp.sum(batch.weights), correct, tokens, kl)


def _target_states(
    module: Decoder, batch: Batch, prefix: Int[Array, "T0"] | None
) -> Float[Array, "B P D"]:
    hidden = module.hidden_states(batch.tokens, batch.positions, batch.segment_ids, prefix)
    return jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
