"""The decoder: one reference written out layer by layer, and what must not change results."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ift_jax.errors import InputError
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.models.decoder import (
    Compute,
    DecoderConfig,
    KVCache,
    Layer,
    Prefix,
    build,
    init_params,
    param_axes,
    param_shapes,
)
from ift_jax.models.layers import apply_rope, attend, packing_mask, rms_norm, rope_tables

CONFIG = DecoderConfig(
    vocab_size=40,
    width=16,
    mlp_width=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    rope_base=100.0,
    norm_epsilon=1e-3,
    tie_embeddings=False,
    max_positions=32,
)
COMPUTE = Compute(remat="none")


def random_params(config=CONFIG, seed=0):
    """Parameters large enough that every part matters, norms that are not all ones included."""
    generator = np.random.default_rng(seed)

    def draw(path, shape):
        norm = "norm" in jax.tree_util.keystr(path)
        values = generator.normal(1.0 if norm else 0.0, 0.3 if norm else 0.2, shape.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(config))


@pytest.fixture(scope="module")
def structure():
    return build(CONFIG, COMPUTE)


@pytest.fixture(scope="module")
def params():
    return random_params()


def call(structure, params, tokens, positions, segments, prefix=None):
    module = structure.merge(params)
    return module.logits(module.hidden_states(tokens, positions, segments, prefix))


jitted = jax.jit(call, static_argnums=0)


def plain(rows, size):
    """Tokens, positions and segments of `rows` x `size`, all tokens of a row distinct."""
    tokens = jnp.stack([jnp.arange(size) + 3 * i + 1 for i in range(rows)]) % CONFIG.vocab_size
    return tokens, jnp.broadcast_to(jnp.arange(size), (rows, size)), jnp.ones_like(tokens)


def unrolled(config, params, tokens, positions, segments):
    """The decoder as a Python loop over layers, from the functions of layers.py."""
    x = params["embedding"][tokens]
    tables = rope_tables(positions, config.head_size, config.rope_base)
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        h = rms_norm(x, layer["attention_norm"], config.norm_epsilon)
        qkv = jnp.einsum("bsd,dkgh->bskgh", h, layer["attention"]["qkv"])
        q, k = apply_rope(qkv[..., :-2, :], *tables), apply_rope(qkv[..., -2, :], *tables)
        attended = attend(q, k, qkv[..., -1, :], packing_mask(segments))
        x = x + jnp.einsum("bskgh,kghd->bsd", attended, layer["attention"]["out"])
        h = rms_norm(x, layer["mlp_norm"], config.norm_epsilon)
        gate, up = jnp.moveaxis(jnp.einsum("bsd,dgf->bsgf", h, layer["mlp"]["gate_up"]), 2, 0)
        x = x + (gate * jax.nn.sigmoid(gate) * up) @ layer["mlp"]["down"]
    output = params["embedding"] if config.tie_embeddings else params["output"]
    return rms_norm(x, params["final_norm"], config.norm_epsilon) @ output.T


@pytest.mark.parametrize("tied", [True, False])
def test_scanned_layers_equal_a_loop_over_layers(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params, inputs = random_params(config), plain(2, 7)
    logits = jitted(build(config, COMPUTE), params, *inputs)
    np.testing.assert_allclose(logits, unrolled(config, params, *inputs), rtol=1e-4, atol=1e-4)
    assert float(jnp.std(logits)) > 0.1


def loss(structure, params, inputs, prefix=None):
    logits = call(structure, params, *inputs, prefix)
    return jnp.sum(jax.nn.log_softmax(logits)[..., 5]) / 10


def test_remat_changes_neither_loss_nor_gradients(params):
    inputs = plain(2, 7)
    found = {
        remat: jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)(
            build(CONFIG, Compute(remat=remat)), params, inputs
        )
        for remat in ("none", "dots", "full")
    }
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found[remat],
            found["none"],
        )


def test_remat_trades_stored_values_for_matrix_multiplies(params):
    def multiplies(remat):
        gradient = jax.grad(loss, argnums=1)
        jaxpr = jax.make_jaxpr(gradient, static_argnums=0)(
            build(CONFIG, Compute(remat=remat)), params, plain(1, 5)
        )
        return str(jaxpr).count("dot_general")

    assert multiplies("none") < multiplies("dots") < multiplies("full")


def test_packed_rows_give_each_example_the_logits_it_has_alone(structure, params):
    lengths, size = (4, 1, 5), 12
    tokens = (jnp.arange(size) * 7 + 3) % CONFIG.vocab_size
    positions = jnp.array([0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0, 0])
    segments = jnp.array([1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 0, 0])
    packed = jitted(structure, params, tokens[None], positions[None], segments[None])[0]
    at = 0
    for length in lengths:
        alone = tokens[at : at + length][None]
        where, ones = jnp.arange(length)[None], jnp.ones_like(alone)
        logits = jitted(structure, params, alone, where, ones)[0]
        np.testing.assert_allclose(packed[at : at + length], logits, rtol=1e-4, atol=1e-5)
        at += length


@partial(jax.jit, static_argnums=0)
def token_influence(structure, params, inputs, position, prefix=None):
    """For each token id, the size of the gradient of one position's logits to its embedding.

    The output matrix is untied, so embedding rows matter as inputs only; tokens are distinct.
    """

    def logit_sum(embedding):
        logits = call(structure, {**params, "embedding": embedding}, *inputs, prefix)
        return jnp.sum(jnp.sin(logits[0, position]))

    return jnp.abs(jax.grad(logit_sum)(params["embedding"])).sum(axis=1)


def test_later_positions_have_no_influence(structure, params):
    inputs = plain(1, 6)
    for position in (0, 2, 5):
        influence = np.asarray(token_influence(structure, params, inputs, position))[inputs[0][0]]
        assert (influence[: position + 1] > 0).all()
        assert (influence[position + 1 :] == 0).all()


def test_other_examples_of_a_row_and_padding_have_no_influence(structure, params):
    tokens, _, _ = plain(1, 8)
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])
    inputs = tokens, positions, segments
    influence = np.asarray(token_influence(structure, params, inputs, 5))[tokens[0]]
    assert (influence[3:6] > 0).all()
    assert (influence[[0, 1, 2, 6, 7]] == 0).all()


def test_shared_beginning_influences_every_example_and_rows_stay_apart(structure, params):
    tokens = jnp.array([[10, 11, 12, 13]])
    inputs = tokens, jnp.array([[3, 4, 3, 4]]), jnp.array([[1, 1, 2, 2]])
    influence = np.asarray(token_influence(structure, params, inputs, 3, jnp.array([1, 2, 3])))
    assert (influence[[1, 2, 3, 12, 13]] > 0).all()
    assert (influence[[10, 11]] == 0).all()


def written_out(prefix, tokens, segments):
    """The rows with the prefix before each example, and where each old position went."""
    rows, where = [], []
    for row, ids in zip(np.asarray(tokens), np.asarray(segments), strict=True):
        new, index = [], []
        for segment in [s for s in np.unique(ids) if s > 0]:
            new += [(t, i, segment) for i, t in enumerate(np.asarray(prefix))]
            for offset, t in enumerate(row[ids == segment]):
                index.append(len(new))
                new.append((t, len(prefix) + offset, segment))
        rows.append(new)
        where.append(index)
    size = max(map(len, rows))
    filled = [row + [(0, 0, 0)] * (size - len(row)) for row in rows]
    return [jnp.asarray(part) for part in np.moveaxis(np.array(filled), 2, 0)], where


PREFIX = jnp.array([7, 8, 9])
AFTER = (  # tokens, positions and segments behind PREFIX: two examples, one example
    jnp.array([[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]]),
    jnp.array([[3, 4, 3, 4, 5], [3, 4, 5, 0, 0]]),
    jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]),
)


@pytest.fixture(scope="module")
def without_sharing(structure, params):
    """Logits of AFTER's examples, and the gradient, with PREFIX written out in each."""
    full, where = written_out(PREFIX, AFTER[0], AFTER[2])

    def written_loss(params):
        logits = call(structure, params, *full)
        picked = [logits[i, jnp.array(index)] for i, index in enumerate(where)]
        return sum(jnp.sum(jnp.sin(x)) for x in picked), picked

    (_, picked), gradient = jax.jit(jax.value_and_grad(written_loss, has_aux=True))(params)
    return picked, gradient


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_shared_beginning_equals_the_same_tokens_in_every_example(params, without_sharing, remat):
    structure, real = build(CONFIG, Compute(remat=remat)), (AFTER[2] > 0)[..., None]

    def shared_loss(params):
        logits = call(structure, params, *AFTER, PREFIX)
        return jnp.sum(jnp.sin(logits), where=real), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(shared_loss, has_aux=True))(params)
    for i, expected in enumerate(without_sharing[0]):
        np.testing.assert_allclose(logits[i, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        gradient,
        without_sharing[1],
    )


def test_an_empty_beginning_is_no_beginning(structure, params):
    inputs = plain(1, 4)
    empty = call(structure, params, *inputs, jnp.zeros((0,), jnp.int32))
    np.testing.assert_array_equal(empty, call(structure, params, *inputs))


def causal(size):
    return jnp.tril(jnp.ones((1, size, size), bool))


def test_score_states_equal_hidden_states_under_a_causal_mask(structure, params):
    tokens, positions, segments = plain(2, 6)
    module = structure.merge(params)
    mask = jnp.broadcast_to(causal(6), (2, 6, 6))
    states, cache = module.score_states(tokens, positions, mask)
    expected = module.hidden_states(tokens, positions, segments)
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)
    assert cache.k.shape == cache.v.shape == (3, 2, 2, 6, 8)


