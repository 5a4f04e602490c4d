"""Generation: prefill and decode with a key/value cache, on the device until all rows ended."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.evaluation import batching
from ift_jax.evaluation.batching import (
    Beginning,
    Group,
    beginnings,
    compute_prefix,
    groups,
    place_rows,
    real_slots,
    row_shards,
    with_adapter_rows,
)
from ift_jax.evaluation.sampling import Choice, Sampling, choose
from ift_jax.models.decoder import Decoder, KVCache, Params, Prefix, Structure

Tokens = NDArray[np.int32]

MAX_ROOM = 256  # slots for new tokens at first; they double when all are used
ROOM_STEP = 64
CHECK_EVERY = 16  # tokens between two looks for a stop text
STREAM_EVERY = 4  # tokens of a streamed piece


def generate(
    structure: Structure,
    params: Params,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    mesh: Mesh | None = None,
    ended: Callable[[Tokens], bool] | None = None,
    adapter_rows: Float[np.ndarray, "N R"] | None = None,
    keys: NDArray[np.uint32] | None = None,
) -> list[Tokens]:
    """The new tokens of each prompt, without the end token.

    What many prompts begin with is computed once for all of them. A row's tokens do not depend on
    the other rows: padding is masked, and samples are keyed by the prompt itself, see
    `sample_keys`.

    Args:
        ended: asked now and then whether a row that has these tokens needs no more. It may
            get more all the same. `texts.generate_texts` looks for stop texts with it.
        adapter_rows: where each prompt uses an adapter of its own, `LanguageModel.adapter_rows`.
        keys: `sample_keys` of more prompts, of which these are some; default: of these alone.

    Raises:
        InputError: as `check_prompts`.
    """
    check_prompts(structure, prompts, sampling)
    outputs: list[Tokens] = [np.zeros(0, np.int32)] * len(prompts)
    keys = sample_keys(prompts) if keys is None else keys
    every = CHECK_EVERY if ended else sampling.max_new_tokens
    shards = row_shards(mesh)
    # Under different adapters, equal beginnings are not equal.
    parts = [Beginning(list(range(len(prompts))), 0)]
    if adapter_rows is None:
        cost = batching.DECODE_TOKENS + batching.DECODE_ROWS * sampling.max_new_tokens
        parts = beginnings(prompts, cost * shards)
    for members, shared in parts:
        prefix = compute_prefix(structure, params, prompts[members[0]][:shared]) if shared else None
        rests = {m: len(prompts[m]) - shared for m in members}
        for group in groups(rests, shards, decoded=True):
            batch = _Batch.of(structure, prompts, keys, shared, group, sampling, mesh)
            own = with_adapter_rows(params, adapter_rows, group, mesh)
            waiting = set(range(len(group.members)))
            for new in _decoded(structure, own, prefix, batch, sampling, stop_ids, every):
                for row in sorted(waiting):
                    tokens = outputs[group.members[row]] = _before_end(new[row], stop_ids)
                    if len(tokens) < new.shape[1] or (ended and ended(tokens)):
                        waiting.remove(row)
                if not waiting:
                    break
    return outputs


def generate_one(
    structure: Structure,
    params: Params,
    prompt: Tokens,
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    mesh: Mesh | None = None,
    adapter_rows: Float[np.ndarray, "1 R"] | None = None,
) -> Iterator[Tokens]:
    """All new tokens so far of one prompt, every few tokens; the last are those of `generate`.

    Raises:
        InputError: as `generate`.
    """
    check_prompts(structure, [prompt], sampling)
    [group] = groups({0: len(prompt)}, row_shards(mesh), decoded=True)
    batch = _Batch.of(structure, [prompt], sample_keys([prompt]), 0, group, sampling, mesh)
    own = with_adapter_rows(params, adapter_rows, group, mesh)
    for new in _decoded(structure, own, None, batch, sampling, stop_ids, STREAM_EVERY):
        yield _before_end(new[0], stop_ids)


def check_prompts(structure: Structure, prompts: Sequence[Tokens], sampling: Sampling) -> None:
    """Raises InputError for an empty prompt, or one that leaves no room in the context."""
    limit = structure.context_length
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty")
        if len(prompt) + sampling.max_new_tokens > limit:
            raise InputError(
                f"prompt {number}: {len(prompt)} tokens and {sampling.max_new_tokens} new ones "
                f"exceed the context of {limit}"
            )


def sample_keys(prompts: Sequence[Tokens]) -> NDArray[np.uint32]:
    """What the samples of each prompt are keyed by beside the seed: its tokens, and how many
    equal prompts stand before it; so other prompts beside it change nothing.

    Example:
        >>> a, b = np.array([1, 2], np.int32), np.array([3], np.int32)
        >>> (sample_keys([a, b])[::-1] == sample_keys([b, a])).all()
        np.True_
        >>> len({int(key) for key in sample_keys([a, a, a])})
        3
    """
    before: Counter[bytes] = Counter()
    keys = np.zeros(len(prompts), np.uint32)
    for number, prompt in enumerate(prompts):
        text = np.asarray(prompt, np.int32).tobytes()
        digest = hashlib.blake2b(text, digest_size=4, salt=before[text].to_bytes(8, "little"))
        keys[number] = int.from_bytes(digest.digest(), "little")
        before[text] += 1
    return keys


def _before_end(tokens: Tokens, stop_ids: Sequence[int]) -> Tokens:
    ends = np.flatnonzero(np.isin(tokens, list(stop_ids)))
    return tokens[: ends[0]] if len(ends) else tokens


class _Batch(NamedTuple):
    """Prompts as rows. A row of length 0 is padding.

    Attributes:
        tokens: what stands behind the shared beginning.
        lengths: their numbers.
        keys: random keys of the prompts.
        seen: whether a prompt holds a token; None where nothing asks.
        real: as in `Decoder.score_states`.
    """

    tokens: Int[Array, "B S"]
    lengths: Int[Array, "B"]
    keys: Key[Array, "B"]
    seen: Bool[Array, "B V"] | None
    real: Int[Array, "N"] | None

    @staticmethod
    def of(
        structure: Structure,
        prompts: Sequence[Tokens],
        keys: NDArray[np.uint32],
        shared: int,
        group: Group,
        sampling: Sampling,
        mesh: Mesh | None,
    ) -> "_Batch":
        tokens = np.zeros((group.rows, group.length), np.int32)
        lengths, own = np.zeros(group.rows, np.int32), np.zeros(group.rows, np.uint32)
        penalized = sampling.repetition_penalty != 1
        seen = np.zeros((group.rows, structure.config.vocab_size if penalized else 0), bool)
        for row, number in enumerate(group.members):
            prompt = prompts[number]
            lengths[row], own[row] = len(prompt) - shared, keys[number]
            tokens[row, : lengths[row]] = prompt[shared:]
            if penalized:
                seen[row, prompt] = True
        key = jax.random.key(sampling.seed)
        real = real_slots(structure, lengths, group, mesh)
        return _Batch(
            place_rows(mesh, tokens),
            place_rows(mesh, lengths),
            jax.vmap(partial(jax.random.fold_in, key))(place_rows(mesh, own)),
            place_rows(mesh, seen) if penalized else None,
            None if real is None else jnp.asarray(real),
        )


class _State(NamedTuple):
    """Rows on their way.

    Attributes:
        made: new tokens so far.
        done: rows that have their end token, and those of padding.
        token: each row's last one, whose keys and values are not in the cache yet.
        out: new tokens in R slots; what stands behind a row's end token means nothing.
        cache: of the S slots of the prompts and R slots of new tokens. New keys and values of
            all rows go to the same slot; masks and positions are each row's own.
        seen: as in `_Batch`, new tokens included.
    """

    made: Int[Array, ""]
    done: Bool[Array, "B"]
    token: Int[Array, "B"]
    out: Int[Array, "B R"]
    cache: KVCache
    seen: Bool[Array, "B V"] | None


def _decoded(
    structure: Structure,
    params: Params,
    prefix: Prefix | None,
    batch: _Batch,
    sampling: Sampling,
    stop_ids: Sequence[int],
    every: int,
) -> Iterator[Tokens]:
    """All new tokens so far [B, n], after each `every` of them, until all rows are done."""
    choice, stops = Choice.of(sampling), jnp.asarray(sorted(stop_ids), jnp.int32)
    most = sampling.max_new_tokens
    room = -(-min(most, MAX_ROOM) // ROOM_STEP) * ROOM_STEP
    state = _prefill(structure, room, params, prefix, batch, choice, stops)
    count = 1
    while True:
        yield np.array(state.out)[:, :count]  # a copy: the state is given to the next call
        if count == most or np.asarray(state.done).all():
            return
        if count == room:
            room *= 2
            state = _with_room(state, room)
        until = min(count + every, room, most)
        state = _decode(structure, params, prefix, batch, choice, stops, state, until)
        count = int(state.made)


@partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    structure: Structure,
    room: int,
    params: Params,
    prefix: Prefix | None,
    batch: _Batch,
    choice: Choice,
    stop_ids: Int[Array, "E"],
) -> _State:
    """The prompts' keys and values, and the first token of each row."""
    module = structure.merge(params)
    rows, size = batch.tokens.shape
    slots = jnp.arange(size)
    causal = jnp.tril(jnp.ones((size, size), bool)) & (slots < batch.lengths[:, None])[:, None, :]
    positions = jnp.broadcast_to(_start(prefix) + slots, batch.tokens.shape)
    hidden, cache = module.score_states(batch.tokens, positions, causal, prefix, batch.real)
    last = jnp.maximum(batch.lengths - 1, 0)[:, None, None]
    state = _State(
        jnp.zeros((), jnp.int32),
        batch.lengths == 0,
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, 0), jnp.int32),
        cache,
        batch.seen,
    )
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    return _choose(module, hidden, batch, choice, stop_ids, _with_room(state, room))


