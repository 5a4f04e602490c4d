"""Several adapters as one: with weights, or side by side, of which each row uses its own.

A LoRA of rank R is R pairs of a column of A and a row of B, so adapters put behind one another
are one adapter whose rank is the sum of theirs, and a factor per pair and row of the batch
says which of them a row uses. That costs little while the ranks are small, and no weights
are gathered.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.peft.adapter import FROZEN, TRAINED, Adapter, Tree
from ift_jax.peft.sites import Site

Part = tuple[Adapter, Tree]
Combination = Literal["cat", "linear"]


def _check_alone(adapter: Adapter) -> None:
    """Raises InputError where weights are trained whole beside the adapter."""
    beside = [site.name for site in adapter.whole] + [row.name for row in adapter.rows]
    if beside:
        raise InputError(
            f"{beside[0]} is trained beside the adapter (modules_to_save, token_rows): merge the "
            "adapter instead"
        )


def plain_lora(adapter: Adapter, arrays: Tree) -> Part:
    """The adapter as a LoRA alone beside the unchanged weights; see `without_start`.

    Raises:
        InputError: for another method, and beside weights that are trained whole.
    """
    _check_alone(adapter)
    if adapter.config.method != "lora":
        method = adapter.config.method
        raise InputError(f"an adapter of method {method!r} cannot be combined; only lora")
    return without_start(adapter, arrays)


def without_start(adapter: Adapter, arrays: Tree) -> Part:
    """The same adapter beside the unchanged weights; itself unless it is PiSSA.

    PiSSA takes its start A0 B0 out of the weights: AB - A0 B0 is a LoRA of twice the rank.
    """
    config = adapter.config
    if config.init != "pissa" or FROZEN not in arrays:
        return adapter, arrays
    rank = 2 * config.rank
    plain = replace(
        config, init="b_zero", rank=rank, alpha=config.scaling * rank, rank_scaling="linear"
    )
    pairs = {}
    for module, pair in arrays[TRAINED]["layers"].items():
        start = arrays[FROZEN]["layers"][module]
        pairs[module] = {
            "a": jnp.concatenate([pair["a"], start["a"]], axis=-1),
            "b": jnp.concatenate([pair["b"], -start["b"]], axis=1),
        }
    trained = {**arrays[TRAINED], "layers": pairs}
    return replace(adapter, config=plain), {TRAINED: trained}


def weighted(parts: Sequence[Part], weights: Sequence[float], combination: Combination) -> Part:
    """The weighted sum of adapters as one adapter, as peft's `add_weighted_adapter`.

    Of LoRA, "cat" puts them behind one another: exact, its rank is the sum of the ranks. "linear"
    adds up sqrt(w s) A and sqrt(w s) B of adapters of one rank: an approximation of that rank. Of
    IA3, either adds up the vectors of those that have one at a layer.

    Raises:
        InputError: for other methods than these, or ranks that "linear" cannot add up.
    """
    if len(weights) != len(parts) or not parts:
        raise InputError(f"expected a weight per adapter: {len(parts)}, got {len(weights)}")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"expected weights that are numbers, got {list(weights)}")
    if all(adapter.config.method == "ia3" for adapter, _ in parts):
        return _added_scales(parts, weights)
    parts = [plain_lora(*part) for part in parts]
    factors = [w * adapter.config.scaling for w, (adapter, _) in zip(weights, parts, strict=True)]
    if combination == "cat":
        return _behind_one_another(parts, factors)
    ranks = {adapter.config.rank for adapter, _ in parts}
    if len(ranks) > 1:
        raise InputError(
            f"combination='linear' adds up adapters of one rank, got {sorted(ranks)}; use 'cat'"
        )
    sites = _joined_sites(parts)
    pairs: Tree = {}
    for site in sites:
        roots = [math.sqrt(abs(f)) for f in factors]
        filled = [_filled(part, site) for part in parts]
        pairs[site.module] = {
            "a": sum(math.copysign(r, f) * p["a"]
                     for r, f, p in zip(roots, factors, filled, strict=True)),
            "b": sum(r * p["b"] for r, p in zip(roots, filled, strict=True)),
        }  # fmt: skip
    return _unscaled(parts, sites, ranks.pop()), {TRAINED: {"layers": pairs}}


def _added_scales(parts: Sequence[Part], weights: Sequence[float]) -> Part:
    for adapter, _ in parts:
        _check_alone(adapter)
    sites = _joined_sites(parts)
    scales = {
        site.module: {
            "scale": sum(
                w * _filled(part, site)["scale"] for w, part in zip(weights, parts, strict=True)
            )
        }
        for site in sites
    }
    first = parts[0][0]
    config = replace(first.config, targets=tuple(site.module for site in sites), layers=())
    return replace(first, config=config, sites=sites), {TRAINED: {"layers": scales}}


def side_by_side(parts: Sequence[Part]) -> tuple[Adapter, Tree, list[NDArray[np.float32]]]:
    """Adapters of which each row of a batch uses its own.

    Returns:
        The adapter of all, its arrays, and per part the factors of the R pairs, to be stacked
        to [B, R] for the rows of a batch. Zeros are the base.
    """
    parts = [plain_lora(*part) for part in parts]
    adapter, arrays = _behind_one_another(parts, [a.config.scaling for a, _ in parts])
    ends = np.cumsum([a.config.rank for a, _ in parts])
    places = np.arange(ends[-1])
    blocks = [
        ((places >= end - part.config.rank) & (places < end)).astype(np.float32)
        for end, (part, _) in zip(ends, parts, strict=True)
    ]
    return replace(adapter, by_row=True), arrays, blocks


def _behind_one_another(parts: Sequence[Part], factors: Sequence[float]) -> Part:
    sites = _joined_sites(parts)
    pairs: Tree = {}
    for site in sites:
        filled = [_filled(part, site) for part in parts]
        pairs[site.module] = {
            "a": jnp.concatenate(
                [p["a"] * f for p, f in zip(filled, factors, strict=True)], axis=-1
            ),
            "b": jnp.concatenate([p["b"] for p in filled], axis=1),
        }
    rank = sum(adapter.config.rank for adapter, _ in parts)
    return _unscaled(parts, sites, rank), {TRAINED: {"layers": pairs}}


def _unscaled(parts: Sequence[Part], sites: tuple[Site, ...], rank: int) -> Adapter:
    """An adapter of scaling 1 at these sites."""
    first = parts[0][0]
    config = replace(
        first.config, rank=rank, alpha=float(rank), rank_scaling="linear", dropout=0.0,
        targets=tuple(site.module for site in sites), layers=(), init="b_zero", b_lr_ratio=1.0,
    )  # fmt: skip
    return replace(first, config=config, sites=sites)


def _joined_sites(parts: Sequence[Part]) -> tuple[Site, ...]:
    """Every site of any part, with every layer that any part adapts there."""
    sites: dict[str, Site] = {}
    for adapter, _ in parts:
        for site in adapter.sites:
            known = sites.get(site.module)
            layers = {*site.layers, *(known.layers if known else ())}
            sites[site.module] = replace(site, layers=tuple(sorted(layers)))
    return tuple(sites.values())


def _filled(part: Part, site: Site) -> dict[str, Float[Array, "..."]]:
    """A part's A and B of all layers of a joined site, with zeros where it adapts nothing."""
    adapter, arrays = part
    own = next((s for s in adapter.sites if s.module == site.module), None)
    shapes: Any = adapter.method.trained(site, adapter.config)
    if own is None:
        return {k: jnp.zeros((len(site.layers), *shape)) for k, (shape, _) in shapes.items()}
    pair = arrays[TRAINED]["layers"][site.module]
    if own.layers == site.layers:
        return {k: jnp.asarray(v) for k, v in pair.items()}
    at = jnp.array([site.layers.index(layer) for layer in own.layers])
    return {
        k: jnp.zeros((len(site.layers), *shape)).at[at].set(pair[k])
        for k, (shape, _) in shapes.items()
    }