def test_padding_left_out_of_matrix_multiplies_changes_nothing(structure, params, monkeypatch):
    tokens, positions, _ = plain(3, 6)
    lengths = jnp.array([2, 6, 0])
    real = np.flatnonzero(np.arange(6) < np.array(lengths)[:, None])
    mask = causal(6) & (jnp.arange(6) < lengths[:, None])[:, None, :]
    module = structure.merge(params)
    expected, cache = module.score_states(tokens, positions, mask)
    shapes = []
    qkv = Layer.qkv
    monkeypatch.setattr(
        Layer, "qkv", lambda self, x, *a: shapes.append(x.shape) or qkv(self, x, *a)
    )
    slots = jnp.array([*real, 18, 18], jnp.int32)  # as many again that stand for none
    states, found = module.score_states(tokens, positions, mask, None, slots)
    assert shapes == [(1, len(slots), CONFIG.width)]
    for ours, theirs in ((states, expected), *zip(found, cache, strict=True)):
        if ours.ndim == 5:
            ours, theirs = (jnp.moveaxis(x, (1, 3), (0, 1)) for x in (ours, theirs))
        for row, length in enumerate(np.array(lengths)):
            np.testing.assert_allclose(
                ours[row, :length], theirs[row, :length], rtol=1e-4, atol=1e-5
            )


