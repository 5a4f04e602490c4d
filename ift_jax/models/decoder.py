"""The decoder-only transformer: one implementation, whose families differ by `DecoderConfig`.

`build` returns the static structure and the axis names; parameters are a plain nested
dict of arrays, and `merge(structure, params)` is called inside jitted functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ift_jax.models.layers import apply_rope, attend, packing_mask, rms_norm, rope_tables
from ift_jax.models.quantization import Quantized, dense
from ift_jax.peft.adapter import TRAINED, Adapter, own_weights
from ift_jax.peft.method import STORED
from ift_jax.sharding import constrain, rows_are_cut

Params = dict[str, Any]
Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a checkpoint decides. Nothing here has a default: a missing fact is an error."""

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    rope_base: float
    norm_epsilon: float
    tie_embeddings: bool
    max_positions: int

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a run computes; the checkpoint does not know of it.

    `remat` says what the backward pass finds stored: "none" recomputes nothing but weights in
    another dtype or with a trained part in their place, "dots" keeps matrix-multiply outputs
    and recomputes the rest, "full" keeps layer inputs only.
    """

    dtype: str = "float32"
    remat: Remat = "dots"


# Keys, values [T0, K, H] and their validity [T0] that every query of every row sees.
Seen = tuple[Array, Array, Array]


class KVCache(NamedTuple):
    """Keys and values of earlier positions. Without the B axis they are a prefix of all rows.

    Heads stand before positions, as attention multiplies them: else it would copy the cache.
    """

    k: Float[Array, "L *B K T H"]
    v: Float[Array, "L *B K T H"]

    def of_layer(self, index: Array | None = None) -> tuple[Array, Array]:
        """One layer's keys and values [*B T K H], as `attend` takes them."""
        k, v = (self.k, self.v) if index is None else (self.k[index], self.v[index])
        return jnp.moveaxis(k, -3, -2), jnp.moveaxis(v, -3, -2)


class Virtual(NamedTuple):
    """Trained keys and values that stand in front of every example."""

    k: Float[Array, "L P K H"]
    v: Float[Array, "L P K H"]


class Prefix(NamedTuple):
    """A prompt beginning that all rows of a batch share, computed once.

    `valid` [T0] marks real positions; rows start counting positions at valid.sum().
    """

    cache: KVCache
    valid: Bool[Array, "T0"]


def _param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], dtype: Any, *, ones: bool = False
) -> nnx.Param:
    value = (
        jnp.ones(shape, dtype)
        if ones
        else jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(0.02, dtype)
    )
    return nnx.Param(value, axes=axes)


class Attention(nnx.Module):
    """Query, key and value projections of all layers in one array, grouped by key/value head.

    qkv[l, :, k] holds the G query heads that read key/value head k, then that key head,
    then that value head: one matrix multiply, and tensor parallelism splits the k axis.
    """

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        group = c.num_heads // c.num_kv_heads
        heads = (c.num_kv_heads, group + 2, c.head_size)
        self.qkv = _param(
            rngs,
            (c.num_layers, c.width, *heads),
            ("layers", "embed", "kv_heads", "heads_per_kv", "head_size"),
            dtype,
        )
        self.out = _param(
            rngs,
            (c.num_layers, c.num_kv_heads, group, c.head_size, c.width),
            ("layers", "kv_heads", "heads_per_kv", "head_size", "embed"),
            dtype,
        )


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020); gate and up projections share one array."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        self.gate_up = _param(
            rngs,
            (c.num_layers, c.width, 2, c.mlp_width),
            ("layers", "embed", "gate_up", "mlp"),
            dtype,
        )
        self.down = _param(
            rngs, (c.num_layers, c.mlp_width, c.width), ("layers", "mlp", "embed"), dtype
        )


