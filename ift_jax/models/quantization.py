"""Frozen weights in 8 or 4 bits, each group of inputs with a scale (QLoRA, Dettmers et al. 2023).

Only the projections inside the layers are quantized: embedding, output matrix and norms stay
as they are, since the first two are looked up and scored with, and norms weigh nothing.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.sharding import fitting_sharding

Kind = Literal["int8", "int4", "nf4"]

# Quantiles of a normal distribution with an exact zero (Dettmers et al. 2023, appendix E).
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

# What a group's largest weight becomes. The half belongs to the outermost integer, which is so as
# far from what it stands for, at most half a step, as any other.
_LARGEST = {"int8": 127.5, "int4": 7.5, "nf4": 1.0}


# qwix.QArray is not used to hold these: its 4-bit codes are jnp.uint4, of which a CPU keeps a
# byte each, it cannot group over several input axes (the attention output has three), and it
# finds NF4 codes through an array 16 times the weight's size. The tests compare with qwix.
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A weight as codes and scales; one layer of it is dequantized by `dense`.

    Attributes:
        codes: int8 of the weight's shape; or uint8 with two 4-bit codes a byte, the last input
            axis halved: codes 2i and 2i + 1 are the low and the high bits of byte i.
        scales: float32; the input axes are one axis there, of a scale per group.
        kind: what the codes stand for.
        in_axes: how many axes are summed over; they follow the layers' axis, if there is one.
    """

    codes: Any
    scales: Any
    kind: Kind = field(metadata={"static": True})
    in_axes: int = field(metadata={"static": True})


def quantize(
    weight: NDArray[Any], in_axes: int, kind: Kind, group_size: int, where: str
) -> Quantized:
    """Stacked weights, [L, inputs..., outputs...], as codes and scales in host memory.

    A group is `group_size` consecutive inputs of one output, as in bitsandbytes; its scale
    is its largest magnitude over 127.5, 7.5 or 1. Integers are rounded, and NF4 takes the
    nearest level. Goes layer by layer, so that no second float copy is made.

    Args:
        in_axes: how many axes after the first are inputs.
        where: names the weight in errors.

    Raises:
        InputError: if the groups do not divide the inputs.
    """
    shapes = quantized_shapes(jax.ShapeDtypeStruct(weight.shape, weight.dtype), in_axes, kind,
                              group_size, where)  # fmt: skip
    codes = np.empty(shapes.codes.shape, shapes.codes.dtype)
    scales = np.empty(shapes.scales.shape, shapes.scales.dtype)
    for layer in range(weight.shape[0]):
        inputs = np.asarray(weight[layer], np.float32)
        inputs = inputs.reshape(-1, group_size, *inputs.shape[in_axes:])
        largest = np.abs(inputs).max(axis=1)
        scales[layer] = largest / np.float32(_LARGEST[kind])
        nonzero = np.where(scales[layer] == 0, np.float32(1), scales[layer])
        unit = (inputs / nonzero[:, None]).astype(np.float32)
        found = _codes(unit, kind)
        if kind == "int8":
            codes[layer] = found.reshape(codes[layer].shape)
        else:
            low, high = found[:, 0::2], found[:, 1::2]
            codes[layer] = (low | high << 4).reshape(codes[layer].shape)
    return Quantized(codes, scales, kind, in_axes)


