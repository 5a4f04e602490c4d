"""An adapter: which method sits where, and its arrays beside the frozen weights.

The parameters of an adapted model are the base's tree with one or two more branches:
"adapter" holds the arrays that are trained, "adapter_frozen" those that the method draws
once and never trains. `LanguageModel.adapt` makes them; everything that takes a structure
and parameters (training, scoring, generation) works with them as with any others.

    adapter         layers   by linear layer: what a method trains there, [L, ...]
                    whole    weights that are trained themselves, in float32
                    rows     of a few tokens, in embedding and output matrix, by path
                    virtual  of prompt and prefix tuning
    adapter_frozen  layers   as above
                    shared   one set of arrays for all layers
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ift_jax.errors import InputError
from ift_jax.models.quantization import Quantized
from ift_jax.peft import bitfit, bottleneck, dora, ia3, lora, vera, virtual, whole
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import Linear, Method, many_rows
from ift_jax.peft.sites import Site, selected
from ift_jax.peft.whole import Rows

Tree = dict[str, Any]

TRAINED, FROZEN, ROWS = "adapter", "adapter_frozen", "adapter_rows"

METHODS: dict[str, Method] = {
    "lora": lora.METHOD,
    "dora": dora.METHOD,
    "vera": vera.METHOD,
    "ia3": ia3.METHOD,
    "bottleneck": bottleneck.METHOD,
    "bitfit": bitfit.METHOD,
}


@dataclass(frozen=True)
class Adapter:
    """The static half of an adapter: hashable, a part of `models.decoder.Structure`.

    Attributes:
        sites: the linear layers that the method changes.
        whole: the tensors that are trained themselves.
        rows: of a few tokens, trained beside the adapter.
        size: layers L, width D, key/value heads K and head size H of the model.
        by_row: whether each row of a batch uses its own share of it; the branch "adapter_rows"
            of the parameters then has the factors [B, R] of the rows, see `peft.mixing`.
    """

    config: PeftConfig
    sites: tuple[Site, ...]
    whole: tuple[Site, ...]
    size: tuple[int, int, int, int]
    by_row: bool = False
    rows: tuple[Rows, ...] = ()

    @staticmethod
    def of(
        config: PeftConfig,
        tensors: Iterable[Site],
        size: tuple[int, int, int, int],
        token_ids: tuple[int, ...] = (),
    ) -> "Adapter":
        """The adapter that a config means for a model with these tensors.

        Args:
            token_ids: what `token_rows` names.

        Raises:
            InputError: if the config names what the model does not have.
        """
        tensors = tuple(tensors)
        name, method = config.method, METHODS.get(config.method)
        sites: tuple[Site, ...] = ()
        if method is not None:
            usual = [s for s in tensors if s.is_linear and (config.targets or method.on(s))]
            sites = selected(usual, config.targets, config.layers, "targets")
        if name == "norms":
            kept = selected(filter(whole.is_norm, tensors), (), config.layers, "layers")
        elif name == "selective":
            kept = selected(tensors, config.targets, config.layers, "targets")
        elif config.modules_to_save:
            kept = selected(tensors, config.modules_to_save, (), "modules_to_save")
        else:
            kept = ()
        both = {n for s in sites for n in s.names()} & {n for s in kept for n in s.names()}
        if both:
            raise InputError(
                f"config.peft.modules_to_save: {min(both)} has an adapter; leave it out of targets"
            )
        rows = Rows.of(tensors, token_ids)
        for row in rows:
            if row.path in {site.path for site in kept}:
                raise InputError(
                    f"config.peft.token_rows: modules_to_save trains all rows of {row.name} already"
                )
        return Adapter(config, sites, kept, size, rows=rows)

    @property
    def method(self) -> Method:
        """The arithmetic of the linear layers that it changes."""
        return METHODS[self.config.method]

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.size[0]

    @property
    def makes_weights(self) -> bool:
        """Whether training multiplies with weights that are cut from an array, or placed in it."""
        return bool(self.parts) or (self.config.method == "dora" and self.config.dropout > 0)

    @property
    def parts(self) -> tuple[Site, ...]:
        """Of `whole`, the linear layers that are not all of an array: `linear` places them."""
        return tuple(
            site
            for site in self.whole
            if site.is_linear and (site.cuts or len(site.layers) < self.num_layers)
        )

    @property
    def num_virtual(self) -> int:
        """Positions that stand in front of every example."""
        return self.config.num_virtual_tokens if self.config.method in virtual.METHODS else 0

    @property
    def can_merge(self) -> bool:
        """Whether the model's own weights can express it."""
        method = METHODS.get(self.config.method)
        return not self.num_virtual and (method is None or method.merged is not None)

    def shapes(self) -> Tree:
        """The branches of `params` that it adds, as jax.ShapeDtypeStruct leaves in float32."""
        return self._branches(lambda shape, _: jax.ShapeDtypeStruct(shape, "float32"))

    def axes(self) -> Tree:
        """The same branches with each array's logical axis names."""
        return self._branches(lambda _, axes: axes)

    def _branches(self, leaf: Any) -> Tree:
        def per_site(shapes_of: Any) -> Tree:
            found = {
                site.module: {
                    name: leaf((len(site.layers), *shape), ("layers", *axes))
                    for name, (shape, axes) in shapes_of(site, self.config).items()
                }
                for site in self.sites
            }
            return found if any(found.values()) else {}

        def leaves(shapes: Any) -> Tree:
            return {name: leaf(*both) for name, both in shapes.items()}

        trained: Tree = {"whole": leaves({k: v for s in self.whole for k, v in
                                          whole.shapes(s).items()})}  # fmt: skip
        trained["rows"] = {r.path: leaf(r.shape, (None, "embed")) for r in self.rows}
        frozen: Tree = {}
        if self.num_virtual:
            trained["virtual"] = leaves(virtual.shapes(self.config, self.size))
        if self.sites:
            trained["layers"] = per_site(self.method.trained)
            frozen["layers"] = per_site(self.method.frozen)
            frozen["shared"] = leaves(self.method.shared(self.sites, self.config))
        branches = {TRAINED: _filled(trained), FROZEN: _filled(frozen)}
        return _filled(branches)

    def init(self, weights: Tree, seed: int, text: Any = None) -> Tree:
        """The branches at the start.

        A site's draw depends on the seed and its name, not on the other sites.

        Args:
            text: what a prompt's text stands for; see `virtual.start`.
        """
        key = jax.random.key(seed)
        trained: Tree = {"layers": {}, "whole": whole.start(self.whole, weights)}
        trained["rows"] = {row.path: row.start(weights) for row in self.rows}
        frozen: Tree = {"layers": {}}
        for site in self.sites:
            own = jax.random.fold_in(key, zlib.crc32(site.module.encode()))
            stored = whole.at_path(weights, site.path)

            def start(key: Array, stored: Any, site: Site = site) -> tuple[Tree, Tree]:
                return self.method.init(site, self.config, key, whole.part_of(stored, site))

            # Compiled, float weights that a method does not look at are never made.
            quantized = isinstance(stored, Quantized)
            trained["layers"][site.module], fixed = (jax.jit(start) if quantized else start)(
                own, stored
            )
            if fixed:
                frozen["layers"][site.module] = fixed
        if self.sites and self.method.init_shared:
            frozen["shared"] = self.method.init_shared(self.sites, self.config, key)
        if self.num_virtual:
            table = weights["embedding"]
            trained["virtual"] = virtual.start(self.config, self.size, key, table, text)
        return _filled({TRAINED: _filled(trained), FROZEN: _filled(frozen)})

    def weights(self, params: Tree) -> Tree:
        """The model's own weights in `params`, those trained whole in their places, not `parts`.

        These stay float32, of which the dtype of the others would round small steps away.
        """
        sites = [site for site in self.whole if site not in self.parts]
        trained = params[TRAINED].get("whole", {})
        return whole.placed(sites, trained, own_weights(params), jnp.float32)

    def layer_arrays(self, params: Tree, key: Array | None) -> Tree:
        """What the scan over layers reads beside the weights: all arrays with L in front.

        Layers that are not adapted get values with which the method does nothing.

        Args:
            key: of dropout; None at evaluation.
        """
        arrays: Tree = {"trained": {}, "frozen": {}, "whole": {}, "on": {}}
        for site in self.sites:
            rest = self.method.unchanged
            for branch, tree in (("trained", params[TRAINED]), ("frozen", params.get(FROZEN, {}))):
                arrays[branch][site.module] = jax.tree.map(
                    lambda x, layers=site.layers, rest=rest: self._spread(x, layers, rest),
                    tree.get("layers", {}).get(site.module, {}),
                )
        for site in self.parts:
            part = params[TRAINED]["whole"][site.module]
            arrays["whole"][site.module] = self._spread(part, site.layers, 0.0)
            if len(site.layers) < self.num_layers:
                on = [layer in site.layers for layer in range(self.num_layers)]
                arrays["on"][site.module] = jnp.array(on)
        if self.by_row:
            if ROWS not in params:
                raise InputError(
                    "several adapters are loaded, of which each row uses one by name, and nothing "
                    "says which; load one (load_adapter) or their sum (load_weighted_adapters)"
                )
            rows = params[ROWS]
            for pair in arrays["trained"].values():
                pair["rows"] = jnp.broadcast_to(rows, (self.num_layers, *rows.shape))
        if key is not None and self.config.dropout:
            arrays["key"] = jax.random.split(key, self.num_layers)
        return arrays

    def shared_arrays(self, params: Tree) -> Tree:
        """What all layers read alike."""
        return params.get(FROZEN, {}).get("shared", {})

    def token_rows(self, params: Tree) -> dict[str, tuple[Array, Array]]:
        """Tokens [T] and their trained rows [T, D], by the path of the table they stand for."""
        trained = params[TRAINED].get("rows", {})
        return {row.path: (jnp.array(row.ids), trained[row.path]) for row in self.rows}

    def _spread(self, x: Array, layers: tuple[int, ...], rest: float) -> Array:
        if len(layers) == self.num_layers:
            return x
        others = jnp.full((self.num_layers, *x.shape[1:]), rest, x.dtype)
        return others.at[jnp.array(layers)].set(x)

    def linear(
        self, path: str, x: Array, weight: Array, num_in: int, arrays: Tree, shared: Tree
    ) -> Array:
        """The linear map of one layer's array, adapted where a site uses it.

        Args:
            arrays: one layer's slice of `layer_arrays`.
            shared: `shared_arrays`.
        """
        parts = [
            whole.Part(site.cuts, arrays["whole"][site.module], arrays["on"].get(site.module))
            for site in self.parts
            if site.path == path
        ]
        many = many_rows(x, weight, num_in)
        for part in parts if many else ():
            weight = part.placed(weight)
        sites = [site for site in self.sites if site.path == path]
        if sites:
            key = arrays.get("key")
            at = Linear(
                x,
                weight,
                sites,
                [arrays["trained"][site.module] for site in sites],
                [{**arrays["frozen"][site.module], **shared} for site in sites],
                None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode())),
            )
            y = self.method.linear(at, self.config)
        else:
            y = jnp.tensordot(x, weight, num_in)
        for part in parts:
            y = part.with_gradient(y, x, num_in) if many else part.product(y, x, num_in)
        return y

    def merged(self, params: Tree) -> Tree:
        """The base's tree with the adapter worked into its weights.

        Quantized weights that it changes become float32: what the adapter was trained beside is
        what they stand for, not what was quantized.

        Raises:
            InputError: for a method that no weights of this model can express.
        """
        if not self.can_merge:
            raise InputError(
                f"an adapter of method {self.config.method!r} cannot be merged into the weights"
            )
        weights = whole.placed(self.whole, params[TRAINED].get("whole", {}), own_weights(params))
        for row in self.rows:
            weights = row.placed(weights, params[TRAINED]["rows"][row.path])
        return self._changed(weights, params, self.method.merged) if self.sites else weights

    def unmerged(self, params: Tree) -> Tree:
        """The base's tree, from weights that have the adapter worked in: `merged` undone.

        Raises:
            InputError: where the weights before do not follow from those after: DoRA divides by
                their norm, what is trained whole stands in their place, and what IA3 scaled by 0
                is lost.
        """
        beside = [site.name for site in self.whole] + [row.name for row in self.rows]
        if beside:
            raise InputError(
                f"{beside[0]} was trained whole: what stood there before is not known; load the "
                "base model"
            )
        method = METHODS.get(self.config.method)
        if method is None or method.unmerged is None:
            raise InputError(
                f"an adapter of method {self.config.method!r} cannot be taken out of the weights; "
                "load the base model"
            )
        if self.config.method == "ia3":
            lost = [
                name for name, own in params[TRAINED]["layers"].items() if not own["scale"].all()
            ]
            if lost:
                raise InputError(
                    f"{lost[0]} was scaled by 0: what stood there before is not known; load the "
                    "base model"
                )
        return self._changed(own_weights(params), params, method.unmerged)

    def _changed(self, weights: Tree, params: Tree, change: Any) -> Tree:
        """The weights with `Method.merged` or `.unmerged` done to the adapted ones."""
        frozen = params.get(FROZEN, {})
        shared = frozen.get("shared", {})
        for site in self.sites:
            own = frozen.get("layers", {}).get(site.module, {})

            def one(weight: Array, arrays: Tree, fixed: Tree, site: Site = site) -> Array:
                return change(weight, site, arrays, {**fixed, **shared}, self.config)

            old = whole.read(weights, site).astype(jnp.float32)
            part = jax.vmap(one)(old, params[TRAINED]["layers"][site.module], own)
            weights = whole.written(weights, site, part)
        return weights


def _filled(tree: Tree) -> Tree:
    return {name: branch for name, branch in tree.items() if branch}


def own_weights(params: Tree) -> Tree:
    """The model's own tree, without the branches of an adapter."""
    return {name: tree for name, tree in params.items() if name not in (TRAINED, FROZEN, ROWS)}


def combine(trained: Tree, base: Tree) -> Tree:
    """What the model computes with: all weights that are trained, or base and adapter."""
    return {**base, TRAINED: trained} if base else trained


def separate(params: Tree) -> tuple[Tree, Tree]:
    """The tree that is trained and the tree that is not: `combine` undone."""
    if TRAINED not in params:
        return params, {}
    return params[TRAINED], {name: tree for name, tree in params.items() if name != TRAINED}
