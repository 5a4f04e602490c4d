"""Rows of unequal length into few static shapes, and the prompt beginning that rows share."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from numpy.typing import NDArray

from ift_jax.models.decoder import KVCache, Params, Prefix, Structure
from ift_jax.peft.adapter import ROWS
from ift_jax.sharding import num_row_shards, row_sharding

BATCH_TOKENS = 1024  # positions per batch, per part of the mesh that rows are cut over
DECODE_TOKENS, DECODE_ROWS = (
    4096,
    32,
)  # the same of generation: a step costs little more for more rows
MIN_PREFIX = 16  # a shorter common beginning is not worth a program of its own


class Group(NamedTuple):
    """Rows that one call computes: their numbers, and the padded shape [rows, length]."""

    members: list[int]
    rows: int
    length: int


def bucket(length: int) -> int:
    """The padded length of a row: few different ones, so that few programs are compiled.

    Example:
        >>> [bucket(n) for n in (1, 64, 65, 300, 900, 1500)]
        [64, 64, 128, 384, 1024, 1536]
    """
    for step, limit in ((64, 256), (128, 512), (512, 2048)):
        if length <= limit:
            return max(-(-length // step) * step, step)
    return -(-length // 2048) * 2048


def groups(lengths: Sequence[int], shards: int, *, decoded: bool = False) -> Iterator[Group]:
    """Cuts rows, sorted by length, into groups of one shape each; long rows first.

    Rows that will be `decoded` stay together even if their lengths differ much.

    The longest come first so that a lack of memory shows at once. A group that is not full
    has 1, 4, 16 ... rows per part of the mesh: one prompt does not cost a whole batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        length = bucket(lengths[order[at]])
        rows = max(BATCH_TOKENS // length, 1) * shards
        if decoded:
            rows = min(max(DECODE_TOKENS // length, 1), DECODE_ROWS) * shards
        members = [i for i in order[at : at + rows] if decoded or bucket(lengths[i]) == length]
        small = shards
        while small < len(members):
            small *= 4
        rows = min(rows, small)
        yield Group(members, rows, length)
        at += len(members)


def real_slots(
    structure: Structure, lengths: NDArray[np.int32], group: Group, mesh: Mesh | None
) -> NDArray[np.int32] | None:
    """Flat slots of a group's tokens, for `Decoder.score_states`; None if they are most of it.

    Their number is padded to an eighth of the group's slots. None too where rows are cut over
    a mesh, since joined tokens would have to travel between its parts, and where each row uses
    an adapter of its own.
    """
    by_row = structure.adapter is not None and structure.adapter.by_row
    slots, unit = group.rows * group.length, group.rows * group.length // 8
    count = -(-int(lengths.sum()) // unit) * unit
    if count >= slots or row_shards(mesh) > 1 or by_row:
        return None
    real = np.full(max(count, unit), slots, np.int32)
    found = np.flatnonzero(np.arange(group.length) < lengths[:, None])
    real[: len(found)] = found
    return real


def common_prefix(rows: Sequence[NDArray[np.int32]]) -> int:
    """How many leading tokens all rows share, leaving each row one token at least."""
    if not rows:
        return 0
    shared = min(len(row) for row in rows) - 1
    for row in rows[1:]:
        differs = np.flatnonzero(row[:shared] != rows[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared if shared >= MIN_PREFIX else 0


def compute_prefix(structure: Structure, params: Params, ids: NDArray[np.int32]) -> Prefix | None:
    """Keys and values of a shared beginning, padded to its bucket; None for an empty one."""
    if not len(ids):
        return None
    size = bucket(len(ids))
    padded = np.zeros((1, size), np.int32)
    padded[0, : len(ids)] = ids
    cache = _prefix_cache(structure, params, jnp.asarray(padded))
    return Prefix(cache, jnp.arange(size) < len(ids))


@jax.jit(static_argnums=0)
def _prefix_cache(structure: Structure, params: Params, tokens: Array) -> KVCache:
    size = tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, size, size), bool))
    _, cache = structure.merge(params).score_states(tokens, jnp.arange(size)[None], causal)
    return KVCache(cache.k[:, 0], cache.v[:, 0])


def with_adapter_rows(
    params: Params, adapter_rows: Float[np.ndarray, "N R"] | None, group: Group, mesh: Mesh | None
) -> Params:
    """The parameters for a group whose rows use adapters of their own; see `peft.mixing`."""
    if adapter_rows is None:
        return params
    rows = np.zeros((group.rows, adapter_rows.shape[1]), np.float32)
    rows[: len(group.members)] = adapter_rows[group.members]
    return {**params, ROWS: place_rows(mesh, rows)}


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts rows are cut."""
    return 1 if mesh is None else num_row_shards(mesh)


def place_rows(mesh: Mesh | None, array: NDArray[np.generic]) -> Array:
    """Puts an array with leading row axis on the mesh, or on the default device."""
    return jnp.asarray(array) if mesh is None else jax.device_put(array, row_sharding(mesh))
