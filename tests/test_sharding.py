"""Meshes: what they accept, where they put parameters, and that they change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ift_jax.batch import Batch
from ift_jax.errors import InputError
from ift_jax.evaluation import batching, generation
from ift_jax.evaluation.generation import generate, generate_one
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.scoring import Question, choice_log_likelihoods
from ift_jax.models.decoder import (
    Compute,
    DecoderConfig,
    build,
    init_params,
    param_axes,
    param_shapes,
)
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import (
    MeshConfig,
    constrain,
    make_mesh,
    num_row_shards,
    param_shardings,
    row_sharding,
)
from ift_jax.train.loss import loss_sums

CONFIG = DecoderConfig(
    vocab_size=40,
    width=16,
    mlp_width=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    rope_base=100.0,
    norm_epsilon=1e-5,
    tie_embeddings=False,
    max_positions=64,
)
STRUCTURE = build(CONFIG, Compute())
MESHES = {
    "one device": MeshConfig(data=1),
    "data=8": MeshConfig(data=8),
    "data=4 x tensor=2": MeshConfig(data=4, tensor=2),
    "fsdp=2 x data=4": MeshConfig(data=4, fsdp=2),
    "fsdp=2 x data=2 x tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def mesh_of(name):
    return make_mesh(MESHES[name], jax.devices()[:1] if name == "one device" else None)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: np.asarray(x) * 10, init_params(CONFIG, 0))


def placed(params, mesh):
    shardings = param_shardings(mesh, param_axes(CONFIG), param_shapes(CONFIG))
    return jax.device_put(params, shardings)


def batch_of_rows(rows=8, size=6):
    tokens = np.random.default_rng(0).integers(0, 40, (rows, size), np.int32)
    positions = np.broadcast_to(np.array([0, 1, 2, 0, 1, 2], np.int32), tokens.shape)
    segments = np.broadcast_to(np.array([1, 1, 1, 2, 2, 2], np.int32), tokens.shape)
    targets = np.broadcast_to(np.array([1, 4], np.int32), (rows, 2))
    weights = np.linspace(0, 1, rows * 2, dtype=np.float32).reshape(rows, 2)
    return Batch(tokens, positions, segments, targets, tokens[:, [2, 5]], weights)


@jax.jit
def logits_and_gradient(params, batch, prefix):
    module = STRUCTURE.merge(params)
    hidden = module.hidden_states(batch.tokens, batch.positions, batch.segment_ids)
    gradient = jax.grad(lambda p: loss_sums(STRUCTURE, p, batch, prefix).nll)(params)
    return module.logits(hidden), gradient


@pytest.fixture(scope="module")
def without_mesh(params):
    return logits_and_gradient(params, batch_of_rows(), jnp.array([3, 4, 5]))


@pytest.mark.parametrize("name", MESHES)
def test_meshes_agree_on_logits_and_gradients(name, params, without_mesh):
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch_of_rows(), row_sharding(mesh))
        logits, gradient = logits_and_gradient(placed(params, mesh), batch, jnp.array([3, 4, 5]))
    np.testing.assert_allclose(logits, without_mesh[0], rtol=1e-4, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (gradient, without_mesh[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", ["data=8", "fsdp=2 x data=2 x tensor=2"])
def test_meshes_agree_on_scores_and_generated_tokens(name, params):
    generator = np.random.default_rng(1)
    prompts = [generator.integers(2, 40, n).astype(np.int32) for n in (3, 20, 7)]
    questions = [Question(p, (p[:2], p[:1])) for p in prompts]
    greedy = Sampling(max_new_tokens=6)
    filtered = Sampling(
        max_new_tokens=6, temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.2
    )

    def results(params, mesh):
        tokens = [
            row
            for sampling in (greedy, filtered)
            for row in generate(STRUCTURE, params, prompts, sampling, stop_ids=[1], mesh=mesh)
        ]
        *_, streamed = generate_one(STRUCTURE, params, prompts[0], greedy, stop_ids=[1], mesh=mesh)
        return [*tokens, streamed], choice_log_likelihoods(STRUCTURE, params, questions, mesh=mesh)

    tokens, scores = results(params, None)
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        mesh_tokens, mesh_scores = results(placed(params, mesh), mesh)
    for a, b in zip(tokens, mesh_tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(scores, mesh_scores, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", ["data=8", "fsdp=2 x data=2 x tensor=2"])
def test_meshes_agree_on_prompts_with_a_common_beginning(name, params, monkeypatch):
    """It is computed once and read by the rows of all parts; caches are cut as the rows are."""
    generator = np.random.default_rng(2)
    common = generator.integers(2, 40, 40).astype(np.int32)
    prompts = [np.append(common, generator.integers(2, 40, n)).astype(np.int32) for n in (3, 9, 5)]
    questions = [Question(p, (p[:2], p[:1])) for p in prompts]
    greedy = Sampling(max_new_tokens=5)
    monkeypatch.setattr(batching, "DECODE_TOKENS", 0)  # else sharing so few rows is not worth it
    monkeypatch.setattr(batching, "DECODE_ROWS", 1)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 1)
    shared, cut, prefix, decode = [], [], batching._prefix_cache, generation._decode

    def watched_prefix(structure, params, tokens):
        shared.append(tokens.shape)
        return prefix(structure, params, tokens)

    def watched_decode(*args):
        state = decode(*args)
        cut.append(not state.cache.k.sharding.is_fully_replicated)
        return state

    monkeypatch.setattr(batching, "_prefix_cache", watched_prefix)
    monkeypatch.setattr(generation, "_decode", watched_decode)

    def results(params, mesh):
        tokens = generate(STRUCTURE, params, prompts, greedy, stop_ids=[1], mesh=mesh)
        return tokens, choice_log_likelihoods(STRUCTURE, params, questions, mesh=mesh)

    tokens, scores = results(params, None)
    assert (len(shared), any(cut)) == (2, False)
    cut.clear()
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        mesh_tokens, mesh_scores = results(placed(params, mesh), mesh)
    assert len(shared) == 4
    assert cut
    assert all(cut)
    for a, b in zip(tokens, mesh_tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(scores, mesh_scores, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_parameters_are_cut_along_their_axes(params):
    mesh = mesh_of("fsdp=2 x data=2 x tensor=2")
    tree = placed(params, mesh)

    def on_one_device(array):
        return array.addressable_shards[0].data.shape

    # [L, D, K, G + 2, H] with D over fsdp and K over tensor; norms are whole everywhere.
    assert on_one_device(tree["layers"]["attention"]["qkv"]) == (2, 8, 1, 4, 8)
    assert on_one_device(tree["layers"]["mlp"]["down"]) == (2, 12, 8)
    assert on_one_device(tree["embedding"]) == (20, 8)
    assert on_one_device(tree["final_norm"]) == (16,)


def test_the_cache_of_a_generation_is_cut_by_rows_and_heads(params, monkeypatch):
    """Each device keeps the keys and values of its own rows and heads, from prefill to the end."""
    mesh, seen, decode = mesh_of("fsdp=2 x data=2 x tensor=2"), [], generation._decode

    def parts(cache):
        """Into how many parts an array [L, B, K, S, H] is cut, axis by axis."""
        shard = cache.sharding.shard_shape(cache.shape)
        return tuple(whole // part for whole, part in zip(cache.shape, shard, strict=True))

    def watched(*args):
        seen.extend(map(parts, args[-2].cache))
        state = decode(*args)
        seen.extend(map(parts, state.cache))
        return state

    monkeypatch.setattr(generation, "_decode", watched)
    monkeypatch.setattr(generation, "MAX_ROOM", 8)
    monkeypatch.setattr(generation, "ROOM_STEP", 8)
    prompts = [np.arange(2, 8 + n, dtype=np.int32) for n in range(8)]
    with jax.set_mesh(mesh):
        generate(
            STRUCTURE, placed(params, mesh), prompts, Sampling(max_new_tokens=20), stop_ids=[1],
            mesh=mesh, ended=lambda tokens: False,
        )  # fmt: skip
    assert len(seen) > 4  # more than one call, with more room in between
    assert set(seen) == {(1, 4, 2, 1, 1)}


def test_activations_are_cut_by_rows_under_a_mesh(params):
    mesh = mesh_of("fsdp=2 x data=4")
    batch = batch_of_rows()
    with jax.set_mesh(mesh):
        # The rows come replicated, so only the constraint inside the model can cut them.
        hidden = jax.jit(lambda p, *rows: STRUCTURE.merge(p).hidden_states(*rows))(
            placed(params, mesh), batch.tokens, batch.positions, batch.segment_ids
        )
    assert hidden.addressable_shards[0].data.shape == (1, 6, 16)


def test_rows_that_do_not_divide_stay_whole():
    with jax.set_mesh(mesh_of("data=8")):
        cut, whole = (
            jax.jit(lambda x: constrain(x, "rows", None))(jnp.ones((n, 2))) for n in (8, 3)
        )
    assert cut.addressable_shards[0].data.shape == (1, 2)
    assert whole.addressable_shards[0].data.shape == (3, 2)


def test_constrain_leaves_arrays_alone_without_a_mesh():
    x = jnp.ones((3, 2))
    assert constrain(x, "rows", None) is x


def test_a_checkpoint_is_loaded_onto_the_mesh(tiny_llama):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    ids = np.arange(12).reshape(2, 6)
    with jax.set_mesh(mesh):
        model = load_pretrained(tiny_llama, mesh=mesh)
        logits = model.logits(ids)
    qkv = model.params["layers"]["attention"]["qkv"]
    assert qkv.addressable_shards[0].data.shape == (3, 16, 1, 4, 8)
    np.testing.assert_allclose(
        logits, load_pretrained(tiny_llama).logits(ids), rtol=1e-4, atol=1e-4
    )


def test_a_model_on_a_mesh_answers_and_streams_over_it(tiny_llama, monkeypatch):
    alone = load_pretrained(tiny_llama)
    assert alone.mesh is None
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    model = load_pretrained(tiny_llama, mesh=mesh)
    assert model.mesh == mesh
    prompts = ["Lamps?", "Who said so, and when?"]
    expected, meshes, place = alone.generate(prompts, max_new_tokens=6), [], generation.place_rows

    def seen(mesh, x):
        meshes.append(mesh)
        here = jax.sharding.get_abstract_mesh().axis_names  # what `constrain` asks
        assert here == (() if mesh is None else mesh.axis_names)
        return place(mesh, x)

    monkeypatch.setattr(generation, "place_rows", seen)
    assert model.generate(prompts, max_new_tokens=6) == expected
    asked = [{"role": "user", "content": prompts[0]}]
    pieces = list(model.stream(asked, max_new_tokens=6))
    assert set(meshes) == {mesh}
    assert not jax.sharding.get_abstract_mesh().axis_names
    assert "".join(pieces) == alone.reply(asked, max_new_tokens=6)


def test_a_model_saved_from_a_mesh_is_the_model_loaded_onto_it(tiny_llama, tmp_path):
    model = load_pretrained(tiny_llama, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    model.save_pretrained(tmp_path / "out")
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(tmp_path / "out").params,
        load_pretrained(tiny_llama).params,
    )


def test_minus_one_takes_the_remaining_devices():
    assert dict(make_mesh(MeshConfig(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert dict(make_mesh(MeshConfig(data=1, fsdp=-1)).shape)["fsdp"] == 8
    assert num_row_shards(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))) == 4


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 16}, {"tensor": 3}, {"data": 1}])
def test_sizes_that_do_not_fill_the_devices_are_refused(sizes):
    with pytest.raises(InputError, match=r"config\.mesh: .* does not fill 8 devices"):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("field", ["data", "fsdp", "tensor"])
@pytest.mark.parametrize("size", [0, -2])
def test_mesh_sizes_must_be_positive_or_minus_one(field, size):
    with pytest.raises(InputError, match=rf"config\.mesh\.{field}: .* got {size}"):
        MeshConfig(**{field: size})


def test_only_one_size_may_be_left_open():
    with pytest.raises(InputError, match="only one axis may be -1"):
        MeshConfig(data=-1, fsdp=-1)


@pytest.mark.parametrize(
    ("sizes", "changes", "parameter", "axis"),
    [
        ({"tensor": 4, "data": 2}, {}, "attention", "kv_heads=2"),
        ({"tensor": 2, "data": 4}, {"mlp_width": 21}, "mlp", "mlp=21"),
        ({"fsdp": 8, "data": 1}, {"width": 12}, "embed", "embed=12"),
        ({"tensor": 2, "data": 4}, {"vocab_size": 41}, "embedding", "vocab=41"),
    ],
)  # fmt: skip
def test_an_axis_that_does_not_divide_is_named_with_its_parameter(sizes, changes, parameter, axis):
    config = DecoderConfig(**{**vars(CONFIG), **changes})
    mesh = make_mesh(MeshConfig(**sizes))
    with pytest.raises(InputError, match=rf"config\.mesh: .*{parameter}.* has {axis}.*over"):
        param_shardings(mesh, param_axes(config), param_shapes(config))
