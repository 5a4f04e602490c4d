"""IA3 (Liu et al. 2022): keys, values and the MLP's inner activations, each times a vector.

A layer that reads the MLP's inner axis has its input scaled, any other its output.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method, scaled
from ift_jax.peft.sites import Shapes, Site, replaced


def scales_input(site: Site) -> bool:
    """Whether the vector stands at the layer's input."""
    return site.in_axes == ("mlp",)


def on(site: Site) -> bool:
    """Keys, values, and what reads the MLP's inner activations."""
    return scales_input(site) or (
        "kv_heads" in site.out_axes and "heads_per_kv" not in site.out_axes
    )


def trained(site: Site, _: PeftConfig) -> Shapes:
    """The vector of one layer."""
    if scales_input(site):
        return {"scale": (site.in_shape, site.in_axes)}
    return {"scale": (site.out_shape, site.out_axes)}


def init(site: Site, config: PeftConfig, _: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """Ones."""
    ((shape, _axes),) = trained(site, config).values()
    return {"scale": jnp.ones((weight.shape[0], *shape))}, {}


def linear(at: Linear, _: PeftConfig) -> Array:
    """(x * l) W, or x W * l."""
    if scales_input(at.sites[0]):
        return jnp.tensordot(scaled(at.x, at.arrays[0]["scale"]), at.weight, at.num_in)
    gain = jnp.ones(at.out_shape)
    for site, arrays in zip(at.sites, at.arrays, strict=True):
        gain = replaced(gain, arrays["scale"], site.cuts)
    return scaled(at.plain(), gain)


def merged(weight: Array, site: Site, arrays: Arrays, _: Arrays, __: PeftConfig) -> Array:
    """The weights of one site and one layer, scaled by inputs or by outputs."""
    return weight * _spread(site, arrays)


def unmerged(weight: Array, site: Site, arrays: Arrays, _: Arrays, __: PeftConfig) -> Array:
    """The weights before they were scaled, by no 0."""
    return weight / _spread(site, arrays)


def _spread(site: Site, arrays: Arrays) -> Array:
    """The vector in a shape that multiplies the weights."""
    scale = arrays["scale"]
    return scale.reshape(-1, *(1,) * len(site.out_shape)) if scales_input(site) else scale


METHOD = Method(
    trained=trained,
    init=init,
    linear=linear,
    merged=merged,
    unmerged=unmerged,
    unchanged=1.0,
    on=on,
)
