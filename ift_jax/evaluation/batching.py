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


def groups(lengths: Sequence[int], shards: int) -> Iterator[Group]:
    """Cuts rows, sorted by length, into groups of one shape each; long rows first.

    The longest come first so that a lack of memory shows at once. A group that is not full
    has 1, 4, 16 ... rows per part of the mesh: one prompt does not cost a whole batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        length = bucket(lengths[order[at]])
        rows = max(BATCH_TOKENS // length, 1) * shards
        members = [i for i in order[at : at + rows] if bucket(lengths[i]) == length]
        small = shards
        while small < len(members):
            small *= 4
        rows = min(rows, small)
        yield Group(members, rows, length)
        at += len(members)


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
