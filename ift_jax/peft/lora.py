"""LoRA (Hu et al. 2021): y = x (W + s AB), with A [in, R] and B [R, out] trained and W frozen.

Also rsLoRA and PiSSA, which differ in the scaling s and in the start. With PiSSA the frozen
matrices A0, B0 hold the start, and W + s (AB - A0 B0) is what computes; so the base stays
the base, and dropping the adapter is dropping two small trees.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import Cut, Shapes, Site, padded, taken


def trained_shapes(site: Site, config: PeftConfig) -> Shapes:
    """Shape and logical axes of A and B, one layer's."""
    return {
        "a": ((*site.in_shape, config.rank), (*site.in_axes, "rank")),
        "b": ((config.rank, *site.out_shape), ("rank", *site.out_axes)),
    }


def frozen_shapes(site: Site, config: PeftConfig) -> Shapes:
    """Those of A0 and B0, which only PiSSA has."""
    return trained_shapes(site, config) if config.init == "pissa" else {}


def init(
    site: Site, config: PeftConfig, key: Array, weight: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Trained and frozen arrays [L, ...] at the start, where the adapted model is the base.

    The random matrix is uniform in +-1/sqrt(inputs), as peft's.

    Args:
        weight: the site's frozen weights, [L, *in, *out].
    """
    size, out = math.prod(site.in_shape), math.prod(site.out_shape)
    layers, rank = weight.shape[0], config.rank
    a_shape, b_shape = (layers, *site.in_shape, rank), (layers, rank, *site.out_shape)
    if config.init == "pissa":
        flat = weight.astype(jnp.float32).reshape(layers, size, out)
        u, s, vt = jnp.linalg.svd(flat, full_matrices=False)
        root = jnp.sqrt(s[:, :rank] / config.scaling)
        pair = {
            "a": (u[:, :, :rank] * root[:, None, :]).reshape(a_shape),
            "b": (root[:, :, None] * vt[:, :rank]).reshape(b_shape),
        }
        # Copies, since training consumes the trained ones.
        return pair, jax.tree.map(jnp.copy, pair)
    if config.init == "a_zero":
        bound = rank**-0.5
        return {"a": jnp.zeros(a_shape), "b": _uniform(key, b_shape, bound)}, {}
    return {"a": _uniform(key, a_shape, size**-0.5), "b": jnp.zeros(b_shape)}, {}


def _uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def linear(
    x: Array,
    weight: Array,
    sites: Sequence[Site],
    arrays: Sequence[dict[str, Array]],
    frozen: Sequence[dict[str, Array]],
    config: PeftConfig,
    key: Array | None,
) -> Array:
    """x (W + s AB) for all linear layers that share an array and an input.

    Many rows in float32 multiply with W + s AB, made once; few rows, and lower precision,
    in which small changes of W would round away, take x A B beside x W.

    Args:
        x: [..., *in].
        weight: [*in, *out] of the whole array.
        arrays: A and B per site, one layer's; and "rows" [B, R], factors of each row's x A.
        frozen: A0 and B0 per site, or nothing.
        key: of dropout; None at evaluation.
    """
    num_in = len(sites[0].in_shape)
    cuts = tuple(site.cuts for site in sites)
    dropout = config.dropout if key is not None else 0.0
    inputs, outputs = math.prod(weight.shape[:num_in]), math.prod(weight.shape[num_in:])
    rows = x.size // inputs
    by_row = "rows" in arrays[0]
    many = rows * (inputs + outputs) > inputs * outputs
    if x.dtype == jnp.float32 and not dropout and many and not by_row:
        a, b = tuple(p["a"] for p in arrays), tuple(p["b"] for p in arrays)
        a0, b0 = (tuple(p[name] for p in frozen if p) for name in ("a", "b"))
        return _through_sum(num_in, cuts, config.scaling, x, weight, a, b, a0, b0)
    y = jnp.tensordot(x, weight, num_in)
    for number, (site, pair) in enumerate(zip(sites, arrays, strict=True)):
        seen = x
        if dropout and key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - dropout, x.shape)
            seen = jnp.where(kept, x / (1 - dropout), jnp.zeros((), x.dtype))
        part = _product(seen, pair, num_in)
        if frozen[number]:
            part = part - _product(x, frozen[number], num_in)
        y = y + padded(part * config.scaling, site.cuts, y.shape[x.ndim - num_in :])
    return y


def _product(x: Array, pair: dict[str, Array], num_in: int) -> Array:
    a, b = pair["a"].astype(x.dtype), pair["b"].astype(x.dtype)
    inner = jnp.tensordot(x, a, num_in)
    if "rows" in pair:
        inner = inner * pair["rows"].astype(x.dtype)[:, None, :]
    return jnp.tensordot(inner, b, 1)


def merged(
    weight: Array,
    site: Site,
    arrays: dict[str, Array],
    frozen: dict[str, Array],
    config: PeftConfig,
) -> Array:
    """W + s AB of one site and one layer, [*in, *out], in the weight's dtype."""
    delta = jnp.tensordot(arrays["a"], arrays["b"], 1)
    if frozen:
        delta = delta - jnp.tensordot(frozen["a"], frozen["b"], 1)
    return (weight.astype(jnp.float32) + delta * config.scaling).astype(weight.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _through_sum(
    num_in: int,
    cuts: tuple[tuple[Cut, ...], ...],
    scaling: float,
    x: Array,
    weight: Array,
    a: tuple[Array, ...],
    b: tuple[Array, ...],
    a0: tuple[Array, ...],
    b0: tuple[Array, ...],
) -> Array:
    """x (W + s (AB - A0 B0)), whose gradient never forms one of W.

    dx = dy W' + t A' - t0 A0' with t = s dy B' and t0 = s dy B0', dA = x' t, dB = s (x A)' dy.
    """
    for many, sign in (((a, b), scaling), ((a0, b0), -scaling)):
        for cut, left, right in zip(cuts, *many, strict=False):
            delta = jnp.tensordot(left * sign, right, 1)
            weight = weight + padded(delta.astype(weight.dtype), cut, weight.shape[num_in:])
    return jnp.tensordot(x, weight, num_in)


def _forward(num_in: int, cuts: Any, scaling: float, *inputs: Any) -> tuple[Array, Any]:
    return _through_sum(num_in, cuts, scaling, *inputs), inputs


def _backward(num_in: int, cuts: Any, scaling: float, saved: Any, dy: Array) -> Any:
    x, weight, a, b, a0, b0 = saved
    rows = tuple(range(x.ndim - num_in))
    num_out = weight.ndim - num_in
    parts = [taken(dy, cut) for cut in cuts]

    def to_rank(part: Array, right: Array) -> Array:
        out = right.ndim - 1
        ends = tuple(range(part.ndim - out, part.ndim))
        return jnp.tensordot(part, right * scaling, (ends, tuple(range(1, out + 1))))

    # All A share the input, so that each of these is one multiply for all of them.
    joined = jnp.concatenate(a, axis=-1)
    t = jnp.concatenate([to_rank(p, r) for p, r in zip(parts, b, strict=True)], axis=-1)
    x_a = jnp.tensordot(x, joined, num_in)
    ends = tuple(range(dy.ndim - num_out, dy.ndim))
    dx = jnp.tensordot(dy, weight, (ends, tuple(range(num_in, weight.ndim))))
    dx = dx + jnp.tensordot(t, joined, ((-1,), (-1,)))
    for part, left, right in zip(parts, a0, b0, strict=False):
        dx = dx - jnp.tensordot(to_rank(part, right), left, ((-1,), (-1,)))
    d_joined = jnp.tensordot(x, t, (rows, rows))
    da, db, at = [], [], 0
    for left, part in zip(a, parts, strict=True):
        rank = left.shape[-1]
        da.append(d_joined[..., at : at + rank])
        db.append(jnp.tensordot(x_a[..., at : at + rank] * scaling, part, (rows, rows)))
        at += rank
    # The frozen arrays get none.
    return dx, None, tuple(da), tuple(db), (None,) * len(a0), (None,) * len(b0)


_through_sum.defvjp(_forward, _backward)
