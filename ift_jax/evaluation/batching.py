"""Rows of unequal length into few static shapes, and the prompt beginnings that rows share."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
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


class Beginning(NamedTuple):
    """Rows with the same leading tokens, which are computed once: their numbers, and how many."""

    members: list[int]
    shared: int


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


def groups(lengths: Mapping[int, int], shards: int, *, decoded: bool = False) -> Iterator[Group]:
    """Cuts rows, sorted by length, into groups of one shape each; long rows first.

    The longest come first so that a lack of memory shows at once. A group that is not full
    has 1, 4, 16 ... rows per part of the mesh: one prompt does not cost a whole batch.

    Args:
        lengths: number of a row -> its tokens.
        decoded: such rows stay together even if their lengths differ much.
    """
    order = sorted(lengths, key=lambda i: (-lengths[i], i))
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


def beginnings(rows: Sequence[NDArray[np.int32]], cost: int) -> list[Beginning]:
    """Cuts rows into parts so that computing each part's common beginning once saves the most.

    Each row keeps one token at least. All rows are one part unless several save more.

    Args:
        cost: of a part, whose programs and batches are its own, in tokens: those of a full batch.

    Example:
        >>> task, other = np.full(300, 1, np.int32), np.full(300, 2, np.int32)
        >>> rows = [np.append(task if i % 2 else other, np.int32(i)) for i in range(20)]
        >>> [(len(part.members), part.shared) for part in beginnings(rows, 1024)]
        [(10, 300), (10, 300)]
        >>> beginnings(rows[:4], 1024)
        [Beginning(members=[0, 1, 2, 3], shared=0)]
    """
    # Sorted, rows with a common beginning stand side by side: the best cuts follow one by one.
    order = sorted(range(len(rows)), key=lambda i: rows[i].tobytes())
    shared = np.array([_shared(rows[a], rows[b]) for a, b in pairwise(order)], np.int64)
    saved, start = np.zeros(len(rows) + 1), [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        least = np.minimum.accumulate(shared[: end - 1][::-1])
        by_begin = saved[:end][::-1] - cost  # of a last part of 1, 2, ... rows
        by_begin[1:] += np.where(least >= MIN_PREFIX, least, 0) * np.arange(1, end)
        size = len(by_begin) - int(by_begin[::-1].argmax())  # the largest of equals
        saved[end], start[end] = by_begin[size - 1], end - size
    parts, end = [], len(rows)
    while end:
        begin = start[end]
        common = int(shared[begin : end - 1].min()) if end - begin > 1 else 0
        parts.append(Beginning(sorted(order[begin:end]), common if common >= MIN_PREFIX else 0))
        end = begin
    return parts[::-1]


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many leading tokens two rows share, leaving each one token at least."""
    limit = min(len(a), len(b)) - 1
    differs = np.flatnonzero(a[:limit] != b[:limit])
    return int(differs[0]) if len(differs) else limit


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
