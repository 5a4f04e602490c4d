"""Where an adapter can sit: a model's tensors, as its family's table names them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ift_jax.errors import InputError

# Per array of an adapter: shape and logical axis names, one layer's.
Shapes = dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]


class Cut(NamedTuple):
    """What one output axis of our array gives to a linear layer: a range, or one index."""

    start: int
    size: int
    keep: bool


@dataclass(frozen=True)
class Site:
    """A tensor of the checkpoint, and the part of our array that it fills.

    Attributes:
        module: its name without ".weight", below the layer where it has one:
            "self_attn.q_proj", "model.norm"; the key of its adapter.
        name: its whole name without ".weight", with {} for the layer's number.
        path: our array, "layers.attention.qkv".
        in_shape, in_axes: of a linear layer, sizes and logical names of the input axes (one
            layer's); else ().
        out_shape, out_axes: those of the output axes; of a tensor that is no linear layer, all.
        cuts: the part of the array's output axes that is this tensor; () for all.
        layers: numbers of the layers that are meant, ascending; () outside the layers.
    """

    module: str
    name: str
    path: str
    in_shape: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_shape: tuple[int, ...]
    out_axes: tuple[str, ...]
    cuts: tuple[Cut, ...]
    layers: tuple[int, ...]

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer of the repeated layers, which an adapter can change."""
        return bool(self.in_shape and self.layers)

    def names(self) -> list[str]:
        """Its whole names, one a layer."""
        return [self.name.format(n) for n in self.layers] or [self.name]


class TableRow(Protocol):
    """What a row of `ift_jax.hf.families` says of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def part(self) -> Any: ...
    @property
    def in_axes(self) -> int: ...
    @property
    def per_layer(self) -> bool: ...


def tensor_sites(
    rows: Iterable[TableRow],
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, tuple[str, ...]],
) -> tuple[Site, ...]:
    """Every weight of the model, in the table's order.

    Args:
        rows: the family's weight table.
        shapes, axes: of our arrays ([L, ...] in the layers), by dotted path.
    """
    sites = []
    for row in rows:
        if not row.name.endswith(".weight"):
            continue
        first = int(row.per_layer)
        shape = shapes[row.path][first:]
        kept, dims = _parted(shape, row.part)
        named = tuple(
            axis for axis, cut in zip(axes[row.path][first:], kept, strict=True) if cut.keep
        )
        name = row.name.removesuffix(".weight")
        whole = all(c == Cut(0, size, True) for c, size in zip(kept, shape, strict=True))
        sites.append(
            Site(
                module=name.split("{}.", 1)[-1],
                name=name,
                path=row.path,
                in_shape=dims[: row.in_axes],
                in_axes=named[: row.in_axes],
                out_shape=dims[row.in_axes :],
                out_axes=named[row.in_axes :],
                cuts=() if whole else kept[row.in_axes :],
                layers=tuple(range(shapes[row.path][0])) if row.per_layer else (),
            )
        )
    return tuple(sites)


def _parted(shape: tuple[int, ...], part: Any) -> tuple[tuple[Cut, ...], tuple[int, ...]]:
    """An index expression as one `Cut` an axis, and the shape that it leaves."""
    index = part if isinstance(part, tuple) else (part,)
    index += (slice(None),) * (len(shape) - len(index))
    cuts = []
    for size, item in zip(shape, index, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            if step != 1:
                raise ValueError(f"an adapter cannot sit on every {step}th index")
            cuts.append(Cut(start, stop - start, True))
        else:
            cuts.append(Cut(range(size)[item], 1, False))
    dims = np.broadcast_to(np.int8(0), shape)[index].shape
    return tuple(cuts), dims


def selected(
    sites: Iterable[Site], targets: Iterable[str], layers: tuple[int, ...], field: str
) -> tuple[Site, ...]:
    """The sites that the targets name, in the layers that are meant.

    Args:
        targets: names or regular expressions, see `PeftConfig`; none: all sites.
        layers: numbers of layers; (): all. What lies outside the layers has no number.
        field: of the config, where the targets come from.

    Raises:
        InputError: for a target that names nothing, or a layer that the model does not have.
    """
    sites, hits = tuple(sites), dict.fromkeys(targets, 0)
    num_layers = max(len(site.layers) for site in sites)
    for number in layers:
        if number >= num_layers:
            raise InputError(f"config.peft.layers: {number} is not a layer; 0 to {num_layers - 1}")
    chosen = []
    for site in sites:
        meant = [n for n in site.layers if not layers or n in layers]
        numbers: set[int] = set() if hits else set(meant)
        outside = not site.layers and not layers and not hits
        for target in hits:
            if site.layers:
                found = {n for n in meant if _names(target, site.name.format(n))}
                numbers |= found
                hits[target] += len(found)
            elif _names(target, site.name):
                outside = True
                hits[target] += 1
        if numbers or outside:
            chosen.append(replace(site, layers=tuple(sorted(numbers))))
    for target, count in hits.items():
        if not count:
            raise InputError(
                f"config.peft.{field}: {target!r} names nothing that can be adapted"
                f"{' in the chosen layers' if layers else ''}; there are "
                + ", ".join(site.module for site in sites)
            )
    return tuple(chosen)


def _names(target: str, name: str) -> bool:
    target = target.removesuffix(".weight")
    if name == target or name.endswith("." + target):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise InputError(f"config.peft: {target!r} is no regular expression ({error})") from None


def taken(y: Array, cuts: tuple[Cut, ...]) -> Array:
    """A site's part of an array's output axes, the last ones of y."""
    first = y.ndim - len(cuts)
    for axis, cut in reversed(list(enumerate(cuts, first))):
        y = jax.lax.slice_in_dim(y, cut.start, cut.start + cut.size, axis=axis)
        if not cut.keep:
            y = jnp.squeeze(y, axis)
    return y


def padded(part: Array, cuts: tuple[Cut, ...], out_shape: tuple[int, ...]) -> Array:
    """A site's part among zeros, at its place in the array's output axes."""
    if not cuts:
        return part
    lead = part.ndim - sum(cut.keep for cut in cuts)
    for axis, cut in enumerate(cuts, lead):
        if not cut.keep:
            part = jnp.expand_dims(part, axis)
    around = [(c.start, n - c.start - c.size) for c, n in zip(cuts, out_shape, strict=True)]
    return jnp.pad(part, [(0, 0)] * lead + around)


def replaced(y: Array, part: Array, cuts: tuple[Cut, ...]) -> Array:
    """y with another part of its last axes at a site's place."""
    if not cuts:
        return part
    index = tuple(slice(c.start, c.start + c.size) if c.keep else c.start for c in cuts)
    return y.at[(..., *index)].set(part)