@partial(jax.jit, static_argnums=0, donate_argnames="state")
def _decode(
    structure: Structure,
    params: Params,
    prefix: Prefix | None,
    batch: _Batch,
    choice: Choice,
    stop_ids: Int[Array, "E"],
    state: _State,
    until: int,
) -> _State:
    """Goes on until all rows have `until` tokens, or are done."""
    module = structure.merge(params)
    size = batch.tokens.shape[1]
    slots = jnp.arange(size + state.out.shape[1])
    prompt = slots < batch.lengths[:, None]

    def step(state: _State) -> _State:
        position = _start(prefix) + batch.lengths + state.made - 1
        write_at = size + state.made - 1
        mask = prompt | ((slots >= size) & (slots <= write_at))
        hidden, cache = module.decode_states(
            state.token[:, None], position[:, None], mask[:, None], state.cache, write_at, prefix
        )
        state = state._replace(cache=cache)
        return _choose(module, hidden[:, 0], batch, choice, stop_ids, state)

    return jax.lax.while_loop(
        lambda state: (state.made < until) & ~jnp.all(state.done), step, state
    )


def _choose(
    module: Decoder,
    hidden: Array,
    batch: _Batch,
    choice: Choice,
    stop_ids: Array,
    state: _State,
) -> _State:
    """The state with the tokens that follow these hidden states."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, state.made))(batch.keys)
    token = choose(module.logits(hidden), choice, state.seen, keys)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return _State(
        state.made + 1,
        state.done | jnp.isin(token, stop_ids),
        token,
        state.out.at[:, state.made].set(token),
        state.cache,
        seen,
    )


@partial(jax.jit, static_argnums=1)
def _with_room(state: _State, room: int) -> _State:
    """The state with slots for `room` new tokens."""
    more = room - state.out.shape[1]
    slots = [(0, 0), (0, 0), (0, 0), (0, more), (0, 0)]
    cache = KVCache(jnp.pad(state.cache.k, slots), jnp.pad(state.cache.v, slots))
    return state._replace(out=jnp.pad(state.out, ((0, 0), (0, more))), cache=cache)


def _start(prefix: Prefix | None) -> Array | int:
    """The position of a row's first token."""
    return 0 if prefix is None else jnp.sum(prefix.valid)
