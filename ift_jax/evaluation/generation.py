"""Generation: prefill and decode with a key/value cache, on the device until all rows ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.evaluation.batching import (
    common_prefix,
    compute_prefix,
    groups,
    place_rows,
    row_shards,
    with_adapter_rows,
)
from ift_jax.models.decoder import KVCache, Params, Prefix, Structure


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the most that a row gets, its end token included.
        temperature: 0 takes the most likely token; above 0 divides the logits and samples.
        seed: with a prompt's number in the call, decides its samples.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected 1 or more, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise InputError(f"temperature: must not be negative, got {self.temperature}")


def generate(
    structure: Structure,
    params: Params,
    prompts: Sequence[NDArray[np.int32]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    mesh: Mesh | None = None,
    adapter_rows: Float[np.ndarray, "N R"] | None = None,
) -> list[NDArray[np.int32]]:
    """The new tokens of each prompt, without the end token.

    The beginning that all prompts share is computed once. A row's tokens do not depend on
    the other rows: padding is masked, and samples are keyed by the prompt's number.

    Args:
        adapter_rows: where each prompt uses an adapter of its own, `LanguageModel.adapter_rows`.

    Raises:
        InputError: for an empty prompt, or one that leaves no room in the context.
    """
    limit = structure.config.max_positions
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty")
        if len(prompt) + sampling.max_new_tokens > limit:
            raise InputError(
                f"prompt {number}: {len(prompt)} tokens and {sampling.max_new_tokens} new ones "
                f"exceed the context of {limit}"
            )
    # Under different adapters, equal beginnings are not equal.
    shared = common_prefix(prompts) if adapter_rows is None else 0
    prefix = compute_prefix(structure, params, prompts[0][:shared]) if shared else None
    rests = [prompt[shared:] for prompt in prompts]
    outputs: list[NDArray[np.int32]] = [np.zeros(0, np.int32)] * len(prompts)
    for group in groups([len(rest) for rest in rests], row_shards(mesh)):
        tokens = np.zeros((group.rows, group.length), np.int32)
        lengths = np.zeros(group.rows, np.int32)
        numbers = np.zeros(group.rows, np.int32)
        for row, member in enumerate(group.members):
            lengths[row] = len(rests[member])
            tokens[row, : lengths[row]] = rests[member]
            numbers[row] = member
        new = np.asarray(
            _generate(
                structure,
                sampling.max_new_tokens,
                sampling.temperature > 0,
                with_adapter_rows(params, adapter_rows, group, mesh),
                prefix,
                place_rows(mesh, tokens),
                place_rows(mesh, lengths),
                place_rows(mesh, numbers),
                jnp.asarray(sampling.temperature, jnp.float32),
                jax.random.key(sampling.seed),
                jnp.asarray(sorted(stop_ids), jnp.int32),
            )
        )
        for row, member in enumerate(group.members):
            ends = np.flatnonzero(np.isin(new[row], list(stop_ids)))
            outputs[member] = new[row, : ends[0]] if len(ends) else new[row]
    return outputs


@partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    structure: Structure,
    max_new_tokens: int,
    sample: bool,
    params: Params,
    prefix: Prefix | None,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    numbers: Int[Array, "B"],
    temperature: Array,
    key: Array,
    stop_ids: Int[Array, "E"],
) -> Int[Array, "B N"]:
    """Tokens behind each row; what stands behind a row's end token means nothing.

    New keys and values of all rows go to the same slot, behind the padded prompts; masks
    and positions are each row's own.
    """
    module = structure.merge(params)
    rows, size = tokens.shape
    first = 0 if prefix is None else jnp.sum(prefix.valid)
    slots = jnp.arange(size)
    real = slots < lengths[:, None]
    causal = jnp.tril(jnp.ones((size, size), bool)) & real[:, None, :]
    hidden, cache = module.score_states(
        tokens, jnp.broadcast_to(first + slots, tokens.shape), causal, prefix
    )
    room = [(0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0)]
    cache = KVCache(jnp.pad(cache.k, room), jnp.pad(cache.v, room))
    all_slots = jnp.arange(size + max_new_tokens)
    row_keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)

    def pick(hidden: Array, index: Array) -> Array:
        logits = module.logits(hidden)
        if not sample:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, index))(row_keys)
        return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)

    def unfinished(carry: Any) -> Array:
        index, done = carry[0], carry[1]
        return (index < max_new_tokens) & ~jnp.all(done)

    def body(carry: Any) -> Any:
        index, done, token, out, k, v = carry
        position = first + lengths + index - 1
        write_at = size + index - 1
        mask = jnp.concatenate([real, jnp.zeros((rows, max_new_tokens), bool)], axis=1)
        mask = mask | ((all_slots >= size) & (all_slots <= write_at))
        hidden, cache = module.decode_states(
            token[:, None], position[:, None], mask[:, None], KVCache(k, v), write_at, prefix
        )
        token = pick(hidden[:, 0], index)
        done = done | jnp.isin(token, stop_ids)
        return index + 1, done, token, out.at[:, index].set(token), cache.k, cache.v

    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    token = pick(last, jnp.zeros((), jnp.int32))
    out = jnp.zeros((rows, max_new_tokens), jnp.int32).at[:, 0].set(token)
    done = jnp.isin(token, stop_ids) | (lengths == 0)
    start = (jnp.ones((), jnp.int32), done, token, out, cache.k, cache.v)
    return jax.lax.while_loop(unfinished, body, start)[3]