def padded_prefix(module, tokens, size):
    """A Prefix of these tokens in `size` slots, the unused ones filled with another token."""
    ids = jnp.concatenate([tokens, jnp.full(size - len(tokens), 39)])[None]
    _, cache = module.score_states(ids, jnp.arange(size)[None], causal(size))
    return Prefix(KVCache(cache.k[:, 0], cache.v[:, 0]), jnp.arange(size) < len(tokens))


def test_score_states_behind_a_prefix_equal_the_whole_row(structure, params):
    module = structure.merge(params)
    tokens, positions, segments = plain(2, 9)
    tokens = tokens.at[:, :4].set(jnp.array([30, 31, 32, 33]))  # what both rows begin with
    whole = module.hidden_states(tokens, positions, segments)
    prefix = padded_prefix(module, tokens[0, :4], 8)
    mask = jnp.broadcast_to(causal(5), (2, 5, 5))
    states, _ = module.score_states(tokens[:, 4:], positions[:, 4:], mask, prefix)
    np.testing.assert_allclose(states, whole[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [0, 3])
def test_decoding_token_by_token_equals_the_full_forward(structure, params, shared):
    """Prefill 2 positions, then one at a time, then the last two at once."""
    module = structure.merge(params)
    tokens, positions, segments = plain(2, 9)
    tokens = tokens.at[:, :shared].set(jnp.array([30, 31, 32])[:shared])
    whole = module.hidden_states(tokens, positions, segments)
    prefix = padded_prefix(module, tokens[0, :shared], 4) if shared else None
    tokens, positions, rest = tokens[:, shared:], positions[:, shared:], whole[:, shared:]
    size = tokens.shape[1]
    mask = jnp.broadcast_to(causal(size), (2, size, size))
    states, cache = module.score_states(tokens[:, :2], positions[:, :2], mask[:, :2, :2], prefix)
    room = [(0, 0), (0, 0), (0, 0), (0, size - 2), (0, 0)]
    cache = KVCache(jnp.pad(cache.k, room), jnp.pad(cache.v, room))
    np.testing.assert_allclose(states, rest[:, :2], rtol=1e-4, atol=1e-5)
    for start, end in [*((i, i + 1) for i in range(2, size - 2)), (size - 2, size)]:
        states, cache = module.decode_states(
            tokens[:, start:end],
            positions[:, start:end],
            mask[:, start:end],
            cache,
            jnp.asarray(start),
            prefix,
        )
        np.testing.assert_allclose(states, rest[:, start:end], rtol=1e-4, atol=1e-5)


CHANGES = {
    "vocab_size": 41,
    "width": 20,
    "mlp_width": 20,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 4,
    "head_size": 4,
    "rope_base": 5000.0,
    "norm_epsilon": 0.1,
    "tie_embeddings": True,
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DecoderConfig)])
def test_every_config_field_matters(field, params):
    if field == "max_positions":
        check_that_max_positions_limits_generation(params)
        return
    other = dataclasses.replace(CONFIG, **{field: CHANGES[field]})
    before, after = (jax.tree.map(lambda x: x.shape, param_shapes(c)) for c in (CONFIG, other))
    if before == after:
        logits = [jitted(build(c, COMPUTE), params, *plain(1, 6)) for c in (CONFIG, other)]
        assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-3
        return
    logits = jitted(build(other, COMPUTE), random_params(other), *plain(1, 6))
    assert logits.shape == (1, 6, other.vocab_size)


