"""The device mesh, the one table from logical axes to mesh axes, and placing arrays on it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ift_jax.batch import Batch
from ift_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Axes that are not listed are replicated.
RULES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The config's section `mesh`: into how many parts devices are divided, along three axes.

    Their product is the number of devices; one of them may be -1 and takes what remains.

    Attributes:
        data: parts that each compute their own rows of a batch, with whole weights.
        fsdp: parts that each compute their own rows, too, and keep only a share of the weights and
            of the optimizer's state; layers are gathered as they are used.
        tensor: parts that share the heads, MLP columns and vocabulary of every layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise InputError(f"config.mesh.{name}: expected a positive size or -1, got {size}")
        if sum(size == -1 for size in sizes.values()) > 1:
            raise InputError(f"config.mesh: only one axis may be -1, got {sizes}")


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices. Raises InputError if the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise InputError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} does "
            f"not fill {len(devices)} devices; set one of them to -1"
        )
    return Mesh(
        np.asarray(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array with these logical axes.

    Example:
        >>> spec(("embed", None, "mlp"))
        P('fsdp', None, 'tensor')
    """
    return PartitionSpec(*(_mesh_axes(axis) for axis in axes))


def _mesh_axes(axis: str | None) -> str | tuple[str, ...] | None:
    names = RULES.get(axis, ()) if axis else ()
    return None if not names else names[0] if len(names) == 1 else names


def param_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """A NamedSharding per parameter. Raises InputError where a size does not divide."""

    def place(path: Any, names: tuple[str, ...], shape: Any) -> NamedSharding:
        partition = spec(names)
        for axis, size, mesh_axes in zip(names, shape.shape, partition, strict=True):
            group = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
            parts = int(np.prod([mesh.shape[a] for a in group]))
            if size % parts:
                raise InputError(
                    f"config.mesh: {jax.tree_util.keystr(path)} has {axis}={size}, which does not "
                    f"divide over {'x'.join(group)}={parts}; choose a divisor of {size}"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(
        place, axes, shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, spec(("rows",)))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This host's rows of a batch as part of the global batch, [B, ...] over all hosts."""
    sharding = row_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return int(np.prod([mesh.shape[a] for a in RULES["rows"]]))


def rows_are_cut() -> bool:
    """Whether the mesh in use cuts rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and num_row_shards(mesh) > 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's partition under the mesh in use; without a mesh, x itself.

    An axis that does not divide, such as the one row of a shared prompt beginning, stays
    whole: XLA would pad it, and the padding's garbage reached gradients as NaN (jax 0.10.2).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, _fitting(mesh, axes, x.shape))


def fitting_sharding(
    mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """The partition of an array with these logical axes, whole along those that do not divide."""
    return NamedSharding(mesh, _fitting(mesh, axes, shape))


def _fitting(mesh: Any, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    def divides(axis: str | None, size: int) -> bool:
        return size % int(np.prod([mesh.shape[a] for a in RULES.get(axis or "", ())])) == 0

    return spec(tuple(a if divides(a, n) else None for a, n in zip(axes, shape, strict=True)))