class Layer(nnx.Module):
    """All layers, stacked along a leading axis; inside the scan it is one of them.

    `adapter` and its arrays are put there by `Structure.merge`; `adapter_shared` are those
    that all layers read alike. `keeps_all` says that remat is "none".
    """

    adapter: Adapter | None = None
    adapter_arrays: Params
    adapter_shared: Params
    keeps_all = False

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        norm = ((c.num_layers, c.width), ("layers", "norm"), dtype)
        self.attention_norm = _param(rngs, *norm, ones=True)
        self.attention = Attention(c, rngs, dtype)
        self.mlp_norm = _param(rngs, *norm, ones=True)
        self.mlp = Mlp(c, rngs, dtype)
        self.norm_epsilon = c.norm_epsilon

    def project(self, path: str, x: Array, num_in: int = 1) -> Array:
        """The linear map of one array: the last `num_in` axes of x with its first ones."""
        group, name = path.split(".")
        stored = getattr(getattr(self, group), name).get_value()
        adapter = self.adapter

        def apply(x: Array, stored: Any, arrays: Any) -> Array:
            weight = dense(stored, x.dtype)
            if adapter is None:
                return jnp.tensordot(x, weight, num_in)
            shared = self.adapter_shared
            return adapter.linear(f"layers.{path}", x, weight, num_in, arrays, shared)

        # What would be kept for the backward pass, layer by layer, of weights that are made for a
        # product would be a copy of the model.
        if isinstance(stored, Quantized):
            apply = jax.checkpoint(apply, policy=_POLICIES.nothing_saveable)
        elif self.keeps_all and (stored.dtype != x.dtype or (adapter and adapter.makes_weights)):
            apply = jax.checkpoint(apply, policy=_PRODUCTS, prevent_cse=False)
        return apply(x, stored, None if adapter is None else self.adapter_arrays)

    def qkv(
        self, x: Float[Array, "B S D"], cos: Array, sin: Array
    ) -> tuple[Float[Array, "B S K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Rotated queries and keys, and values."""
        h = rms_norm(x, self.attention_norm[...], self.norm_epsilon)
        qkv = self.project("attention.qkv", h)
        q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def finish(
        self, x: Float[Array, "B S D"], attended: Float[Array, "B S K G H"]
    ) -> Float[Array, "B S D"]:
        """Everything after attention."""
        x = x + self.project("attention.out", attended, 3)
        h = rms_norm(x, self.mlp_norm[...], self.norm_epsilon)
        gate_up = self.project("mlp.gate_up", h)
        h = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        return x + self.project("mlp.down", h)


class Decoder(nnx.Module):
    """Token ids to hidden states and logits.

    `virtual` are keys and values that stand in front of every example (see
    `ift_jax.peft.virtual`); positions count on from them. `token_rows` are a few tokens [T] and
    rows [T, D] that stand in for their rows of the embedding and of the output matrix, by path.
    """

    virtual: Virtual | None = None
    token_rows: dict[str, tuple[Array, Array]] | None = None
    adapter_shared: Params

    def __init__(
        self, config: DecoderConfig, compute: Compute, rngs: nnx.Rngs, param_dtype: Any = "float32"
    ):
        self.config, self.compute = config, compute
        dtype = jnp.dtype(param_dtype)
        table = ((config.vocab_size, config.width), ("vocab", "embed"), dtype)
        self.embedding = _param(rngs, *table)
        self.layers = Layer(config, rngs, dtype)
        self.final_norm = _param(rngs, (config.width,), ("norm",), dtype, ones=True)
        if not config.tie_embeddings:
            self.output = _param(rngs, *table)

    @property
    def output_matrix(self) -> Float[Array, "V D"]:
        """The output projection: the embedding itself where they are tied."""
        return self.embedding[...] if self.config.tie_embeddings else self.output[...]

    def hidden_states(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        prefix: Int[Array, "T0"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Normed final hidden states of packed rows, for training and scoring whole rows.

        Args:
            prefix: tokens that every example begins with, left out of the rows. They run
                through the layers once a call instead of once an example; every example
                sees their keys and values, so results and gradients are the same.
        """
        mask = packing_mask(segment_ids)
        x, *turns = self._enter(tokens, positions)
        layer_of, stacked = self._stacked()
        if prefix is None or not prefix.size:

            def body(x: Array, xs: Any) -> tuple[Array, None]:
                layer, seen = layer_of(xs[0]), _joined(xs[1])
                x = layer.finish(x, attend(*layer.qkv(x, *turns), mask, seen))
                return constrain(x, "rows", None, None), None

            x, _ = jax.lax.scan(_remat(body, self.compute.remat), x, (stacked, self.virtual))
            return self._leave(x)

        beginning, *first_turns = self._enter(prefix[None], jnp.arange(prefix.size)[None])
        first_mask = packing_mask(jnp.ones_like(prefix)[None])
        every = jnp.ones(prefix.size, bool)

        def body_behind(pair: tuple[Array, Array], xs: Any) -> tuple[tuple[Array, Array], None]:
            layer, seen = layer_of(xs[0]), _joined(xs[1])
            first, rest = (pair[0], *first_turns), (pair[1], *turns)
            (q0, k0, v0), (q, k, v) = _both(layer.qkv, first, rest)
            shared = attend(q0, k0, v0, first_mask, seen)
            own = attend(q, k, v, mask, _joined(xs[1], (k0[0], v0[0], every)))
            beginning, x = _both(layer.finish, (pair[0], shared), (pair[1], own))
            return (beginning, constrain(x, "rows", None, None)), None

        body_behind = _remat(body_behind, self.compute.remat)
        (_, x), _ = jax.lax.scan(body_behind, (beginning, x), (stacked, self.virtual))
        return self._leave(x)

    def score_states(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S S"],
        prefix: Prefix | None = None,
        real: Int[Array, "N"] | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache]:
        """Hidden states under any mask, after a shared prefix; and the keys and values made.

        Args:
            real: flat slots b * S + s of the tokens that are not padding, and B * S where there
                are fewer than N. Given, padding goes through attention alone, and through no
                matrix multiply; what comes back for it means nothing.
        """
        rows, size = tokens.shape
        if real is not None:
            place = jnp.zeros(rows * size, jnp.int32)
            place = place.at[real].set(jnp.arange(len(real), dtype=jnp.int32), mode="drop")

        def joined(x: Array) -> Array:
            flat = x.reshape(rows * size, *x.shape[2:])
            return x if real is None else jnp.take(flat, real, axis=0, mode="clip")[None]

        def as_rows(x: Array) -> Array:
            if real is None:
                return x
            return jnp.take(x[0], place, axis=0).reshape(rows, size, *x.shape[2:])

        x, cos, sin = self._enter(joined(tokens), joined(positions))
        layer_of, stacked = self._stacked()

        def body(x: Array, xs: Any) -> tuple[Array, tuple[Array, Array]]:
            layer_state, virtual, shared = xs
            layer = layer_of(layer_state)
            q, k, v = map(as_rows, layer.qkv(x, cos, sin))
            seen = _joined(virtual, prefix and (*shared.of_layer(), prefix.valid))
            made = (k.swapaxes(1, 2), v.swapaxes(1, 2))
            return layer.finish(x, joined(attend(q, k, v, mask, seen))), made

        shared = None if prefix is None else prefix.cache
        x, (k, v) = jax.lax.scan(body, x, (stacked, self.virtual, shared))
        return self._leave(as_rows(x)), KVCache(k, v)

    def decode_states(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S T"],
        cache: KVCache,
        write_at: Int[Array, ""],
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache]:
        """Hidden states of new positions, whose keys and values go to slot `write_at` on.

        The cache is the scan's carry, so XLA updates it in place.
        """
        x, cos, sin = self._enter(tokens, positions)
        layer_of, stacked = self._stacked()

        def body(carry: Any, xs: Any) -> tuple[Any, None]:
            x, cache = carry
            layer_state, index, virtual, shared = xs
            layer = layer_of(layer_state)
            q, *made = layer.qkv(x, cos, sin)
            start = (index, 0, 0, write_at, 0)
            cache = KVCache(
                *(
                    jax.lax.dynamic_update_slice(
                        old, new.swapaxes(1, 2)[None].astype(old.dtype), start
                    )
                    for old, new in zip(cache, made, strict=True)
                )
            )
            seen = _joined(virtual, prefix and (*shared.of_layer(), prefix.valid))
            return (layer.finish(x, attend(q, *cache.of_layer(index), mask, seen)), cache), None

        indices = jnp.arange(self.config.num_layers)
        shared = None if prefix is None else prefix.cache
        (x, cache), _ = jax.lax.scan(body, (x, cache), (stacked, indices, self.virtual, shared))
        return self._leave(x), cache

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token scores in float32."""

        def product(rows: Array) -> Array:
            rows = rows.astype(hidden.dtype)
            return jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)

        scores = product(self.output_matrix)
        trained = (self.token_rows or {}).get(
            "embedding" if self.config.tie_embeddings else "output"
        )
        if trained is not None:
            # Beside the frozen matrix, so that its gradient, of all V rows, is never formed.
            ids, rows = trained
            scores = scores.at[..., ids].set(product(rows))
        return scores

    def virtual_states(self, embeddings: Float[Array, "P D"]) -> Virtual:
        """Keys and values of trained embeddings at the first P positions."""
        places = jnp.arange(embeddings.shape[0])[None]
        x, cos, sin = self._positioned(embeddings[None], places)
        mask = packing_mask(jnp.ones_like(places))
        layer_of, stacked = self._stacked()

        def body(x: Array, layer_state: Any) -> tuple[Array, tuple[Array, Array]]:
            layer = layer_of(layer_state)
            q, k, v = layer.qkv(x, cos, sin)
            return layer.finish(x, attend(q, k, v, mask)), (k[0], v[0])

        _, (k, v) = jax.lax.scan(_remat(body, self.compute.remat), x, stacked)
        return Virtual(k, v)

    def _stacked(self) -> tuple[Callable[[Any], Layer], Any]:
        """What makes a layer of one slice of the stacked state, and that state."""
        graph, stacked = nnx.split(self.layers)

        def layer_of(state: Any) -> Layer:
            layer = nnx.merge(graph, state)
            layer.keeps_all = self.compute.remat == "none"
            if layer.adapter is not None:
                layer.adapter_shared = nnx.data(self.adapter_shared)
            return layer

        return layer_of, stacked

    def _enter(self, tokens: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Embeddings of tokens that stand behind the virtual positions, and rotary tables."""
        virtual = 0 if self.virtual is None else self.virtual.k.shape[1]
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.compute.dtype)
        trained = (self.token_rows or {}).get("embedding")
        if trained is not None:
            ids, rows = trained
            found = tokens[..., None] == ids
            own = rows.astype(x.dtype)[jnp.argmax(found, axis=-1)]
            x = jnp.where(jnp.any(found, axis=-1, keepdims=True), own, x)
        return self._positioned(x, positions + virtual)

    def _positioned(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        x = x.astype(self.compute.dtype)
        cos, sin = rope_tables(positions, self.config.head_size, self.config.rope_base)
        return constrain(x, "rows", None, None), cos, sin

    def _leave(self, x: Array) -> Array:
        return rms_norm(x, self.final_norm[...], self.config.norm_epsilon)


def _both(function: Callable[..., Any], first: Sequence[Any], rest: Sequence[Any]) -> Any:
    """A function of tokens, of a beginning [1, T0, ...] and of rows [B, S, ...].

    In one call, whose matrix multiplies read each weight once and give its gradient once. Two
    where a mesh cuts the rows, since joined tokens would have to travel between its parts.
    """
    if rows_are_cut():
        return function(*first), function(*rest)
    size, shape = first[0].shape[1], rest[0].shape[:2]
    joined = [
        jnp.concatenate([x, y.reshape(1, -1, *y.shape[2:])], axis=1)
        for x, y in zip(first, rest, strict=True)
    ]
    made = function(*joined)
    beginning = jax.tree.map(lambda x: x[:, :size], made)
    return beginning, jax.tree.map(lambda x: x[0, size:].reshape(*shape, *x.shape[2:]), made)


def _joined(virtual: Virtual | None, *more: Seen | None) -> Seen | None:
    """One layer's virtual keys and values, and others, for `attend` to see before a row's own."""
    parts = [part for part in more if part is not None]
    if virtual is not None:
        parts.insert(0, (virtual.k, virtual.v, jnp.ones(virtual.k.shape[0], bool)))
    if len(parts) < 2:
        return parts[0] if parts else None
    k, v, valid = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return k, v, valid


_POLICIES = jax.checkpoint_policies
_PRODUCTS = _POLICIES.save_from_both_policies(
    _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(STORED)
)


def _remat(body: Any, remat: Remat) -> Any:
    if remat == "none":
        return body
    policy = {"dots": _PRODUCTS, "full": _POLICIES.nothing_saveable}[remat]
    # The scan itself keeps the recomputation apart, so no barrier against merging is needed.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


class Structure(NamedTuple):
    """A model without its arrays: hashable, so a static argument of jitted functions."""

    graph: nnx.GraphDef
    config: DecoderConfig
    compute: Compute
    adapter: Adapter | None = None

    def merge(self, params: Params, key: Array | None = None) -> Decoder:
        """The module over these parameters; cheap, meant for inside jitted functions.

        Args:
            params: the weights, with an adapter's arrays beside them (see
                `ift_jax.peft.adapter`), which a structure without adapter leaves aside.
            key: of dropout, in training only.
        """
        adapter = self.adapter
        if adapter is None:
            return nnx.merge(self.graph, own_weights(params))
        module = nnx.merge(self.graph, adapter.weights(params))
        module.layers.adapter = adapter
        module.layers.adapter_arrays = nnx.data(adapter.layer_arrays(params, key))
        module.adapter_shared = nnx.data(adapter.shared_arrays(params))
        module.token_rows = nnx.data(adapter.token_rows(params))
        if adapter.num_virtual:
            arrays = params[TRAINED]["virtual"]
            made = (
                module.virtual_states(arrays["embeddings"])
                if "embeddings" in arrays
                else Virtual(*(arrays[name].astype(self.compute.dtype) for name in ("k", "v")))
            )
            module.virtual = nnx.data(made)
        return module

    @property
    def context_length(self) -> int:
        """How many tokens an example may have, virtual positions not counted."""
        return self.config.max_positions - (self.adapter.num_virtual if self.adapter else 0)


@partial(jax.jit, static_argnums=0)
def logits(
    structure: Structure, params: Params, ids: Int[Array, "B S"], mask: Int[Array, "B S"]
) -> Float[Array, "B S V"]:
    """Next-token scores in float32 at every token; `mask` is 1 on tokens and 0 on padding."""
    module = structure.merge(params)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return module.logits(module.hidden_states(ids, positions, mask))


def build(config: DecoderConfig, compute: Compute) -> Structure:
    """The static structure of a decoder; allocates nothing."""
    graph, _ = nnx.split(_abstract(config, compute))
    return Structure(graph, config, compute)


def param_shapes(config: DecoderConfig, dtype: Any = "float32") -> Params:
    """The parameter tree as jax.ShapeDtypeStruct leaves."""
    _, state = nnx.split(_abstract(config, Compute(), dtype))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))


def param_axes(config: DecoderConfig) -> Params:
    """The parameter tree with each array's tuple of logical axis names as leaf."""
    _, state = nnx.split(_abstract(config, Compute()))
    axes: Params = {}
    for path, variable in nnx.to_flat_state(state):
        node: Any = axes
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = variable.get_metadata()["axes"]
    return axes


def init_params(config: DecoderConfig, seed: int, dtype: Any = "float32") -> Params:
    """Random parameters: normal with standard deviation 0.02, norms at one."""
    _, state = nnx.split(Decoder(config, Compute(), nnx.Rngs(seed), dtype))
    return nnx.to_pure_dict(state)


def _abstract(config: DecoderConfig, compute: Compute, dtype: Any = "float32") -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, compute, nnx.Rngs(0), dtype))