def check_that_max_positions_limits_generation(params):
    prompts = [np.arange(1, 5, dtype=np.int32)]
    for limit, fits in ((9, True), (8, False)):
        structure = build(dataclasses.replace(CONFIG, max_positions=limit), COMPUTE)
        if fits:
            generate(structure, params, prompts, Sampling(max_new_tokens=5), stop_ids=[0])
        else:
            with pytest.raises(InputError, match=r"prompt 0.*context of 8"):
                generate(structure, params, prompts, Sampling(max_new_tokens=5), stop_ids=[0])


def test_query_heads_must_be_a_multiple_of_key_heads():
    with pytest.raises(ValueError, match="num_heads=4 is not a multiple of num_kv_heads=3"):
        dataclasses.replace(CONFIG, num_kv_heads=3)


def test_computing_in_bfloat16_gives_float32_logits_near_those_of_float32(params):
    structure = build(CONFIG, Compute(dtype="bfloat16"))
    tokens, positions, segments = plain(2, 6)
    hidden = structure.merge(params).hidden_states(tokens, positions, segments)
    logits = jitted(structure, params, tokens, positions, segments)
    exact = jitted(build(CONFIG, COMPUTE), params, tokens, positions, segments)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert 0 < float(jnp.abs(logits - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_random_parameters_follow_the_seed_and_the_announced_shapes():
    announced = param_shapes(CONFIG, "bfloat16")
    made = init_params(CONFIG, 3, "bfloat16")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), announced
    )
    again, other = init_params(CONFIG, 3, "bfloat16"), init_params(CONFIG, 4, "bfloat16")
    np.testing.assert_array_equal(made["embedding"], again["embedding"])
    assert not np.array_equal(made["embedding"], other["embedding"])


def test_every_parameter_has_a_name_per_axis():
    axes, shapes = param_axes(CONFIG), param_shapes(CONFIG)
    jax.tree.map(
        lambda names, shape: np.testing.assert_equal(len(names), len(shape.shape)),
        axes,
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    assert axes["layers"]["attention"]["qkv"][2] == "kv_heads"


FULL_SIZE = {
    "Llama-3-8B": (
        DecoderConfig(
            vocab_size=128_256, width=4096, mlp_width=14_336, num_layers=32, num_heads=32,
            num_kv_heads=8, head_size=128, rope_base=500_000.0, norm_epsilon=1e-5,
            tie_embeddings=False, max_positions=8192,
        ),
        8_030_261_248,
    ),
    "SmolLM2-135M": (
        DecoderConfig(
            vocab_size=49_152, width=576, mlp_width=1536, num_layers=30, num_heads=9,
            num_kv_heads=3, head_size=64, rope_base=100_000.0, norm_epsilon=1e-5,
            tie_embeddings=True, max_positions=8192,
        ),
        134_515_008,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_have_shapes_without_allocating(name):
    config, count = FULL_SIZE[name]
    shapes = param_shapes(config, "bfloat16")
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == count
    ids = jax.ShapeDtypeStruct((4, 8192), jnp.int32)
    structure = build(config, Compute(dtype="bfloat16"))
    hidden = jax.eval_shape(
        lambda params, *inputs: structure.merge(params).hidden_states(*inputs),
        shapes, ids, ids, ids, jax.ShapeDtypeStruct((100,), jnp.int32),
    )  # fmt: skip
    assert (hidden.shape, hidden.dtype) == ((4, 8192, config.width), jnp.bfloat16)
