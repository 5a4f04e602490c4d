"""BitFit (Ben Zaken et al. 2022): only biases are trained.

Every linear layer gets one, beside that of the checkpoint if it has any: training b + b0 from
b = 0 is training the bias from where it stands.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method
from ift_jax.peft.sites import Shapes, Site, padded


def trained(site: Site, _: PeftConfig) -> Shapes:
    """The bias of one layer."""
    return {"bias": (site.out_shape, site.out_axes)}


def init(site: Site, _: PeftConfig, __: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """Zeros."""
    return {"bias": jnp.zeros((weight.shape[0], *site.out_shape))}, {}


def linear(at: Linear, _: PeftConfig) -> Array:
    """x W + b."""
    y = at.plain()
    for site, arrays in zip(at.sites, at.arrays, strict=True):
        y = y + padded(arrays["bias"].astype(y.dtype), site.cuts, at.out_shape)
    return y


METHOD = Method(trained=trained, init=init, linear=linear, merged=None)
