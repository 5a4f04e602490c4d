"""VeRA (Kopiczko et al. 2024): y = x W + (x A * d) B * b, with one random A and B for all layers.

Only the vectors d [R] and b [out] are trained. A and B are as large as the largest layer
needs; a smaller one uses their first rows and columns.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method, dropped, uniform
from ift_jax.peft.sites import Shapes, Site, padded
from ift_jax.sharding import constrain

START = 0.1  # of d; the paper finds 0.1 and smaller to do well


def trained(site: Site, config: PeftConfig) -> Shapes:
    """The vectors of one layer."""
    return {"d": ((config.rank,), ("rank",)), "scale_b": (site.out_shape, site.out_axes)}


def shared(sites: Sequence[Site], config: PeftConfig) -> Shapes:
    """The random matrices of all layers."""
    inputs = max(math.prod(site.in_shape) for site in sites)
    outputs = max(math.prod(site.out_shape) for site in sites)
    return {
        "a": ((inputs, config.rank), (None, None)),
        "b": ((config.rank, outputs), (None, None)),
    }


def init_shared(sites: Sequence[Site], config: PeftConfig, key: Array) -> Arrays:
    """Kaiming-uniform draws: within the root of six over the number of inputs."""
    keys = jax.random.split(key)
    return {
        name: uniform(k, shape, math.sqrt(6 / shape[0]))
        for k, (name, (shape, _)) in zip(keys, shared(sites, config).items(), strict=True)
    }


def init(site: Site, config: PeftConfig, _: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """b at 0, so that the adapted model is the base."""
    layers = weight.shape[0]
    return {
        "d": jnp.full((layers, config.rank), START),
        "scale_b": jnp.zeros((layers, *site.out_shape)),
    }, {}


def linear(at: Linear, config: PeftConfig) -> Array:
    """x W + (x A * d) B * b."""
    y = at.plain()
    for number, site in enumerate(at.sites):
        x = dropped(at.x, config.dropout, at.key, number)
        a, b = (m.astype(x.dtype) for m in _matrices(site, at.frozen[number]))
        d, scale_b = (at.arrays[number][name].astype(x.dtype) for name in ("d", "scale_b"))
        part = jnp.tensordot(jnp.tensordot(x, a, at.num_in) * d, b, 1) * scale_b
        y = y + padded(part, site.cuts, at.out_shape)
    return y


def merged(weight: Array, site: Site, arrays: Arrays, fixed: Arrays, _: PeftConfig) -> Array:
    """W + A d B b of one site and one layer."""
    return weight + _change(site, arrays, fixed)


def unmerged(weight: Array, site: Site, arrays: Arrays, fixed: Arrays, _: PeftConfig) -> Array:
    """W from W + A d B b."""
    return weight - _change(site, arrays, fixed)


def _change(site: Site, arrays: Arrays, fixed: Arrays) -> Array:
    a, b = _matrices(site, fixed)
    return jnp.tensordot(a * arrays["d"], b, 1) * arrays["scale_b"]


def _matrices(site: Site, fixed: Arrays) -> tuple[Array, Array]:
    inputs, outputs = math.prod(site.in_shape), math.prod(site.out_shape)
    # Pinned whole, for XLA would cut them over the mesh, and of the parts it takes the wrong rows
    # into slices: a generation's loop read others than the prompt (jaxlib 0.10.2).
    a, b = (constrain(fixed[name], None, None) for name in ("a", "b"))
    a, b = a[:inputs], b[:, :outputs]
    return a.reshape(*site.in_shape, -1), b.reshape(-1, *site.out_shape)


METHOD = Method(
    trained=trained,
    init=init,
    linear=linear,
    merged=merged,
    unmerged=unmerged,
    shared=shared,
    init_shared=init_shared,
)
