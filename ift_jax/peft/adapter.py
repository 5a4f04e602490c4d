"""An adapter: which method sits where, and its arrays beside the frozen weights.

The parameters of an adapted model are the base's tree with one or two more branches:
"adapter" holds the arrays that are trained, "adapter_frozen" those that the method draws
once and never trains. `LanguageModel.adapt` makes them; everything that takes a structure
and parameters (training, scoring, generation) works with them as with any others.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.models.quantization import Quantized, dense_layers
from ift_jax.peft import lora
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import Site, replaced, taken

Tree = dict[str, Any]

TRAINED, FROZEN, ROWS = "adapter", "adapter_frozen", "adapter_rows"

# A method is a module with trained_shapes, frozen_shapes, init, linear and merged.
METHODS: Mapping[str, ModuleType] = {"lora": lora}


@dataclass(frozen=True)
class Adapter:
    """The static half of an adapter: hashable, a part of `models.decoder.Structure`.

    `by_row` says that each row of a batch uses its own share of it: the branch "adapter_rows"
    of the parameters has the factors [B, R] of the rows; see `peft.mixing`.
    """

    config: PeftConfig
    sites: tuple[Site, ...]
    num_layers: int
    by_row: bool = False

    @property
    def method(self) -> Any:
        """The module that knows the method's arithmetic."""
        return METHODS[self.config.method]

    def shapes(self) -> Tree:
        """The branches of `params` that it adds, as jax.ShapeDtypeStruct leaves in float32."""
        return self._branches(
            lambda layers, shape, _: jax.ShapeDtypeStruct((layers, *shape), "float32")
        )

    def axes(self) -> Tree:
        """The same branches with each array's logical axis names."""
        return self._branches(lambda _, __, axes: ("layers", *axes))

    def _branches(self, leaf: Any) -> Tree:
        branches: Tree = {}
        for name, shapes_of in (
            (TRAINED, self.method.trained_shapes),
            (FROZEN, self.method.frozen_shapes),
        ):
            tree = {
                site.module: {
                    array: leaf(len(site.layers), *both)
                    for array, both in shapes_of(site, self.config).items()
                }
                for site in self.sites
            }
            if any(tree.values()):
                branches[name] = {"layers": tree}
        return branches

    def init(self, base: Tree, seed: int) -> Tree:
        """The branches at the start.

        A site's draw depends on the seed and its name, not on the other sites.
        """
        trained: Tree = {}
        frozen: Tree = {}
        for site in self.sites:
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(site.module.encode()))
            stored = _at(base, site)

            def start(key: Array, stored: Any, site: Site = site) -> tuple[Tree, Tree]:
                weight = taken(_layers(dense_layers(stored), site.layers), site.cuts)
                return self.method.init(site, self.config, key, weight)

            # Compiled, float weights that a method does not look at are never made.
            quantized = isinstance(stored, Quantized)
            trained[site.module], fixed = (jax.jit(start) if quantized else start)(key, stored)
            if fixed:
                frozen[site.module] = fixed
        return {TRAINED: {"layers": trained}, **({FROZEN: {"layers": frozen}} if frozen else {})}

    def layer_arrays(self, params: Tree, key: Array | None) -> Tree:
        """What the scan over layers reads beside the weights: all arrays with L in front.

        Layers that are not adapted get zeros, with which every method does nothing.

        Args:
            key: of dropout; None at evaluation.
        """
        arrays: Tree = {"trained": {}, "frozen": {}}
        for site in self.sites:
            for branch, tree in (("trained", params[TRAINED]), ("frozen", params.get(FROZEN, {}))):
                arrays[branch][site.module] = jax.tree.map(
                    lambda x, layers=site.layers: self._spread(x, layers),
                    tree.get("layers", {}).get(site.module, {}),
                )
        if self.by_row:
            rows = params[ROWS]
            for pair in arrays["trained"].values():
                pair["rows"] = jnp.broadcast_to(rows, (self.num_layers, *rows.shape))
        if key is not None and self.config.dropout:
            arrays["key"] = jax.random.split(key, self.num_layers)
        return arrays

    def _spread(self, x: Array, layers: tuple[int, ...]) -> Array:
        if len(layers) == self.num_layers:
            return x
        return jnp.zeros((self.num_layers, *x.shape[1:]), x.dtype).at[jnp.array(layers)].set(x)

    def linear(self, path: str, x: Array, weight: Array, num_in: int, arrays: Tree) -> Array:
        """The linear map of one layer's array, adapted where a site uses it.

        Args:
            path: of the array below `layers`.
            arrays: one layer's slice of `layer_arrays`.
        """
        sites = [site for site in self.sites if site.path == path]
        if not sites:
            return jnp.tensordot(x, weight, num_in)
        key = arrays.get("key")
        return self.method.linear(
            x,
            weight,
            sites,
            [arrays["trained"][site.module] for site in sites],
            [arrays["frozen"][site.module] for site in sites],
            self.config,
            None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode())),
        )

    def merged(self, params: Tree) -> Tree:
        """The base's tree with the adapter worked into its weights.

        Quantized weights that it changes become float32: what the adapter was trained beside is
        what they stand for, not what was quantized.
        """
        base = {name: tree for name, tree in params.items() if name not in (TRAINED, FROZEN)}
        base["layers"] = jax.tree.map(lambda x: x, base["layers"])  # new dicts, same arrays
        frozen = params.get(FROZEN, {}).get("layers", {})
        for site in self.sites:
            whole = dense_layers(_at(base, site))
            some = _layers(whole, site.layers)
            part = jax.vmap(
                lambda w, a, f, site=site: self.method.merged(w, site, a, f, self.config)
            )(taken(some, site.cuts), params[TRAINED]["layers"][site.module],
              frozen.get(site.module, {}))  # fmt: skip
            some = replaced(some, part, site.cuts)
            if len(site.layers) < self.num_layers:
                some = whole.at[jnp.array(site.layers)].set(some)
            *parents, last = site.path.split(".")
            node = base["layers"]
            for parent in parents:
                node = node[parent]
            node[last] = some
        return base


def combine(trained: Tree, base: Tree) -> Tree:
    """What the model computes with: all weights that are trained, or base and adapter."""
    return {**base, TRAINED: trained} if base else trained


def separate(params: Tree) -> tuple[Tree, Tree]:
    """The tree that is trained and the tree that is not: `combine` undone."""
    if TRAINED not in params:
        return params, {}
    return params[TRAINED], {name: tree for name, tree in params.items() if name != TRAINED}


def _at(base: Tree, site: Site) -> Any:
    node: Any = base["layers"]
    for key in site.path.split("."):
        node = node[key]
    return node


def _layers(array: Array, layers: tuple[int, ...]) -> Array:
    return array if len(layers) == array.shape[0] else array[jnp.array(layers)]
