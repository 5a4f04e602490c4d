"""The arithmetic of a decoder layer, as functions over arrays.

Shape letters: B rows, S query positions, T key positions, D model width, F MLP width,
K key/value heads, G query heads per key/value head, H head size.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30  # finite, so that a row of padding gives numbers that nothing reads, not NaN


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, "D"], epsilon: float) -> Array:
    """Root-mean-square normalisation (Zhang and Sennrich 2019), reduced in float32.

    Example:
        >>> [round(float(x), 3) for x in rms_norm(jnp.array([3.0, 4.0]), jnp.ones(2), 0.0)]
        [0.849, 1.131]
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (x32 * inverse).astype(x.dtype) * scale.astype(x.dtype)


def rope_tables(
    positions: Int[Array, "B S"], head_size: int, base: float
) -> tuple[Float[Array, "B S H2"], Float[Array, "B S H2"]]:
    """Cosines and sines of the rotary angles (Su et al. 2021, eq. 15), H2 = H / 2, float32."""
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B S *heads H"], cos: Float[Array, "B S H2"], sin: Float[Array, "B S H2"]
) -> Array:
    """Rotates the pair (x[i], x[i + H/2]) by the i-th angle: the halves layout of Llama."""
    between = (slice(None), slice(None), *(None,) * (x.ndim - 3))
    cos, sin = cos[between].astype(x.dtype), sin[between].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def packing_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """What each query may see: its own example, up to itself; padding (segment 0) sees nothing.

    Example:
        >>> packing_mask(jnp.array([[1, 1, 2, 0]]))[0].astype(int).tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    size = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((size, size), dtype=bool))
    return (query == key) & (query > 0) & causal


def float32_einsum(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Array:
    """The einsum of two arrays of one dtype, summed and returned in float32.

    On CPUs, lower precision is widened first: XLA has no program there for some products
    bfloat16 x bfloat16 = float32, by the order in which the axes lie, and fails when it runs
    (jaxlib 0.10.2: lhs contracted along another axis than its last).
    """
    return jnp.einsum(spec, x, y) if x.dtype == jnp.float32 else _widened_einsum(spec, x, y)


# The backward pass is the direct product's: choices by platform keep what each of them would
# need, here the widened operands of the CPU as well, whichever is taken.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _widened_einsum(spec: str, x: Array, y: Array) -> Array:
    def widened(x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x.astype(jnp.float32), y.astype(jnp.float32))

    return jax.lax.platform_dependent(x, y, cpu=widened, default=partial(_direct_einsum, spec))


def _direct_einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _forward(spec: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _widened_einsum(spec, x, y), (x, y)


def _backward(spec: str, operands: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    return jax.vjp(partial(_direct_einsum, spec), *operands)[1](grad)


_widened_einsum.defvjp(_forward, _backward)


def attend(
    q: Float[Array, "B S K G H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "B S T"],
    prefix: tuple[Float[Array, "T0 K H"], Float[Array, "T0 K H"], Bool[Array, "T0"]] | None = None,
) -> Float[Array, "B S K G H"]:
    """Grouped-query attention, softmax in float32.

    Args:
        mask: mask[b, s, t] says that query s of row b may see key t.
        prefix: keys, values and their validity that every query of every row sees before
            its own; they have no row axis, so a shared prompt is stored and read once.
    """
    q = q * q.shape[-1] ** -0.5
    scores = float32_einsum("bskgh,btkh->bksgt", q, k)
    scores = jnp.where(mask[:, None, :, None, :], scores, _MASKED)
    if prefix is None:
        probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bksgt,btkh->bskgh", probabilities, v)
    # Two softmaxes over parts of the keys, put together by their maxima and sums (Milakov and
    # Gimelshein 2018): joining the scores would copy them, and they are the largest array here.
    prefix_k, prefix_v, valid = prefix
    prefix_scores = float32_einsum("bskgh,tkh->kbsgt", q, prefix_k)
    prefix_scores = jnp.where(valid, prefix_scores, _MASKED)
    high = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    prefix_high = jax.lax.stop_gradient(jnp.max(prefix_scores, axis=-1)).swapaxes(0, 1)
    high = jnp.maximum(high, prefix_high)
    weights = jnp.exp(scores - high[..., None])
    prefix_weights = jnp.exp(prefix_scores - high.swapaxes(0, 1)[..., None])
    total = jnp.sum(weights, axis=-1) + jnp.sum(prefix_weights, axis=-1).swapaxes(0, 1)
    own = float32_einsum("bksgt,btkh->bskgh", weights.astype(v.dtype), v)
    shared = float32_einsum("kbsgt,tkh->bskgh", prefix_weights.astype(v.dtype), prefix_v)
    return ((own + shared) / total.transpose(0, 2, 1, 3)[..., None]).astype(v.dtype)
