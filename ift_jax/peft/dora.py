"""DoRA (Liu et al. 2024): y = m / |W + s AB| * x (W + s AB), with |.| over each output's inputs.

A magnitude m [out] is trained beside A and B. As the paper proposes (section 4.3), and peft does,
no gradient goes through the norm.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.peft import lora
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Arrays, Linear, Method, dropped, scaled, stored
from ift_jax.peft.sites import Shapes, Site, padded, replaced, taken


def trained(site: Site, config: PeftConfig) -> Shapes:
    """A, B and the magnitude of one layer."""
    return {**lora.trained(site, config), "magnitude": (site.out_shape, site.out_axes)}


def init(site: Site, config: PeftConfig, key: Array, weight: Array) -> tuple[Arrays, Arrays]:
    """LoRA's start, with the weight's own norms as magnitudes."""
    pair, fixed = lora.init(site, config, key, weight)
    inputs = tuple(range(1, 1 + len(site.in_shape)))
    return {**pair, "magnitude": _norm(weight.astype(jnp.float32), inputs)}, fixed


def linear(at: Linear, config: PeftConfig) -> Array:
    """x (W + s AB), every output scaled.

    With dropout, x W keeps the whole input and what is added to it has the dropped one, as in
    peft: x W + (g - 1) x' W + g s x' A B, where g is m over the norm.
    """
    gains = [
        _gain(taken(at.weight, site.cuts), site, arrays, fixed, config)
        for site, arrays, fixed in zip(at.sites, at.arrays, at.frozen, strict=True)
    ]
    if at.key is None or not config.dropout:
        gain = jnp.ones(at.out_shape)
        for site, own in zip(at.sites, gains, strict=True):
            gain = replaced(gain, own, site.cuts)
        return scaled(lora.linear(at, config), gain)
    y = at.plain()
    for number, (site, gain) in enumerate(zip(at.sites, gains, strict=True)):
        x = dropped(at.x, config.dropout, at.key, number)
        own = jnp.tensordot(x, taken(at.weight, site.cuts), at.num_in)
        added = lora.product(x, at.arrays[number], at.num_in) * config.scaling
        change = scaled(own, gain - 1) + scaled(added, gain)
        y = y + padded(change, site.cuts, at.out_shape)
    return y


def merged(weight: Array, site: Site, arrays: Arrays, fixed: Arrays, config: PeftConfig) -> Array:
    """m / |W + s AB| * (W + s AB) of one site and one layer."""
    gain = _gain(weight, site, arrays, fixed, config)
    return (weight + lora.change(arrays, fixed, config)) * gain


def _gain(weight: Array, site: Site, arrays: Arrays, fixed: Arrays, config: PeftConfig) -> Array:
    """m over the norm [*out]; 1 where m is 0, as in a layer that is not adapted."""
    whole = weight.astype(jnp.float32) + lora.change(arrays, fixed, config)
    norm = stored(jax.lax.stop_gradient(_norm(whole, tuple(range(len(site.in_shape))))))
    on = arrays["magnitude"] != 0
    return jnp.where(on, arrays["magnitude"] / jnp.where(on, norm, 1.0), 1.0)


def _norm(weight: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(weight), axis=axes))


METHOD = Method(trained=trained, init=init, linear=linear, merged=merged)
