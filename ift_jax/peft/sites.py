"""Where an adapter can sit: the linear layers of a model, as its family's table names them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ift_jax.errors import InputError
from ift_jax.peft.config import PeftConfig

# Per array of an adapter: shape and logical axis names, one layer's.
Shapes = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]


class Cut(NamedTuple):
    """What one output axis of our array gives to a linear layer: a range, or one index."""

    start: int
    size: int
    keep: bool


@dataclass(frozen=True)
class Site:
    """A linear layer of the checkpoint, and the part of our stacked array that it fills.

    Attributes:
        module: its name below the layer, "self_attn.q_proj"; the key of its adapter.
        name: its whole name, with {} for the layer's number.
        path: our array below `layers`, "attention.qkv".
        in_shape, in_axes: sizes and logical names of its input axes, one layer's.
        out_shape, out_axes: those of its output axes.
        cuts: the part of the array's output axes that is this layer; () for all.
        layers: numbers of the layers that are adapted, ascending.
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


def linear_sites(
    rows: Iterable[TableRow],
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, tuple[str, ...]],
) -> tuple[Site, ...]:
    """Every linear layer that repeats with the layers, in the table's order.

    Args:
        rows: the family's weight table.
        shapes, axes: of our stacked arrays [L, ...], by dotted path.
    """
    sites = []
    for row in rows:
        if not (row.per_layer and row.in_axes and row.name.endswith(".weight")):
            continue
        num_layers, *shape = shapes[row.path]
        kept, dims = _parted(tuple(shape), row.part)
        named = tuple(axis for axis, cut in zip(axes[row.path][1:], kept, strict=True) if cut.keep)
        name = row.name.removesuffix(".weight")
        whole = all(c == Cut(0, size, True) for c, size in zip(kept, shape, strict=True))
        sites.append(
            Site(
                module=name.split("{}.", 1)[1],
                name=name,
                path=row.path.removeprefix("layers."),
                in_shape=dims[: row.in_axes],
                in_axes=named[: row.in_axes],
                out_shape=dims[row.in_axes :],
                out_axes=named[row.in_axes :],
                cuts=() if whole else kept[row.in_axes :],
                layers=tuple(range(num_layers)),
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


def selected(sites: tuple[Site, ...], config: PeftConfig) -> tuple[Site, ...]:
    """The sites that the config's `targets` and `layers` name.

    Raises:
        InputError: for a target that names nothing, or a layer that the model does not have.
    """
    num_layers = len(sites[0].layers)
    beyond = [number for number in config.layers if number >= num_layers]
    if beyond:
        raise InputError(f"config.peft.layers: {beyond[0]} is not a layer; 0 to {num_layers - 1}")
    allowed = config.layers or range(num_layers)
    hits = dict.fromkeys(config.targets, 0)
    chosen = []
    for site in sites:
        layers = set() if config.targets else set(allowed)
        for target in config.targets:
            found = [n for n in allowed if _names(target, site.name.format(n))]
            hits[target] += len(found)
            layers |= set(found)
        if layers:
            chosen.append(Site(**{**vars(site), "layers": tuple(sorted(layers))}))
    for target, count in hits.items():
        if not count:
            raise InputError(
                f"config.peft.targets: {target!r} names no linear layer of the chosen layers; "
                f"there are {', '.join(site.module for site in sites)}"
            )
    return tuple(chosen)


def _names(target: str, name: str) -> bool:
    if name == target or name.endswith("." + target):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise InputError(
            f"config.peft.targets: {target!r} is no regular expression ({error})"
        ) from None


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
