"""Bottleneck adapters (Houlsby et al. 2019): y = x W, then y + gelu(y D + d) U + u.

They sit behind the layers that write to the residual stream, before it is added: behind the
attention's output projection and the MLP's last one. U and u start at 0.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method, uniform
from ift_jax.peft.sites import Shapes, Site, padded, taken


def on(site: Site) -> bool:
    """What writes to the residual stream."""
    return site.out_axes == ("embed",)


def trained(site: Site, config: PeftConfig) -> Shapes:
    """Both matrices and both biases of one layer."""
    return {
        "down": ((*site.out_shape, config.rank), (*site.out_axes, "rank")),
        "down_bias": ((config.rank,), ("rank",)),
        "up": ((config.rank, *site.out_shape), ("rank", *site.out_axes)),
        "up_bias": (site.out_shape, site.out_axes),
    }


def init(site: Site, config: PeftConfig, key: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """All but the random matrix D at 0."""
    shapes = {name: (weight.shape[0], *shape) for name, (shape, _) in trained(site, config).items()}
    arrays = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    arrays["down"] = uniform(key, shapes["down"], math.prod(site.out_shape) ** -0.5)
    return arrays, {}


def linear(at: Linear, _: PeftConfig) -> Array:
    """x W with a small network behind it."""
    y = at.plain()
    for site, own in zip(at.sites, at.arrays, strict=True):
        arrays = {name: array.astype(y.dtype) for name, array in own.items()}
        part = taken(y, site.cuts)
        h = jnp.tensordot(part, arrays["down"], len(site.out_shape)) + arrays["down_bias"]
        added = jnp.tensordot(jax.nn.gelu(h), arrays["up"], 1) + arrays["up_bias"]
        y = y + padded(added, site.cuts, at.out_shape)
    return y


METHOD = Method(trained=trained, init=init, linear=linear, merged=None, on=on)
