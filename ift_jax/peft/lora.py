"""LoRA (Hu et al. 2021): y = x (W + s AB), with A [in, R] and B [R, out] trained and W frozen.

Also rsLoRA and PiSSA, which differ in the scaling s and in the start. With PiSSA the frozen
matrices A0, B0 hold the start, and W + s (AB - A0 B0) is what computes; so the base stays
the base, and dropping the adapter is dropping two small trees.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.errors import InputError
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method, dropped, many_rows, stored, uniform
from ift_jax.peft.sites import Cut, Shapes, Site, padded, taken


def trained(site: Site, config: PeftConfig) -> Shapes:
    """A and B of one layer."""
    return {
        "a": ((*site.in_shape, config.rank), (*site.in_axes, "rank")),
        "b": ((config.rank, *site.out_shape), ("rank", *site.out_axes)),
    }


def frozen(site: Site, config: PeftConfig) -> Shapes:
    """A0 and B0, which only PiSSA has."""
    return trained(site, config) if config.init == "pissa" else {}


def init(site: Site, config: PeftConfig, key: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """A and B at a start where the adapted model is the base; of PiSSA, A0 and B0 too.

    The random matrix is uniform within one over the root of its number of inputs, as peft's.

    Raises:
        InputError: for PiSSA with more rank than the weight has.
    """
    size, out = math.prod(site.in_shape), math.prod(site.out_shape)
    layers, rank = weight.shape[0], config.rank
    a_shape, b_shape = (layers, *site.in_shape, rank), (layers, rank, *site.out_shape)
    if config.init == "pissa":
        if rank > min(size, out):
            raise InputError(
                f"config.peft.rank={rank}: init=pissa takes that many singular directions, of "
                f"which {site.module}, {size} inputs by {out} outputs, has {min(size, out)}; "
                "lower the rank, leave the layer out of targets, or start otherwise"
            )
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
        return {"a": jnp.zeros(a_shape), "b": uniform(key, b_shape, rank**-0.5)}, {}
    return {"a": uniform(key, a_shape, size**-0.5), "b": jnp.zeros(b_shape)}, {}


def linear(at: Linear, config: PeftConfig) -> Array:
    """x (W + s AB) for all linear layers that share an array and an input.

    Many rows in float32 multiply with W + s AB, made once; few rows, and lower precision,
    in which small changes of W would round away, take x A B beside x W.
    """
    x, num_in = at.x, at.num_in
    dropout = config.dropout if at.key is not None else 0.0
    many = many_rows(x, at.weight, num_in)
    by_row = "rows" in at.arrays[0]
    if x.dtype == jnp.float32 and many and not dropout and not by_row:
        a, b = (tuple(arrays[name] for arrays in at.arrays) for name in ("a", "b"))
        a0, b0 = (tuple(arrays[name] for arrays in at.frozen if arrays) for name in ("a", "b"))
        cuts = tuple(site.cuts for site in at.sites)
        return stored(_through_sum(num_in, cuts, config.scaling, x, at.weight, a, b, a0, b0))
    y = at.plain()
    for number, site in enumerate(at.sites):
        part = product(dropped(x, dropout, at.key, number), at.arrays[number], num_in)
        if at.frozen[number]:
            part = part - product(x, at.frozen[number], num_in)
        y = y + padded(part * config.scaling, site.cuts, at.out_shape)
    return y


def product(x: Array, pair: Arrays, num_in: int) -> Array:
    """x A B in the dtype of x; "rows" [B, R], where they are, are factors of each row's x A."""
    a, b = pair["a"].astype(x.dtype), pair["b"].astype(x.dtype)
    inner = jnp.tensordot(x, a, num_in)
    if "rows" in pair:
        inner = inner * pair["rows"].astype(x.dtype)[:, None, :]
    return jnp.tensordot(inner, b, 1)


def change(arrays: Arrays, fixed: Arrays, config: PeftConfig) -> Array:
    """s AB, or s (AB - A0 B0): what the adapter adds to its part of W."""
    delta = jnp.tensordot(arrays["a"], arrays["b"], 1)
    if fixed:
        delta = delta - jnp.tensordot(fixed["a"], fixed["b"], 1)
    return delta * config.scaling


def merged(weight: Array, _: Site, arrays: Arrays, fixed: Arrays, config: PeftConfig) -> Array:
    """W + s AB of one site and one layer."""
    return weight + change(arrays, fixed, config)


def unmerged(weight: Array, _: Site, arrays: Arrays, fixed: Arrays, config: PeftConfig) -> Array:
    """W from W + s AB."""
    return weight - change(arrays, fixed, config)


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

METHOD = Method(
    trained=trained, init=init, linear=linear, merged=merged, unmerged=unmerged, frozen=frozen
)