def quantized_shapes(
    weight: jax.ShapeDtypeStruct, in_axes: int, kind: Kind, group_size: int, where: str
) -> Quantized:
    """What `quantize` makes of a weight, as shapes. Raises InputError as it does."""
    layers, *rest = weight.shape
    inputs, outputs = rest[:in_axes], rest[in_axes:]
    count = int(np.prod(inputs))
    if count % group_size:
        raise InputError(
            f"quantize_group={group_size}: {where} has {count} inputs; choose a divisor of {count}"
        )
    if kind == "int8":
        codes = jax.ShapeDtypeStruct(weight.shape, jnp.int8)
    elif inputs[-1] % 2 or group_size % 2:
        raise InputError(
            f"quantize={kind}: {where} has {inputs[-1]} inputs in groups of "
            f"{group_size}; two codes share a byte, so both must be even"
        )
    else:
        halved = (layers, *inputs[:-1], inputs[-1] // 2, *outputs)
        codes = jax.ShapeDtypeStruct(halved, jnp.uint8)
    scales = jax.ShapeDtypeStruct((layers, count // group_size, *outputs), jnp.float32)
    return Quantized(codes, scales, kind, in_axes)


def quantized_shardings(mesh: Mesh, axes: tuple[str, ...], shapes: Quantized) -> Quantized:
    """Codes and scales where the weight with these logical axes would lie.

    An axis that the mesh does not divide stays whole: groups are few, and 4-bit codes are
    half as many as inputs.
    """
    grouped = (*axes[:2], *axes[1 + shapes.in_axes :])
    return Quantized(
        fitting_sharding(mesh, axes, shapes.codes.shape),
        fitting_sharding(mesh, grouped, shapes.scales.shape),
        shapes.kind,
        shapes.in_axes,
    )


def dense(weight: Array | Quantized, dtype: Any) -> Float[Array, "*inputs_outputs"]:
    """One layer's weight in a float dtype; a quantized one is computed in float32, then cast.

    Example:
        >>> stored = quantize(np.array([[[-1.0], [0.25]]]), 1, "nf4", 2, "w")
        >>> layer = jax.tree.map(lambda x: jnp.asarray(x[0]), stored)
        >>> [round(x, 4) for x in dense(layer, "float32")[:, 0].tolist()]
        [-1.0, 0.2461]
    """
    if not isinstance(weight, Quantized):
        return weight.astype(dtype)
    last = weight.in_axes - 1
    codes = weight.codes
    if weight.kind == "int8":
        values = codes.astype(jnp.float32)
    else:
        pairs = jnp.stack([codes & jnp.uint8(15), codes >> jnp.uint8(4)], axis=last + 1)
        shape = list(codes.shape)
        shape[last] *= 2
        values = _values(pairs.reshape(shape), weight.kind)
    inputs, outputs = values.shape[: weight.in_axes], values.shape[weight.in_axes :]
    groups = weight.scales.shape[0]
    spread = jnp.broadcast_to(
        weight.scales[:, None], (groups, int(np.prod(inputs)) // groups, *outputs)
    )
    return (values * spread.reshape(values.shape)).astype(dtype)


def dense_layers(weight: Array | Quantized) -> Float[Array, "L *inputs_outputs"]:
    """All layers' weights at once; a quantized one in float32."""
    if not isinstance(weight, Quantized):
        return weight
    return jax.lax.map(lambda layer: dense(layer, jnp.float32), weight)


def stored_kind(params: Any) -> tuple[str, int]:
    """What the weights are quantized to, int8, int4 or nf4, and in groups of how many inputs;
    ("none", 0) for floats.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Quantized))
    for leaf in leaves:
        if isinstance(leaf, Quantized):
            inputs = int(np.prod(leaf.codes.shape[1 : 1 + leaf.in_axes]))
            inputs *= 1 if leaf.kind == "int8" else 2
            return leaf.kind, inputs // leaf.scales.shape[1]
    return "none", 0


def dense_tree(params: Any) -> Any:
    """The parameters with the floats that quantized weights stand for."""
    return jax.tree.map(dense_layers, params, is_leaf=lambda x: isinstance(x, Quantized))


def _codes(unit: NDArray[np.float32], kind: Kind) -> NDArray[Any]:
    """The nearest code of each value, whose group reaches from -largest to largest."""
    if kind == "nf4":
        levels = np.array(NF4_LEVELS, np.float32)
        found = np.zeros(unit.shape, np.uint8)
        for between in (levels[1:] + levels[:-1]) / 2:
            found += unit > between
        return found
    outermost = int(_LARGEST[kind])
    rounded = np.rint(unit).clip(-outermost, outermost).astype(np.int8)
    return rounded if kind == "int8" else (rounded + np.int8(8)).astype(np.uint8)


def _values(codes: Array, kind: Kind) -> Float[Array, "..."]:
    """What 4-bit codes stand for, before scaling."""
    if kind == "int4":
        return codes.astype(jnp.float32) - 8.0
    # A tree of choices by the code's bits: vectors on every platform, where a table look-up is
    # a gather, which TPUs do one element at a time. The first choice, between constants, is a
    # sum (exact: one term is 0), because a scan without remat would keep constants of the
    # weight's shape for its backward pass, 16 of them.
    bits = [(codes >> jnp.uint8(bit)) & jnp.uint8(1) for bit in range(4)]
    is_one = bits[0].astype(jnp.float32)
    pairs = zip(NF4_LEVELS[::2], NF4_LEVELS[1::2], strict=True)
    values = [(1 - is_one) * zero + is_one * one for zero, one in pairs]
    for bit in bits[1:]:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [jnp.where(bit == 1, one, zero) for zero, one in pairs]
    return values[0]
