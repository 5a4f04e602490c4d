"""Weights trained whole: selective tuning, norm tuning, and what is trained beside an adapter.

They are trained in float32 and stand in for the base's own, which stay frozen. Of
embedding and output matrix, it can be the rows of a few tokens alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ift_jax.models.quantization import dense_layers
from ift_jax.peft.sites import Cut, Shapes, Site, replaced, taken

Tree = dict[str, Any]


def is_norm(site: Site) -> bool:
    """Whether a tensor is a norm's scale."""
    return site.out_axes == ("norm",)


def shapes(site: Site) -> Shapes:
    """The trained array, all layers', under the name of its branch."""
    shape, axes = (*site.in_shape, *site.out_shape), (*site.in_axes, *site.out_axes)
    if site.layers:
        shape, axes = (len(site.layers), *shape), ("layers", *axes)
    return {site.module: (shape, axes)}


def start(sites: Sequence[Site], weights: Tree) -> dict[str, Array]:
    """Copies of the weights themselves, in float32."""
    return {site.module: jnp.array(read(weights, site), jnp.float32) for site in sites}


def placed(
    sites: Sequence[Site], trained: dict[str, Array], weights: Tree, dtype: Any = None
) -> Tree:
    """The weights' tree with the trained arrays in the places of those that they stand for.

    Args:
        dtype: of the arrays that are written into; default: their own.
    """
    for site in sites:
        weights = written(weights, site, trained[site.module], dtype)
    return weights


def read(weights: Tree, site: Site) -> Array:
    """A site's part of the weights, of the layers that it means: [L, *in, *out]."""
    return part_of(at_path(weights, site.path), site)


def part_of(stored: Any, site: Site) -> Array:
    """The same of the whole array, which may be quantized."""
    array = dense_layers(stored)
    if site.layers and len(site.layers) < array.shape[0]:
        array = array[jnp.array(site.layers)]
    return taken(array, site.cuts)


def written(weights: Tree, site: Site, part: Array, dtype: Any = None) -> Tree:
    """The tree with other values at a site; the tree that came stays as it is.

    Args:
        dtype: of the array that is written; default: as it was.
    """
    whole = dense_layers(at_path(weights, site.path))
    dtype = dtype or whole.dtype
    part = part.astype(dtype)
    if site.layers and len(site.layers) < whole.shape[0]:
        rows, whole = jnp.array(site.layers), whole.astype(dtype)
        part = whole.at[rows].set(replaced(whole[rows], part, site.cuts))
    elif site.cuts:
        part = replaced(whole.astype(dtype), part, site.cuts)
    return _with(weights, site.path.split("."), part)


class Part(NamedTuple):
    """One layer's trained weights that are not all of an array, in place of its own.

    Were they written into the array, its gradient would be formed: of all its outputs, and of the
    layers that are not trained. Few rows, as in decoding, take their product beside the array's,
    for which no weights are copied.

    Attributes:
        cuts: their part of the array's output axes.
        trained: [*in, *out].
        on: [], whether this layer is trained; None if all layers are.
    """

    cuts: tuple[Cut, ...]
    trained: Array
    on: Array | None

    def placed(self, weight: Array) -> Array:
        """One layer's array [*in, *out] with the trained values, to which no gradient goes."""
        own = jax.lax.stop_gradient(self.trained).astype(weight.dtype)
        if self.on is not None:
            own = jnp.where(self.on, own, taken(weight, self.cuts))
        return replaced(weight, own, self.cuts)

    def product(self, y: Array, x: Array, num_in: int) -> Array:
        """y, which is x times the array, with x times the trained values in their place."""
        own = jnp.tensordot(x, self.trained.astype(x.dtype), num_in)
        if self.on is not None:
            own = jnp.where(self.on, own, taken(y, self.cuts))
        return replaced(y, own, self.cuts)

    def with_gradient(self, y: Array, x: Array, num_in: int) -> Array:
        """y itself, which is x times `placed`; its gradient goes on to the trained values."""
        return _with_gradient(num_in, self.cuts, y, x, self.trained, self.on)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(
    num_in: int, cuts: tuple[Cut, ...], y: Array, x: Array, trained: Array, on: Array | None
) -> Array:
    return y


def _forward(num_in: int, cuts: Any, y: Array, x: Array, trained: Array, on: Any) -> Any:
    return y, (x, on)


def _backward(num_in: int, cuts: Any, saved: Any, dy: Array) -> Any:
    x, on = saved
    rows = tuple(range(x.ndim - num_in))
    part = taken(dy, cuts)

    def product(x: Array, part: Array) -> Array:
        return jnp.tensordot(x, part, (rows, rows)).astype(jnp.float32)

    def nothing(x: Array, part: Array) -> Array:
        return jnp.zeros((*x.shape[len(rows) :], *part.shape[len(rows) :]), jnp.float32)

    gradient = product(x, part) if on is None else jax.lax.cond(on, product, nothing, x, part)
    return dy, None, gradient, None


_with_gradient.defvjp(_forward, _backward)


class Rows(NamedTuple):
    """The rows of one table [V, D] that are trained.

    Attributes:
        name: of the table, as `Site.name`.
        path: our array.
        ids: the tokens, all different.
        width: D.
    """

    name: str
    path: str
    ids: tuple[int, ...]
    width: int

    @staticmethod
    def of(tensors: Sequence[Site], ids: tuple[int, ...]) -> tuple["Rows", ...]:
        """These tokens' rows in every table that has one a token."""
        tables = [site for site in tensors if is_table(site)]
        return tuple(Rows(s.name, s.path, ids, s.out_shape[1]) for s in tables if ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the trained array."""
        return len(self.ids), self.width

    def start(self, weights: Tree) -> Float[Array, "T D"]:
        """The rows of the weights themselves."""
        return at_path(weights, self.path)[jnp.array(self.ids)].astype(jnp.float32)

    def placed(self, weights: Tree, values: Float[Array, "T D"]) -> Tree:
        """The weights' tree with these values in the rows; the tree that came stays as it is."""
        table = at_path(weights, self.path)
        changed = table.at[jnp.array(self.ids)].set(values.astype(table.dtype))
        return _with(weights, self.path.split("."), changed)


def is_table(site: Site) -> bool:
    """Whether a tensor has a row a token: the embedding, and an output matrix of its own."""
    return site.out_axes[:1] == ("vocab",)


def at_path(tree: Tree, path: str) -> Any:
    """The node at a dotted path.

    Example:
        >>> at_path({"a": {"b": ("c",)}}, "a.b")
        ('c',)
    """
    for key in path.split("."):
        tree = tree[key]
    return tree


def _with(tree: Tree, keys: list[str], value: Array) -> Tree:
    first, *rest = keys
    return {**tree, first: _with(tree[first], rest, value) if rest else value}
