"""What a method that changes linear layers consists of, and pieces that several use."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import Shapes, Site

Arrays = dict[str, Array]
STORED = "stored"


class Linear(NamedTuple):
    """One layer's input and weights at one of our arrays, and what a method has there.

    Attributes:
        x: [..., *in], the input that all sites of the array share.
        weight: [*in, *out], in the dtype of x.
        sites: the adapted linear layers that are parts of the array.
        arrays: per site, its trained arrays.
        frozen: per site, arrays that the method drew at its start and does not train.
        key: of dropout; None at evaluation.
    """

    x: Array
    weight: Array
    sites: Sequence[Site]
    arrays: Sequence[Arrays]
    frozen: Sequence[Arrays]
    key: Array | None

    @property
    def num_in(self) -> int:
        """Input axes of the weight."""
        return len(self.sites[0].in_shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Sizes of the whole array's output axes."""
        return self.weight.shape[self.num_in :]

    def plain(self) -> Array:
        """x W, as if there were no adapter."""
        return jnp.tensordot(self.x, self.weight, self.num_in)


def no_shapes(_: Any, __: PeftConfig) -> Shapes:
    """Of a method without arrays of that kind."""
    return {}


class Method(NamedTuple):
    """A method as pure functions; each file of this package that has one calls it METHOD.

    Attributes:
        trained: shapes and logical axes of a site's trained arrays, one layer's.
        init: a site's trained and frozen arrays [L, ...] at the start, from the config, a key and
            the site's weights [L, *in, *out].
        linear: what stands in for x W.
        merged: the weights that compute the same, from weights, site, arrays and frozen arrays of
            one layer; None where no weights do.
        unmerged: the weights that were merged, from what `merged` gave and the rest of what it
            takes; None where they do not follow from it.
        frozen: as `trained`, of arrays per layer that are not trained.
        shared: as `trained`, but of all sites together: one set for all layers.
        init_shared: those at the start.
        unchanged: what stands in the arrays of a layer that is not adapted.
        on: whether the method sits at a linear layer unless `targets` names others.
    """

    trained: Callable[[Site, PeftConfig], Shapes]
    init: Callable[[Site, PeftConfig, Array, Array], tuple[Arrays, Arrays]]
    linear: Callable[[Linear, PeftConfig], Array]
    merged: Callable[[Array, Site, Arrays, Arrays, PeftConfig], Array] | None
    unmerged: Callable[[Array, Site, Arrays, Arrays, PeftConfig], Array] | None = None
    frozen: Callable[[Site, PeftConfig], Shapes] = no_shapes
    shared: Callable[[Sequence[Site], PeftConfig], Shapes] = no_shapes
    init_shared: Callable[[Sequence[Site], PeftConfig, Array], Arrays] | None = None
    unchanged: float = 0.0
    on: Callable[[Site], bool] = lambda _: True


def stored(x: Array) -> Array:
    """x, which the backward pass finds stored where it finds matrix products stored.

    Marked are products that have a gradient rule of their own, into which a remat policy does not
    look, and what takes products as large as a weight to compute.
    """
    return checkpoint_name(x, STORED)


def many_rows(x: Array, weight: Array, num_in: int) -> bool:
    """Whether x has so many rows that a pass over the weight costs little beside the product."""
    inputs = math.prod(weight.shape[:num_in])
    outputs = math.prod(weight.shape[num_in:])
    return (x.size // inputs) * (inputs + outputs) > inputs * outputs


def scaled(x: Array, gain: Array) -> Array:
    """x times a gain near 1, of which bfloat16 would round a small change away."""
    return (x.astype(jnp.float32) * gain).astype(x.dtype)


def dropped(x: Array, rate: float, key: Array | None, number: int) -> Array:
    """x with a share of its entries at zero and the others larger by as much; x without a key."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


def uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    """Float32 draws between -bound and bound."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
