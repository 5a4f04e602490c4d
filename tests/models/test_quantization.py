"""Quantized weights: values, memory, and that a model computes exactly with what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from batches import packed_batch, random_examples
from scipy.stats import norm

from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.hf.families import LLAMA
from ift_jax.hf.weights import flat_paths
from ift_jax.interpolation import interpolated
from ift_jax.models import decoder
from ift_jax.models.quantization import (
    NF4_LEVELS,
    Quantized,
    dense,
    quantize,
    quantized_shapes,
)
from ift_jax.peft.adapter import TRAINED, Adapter, combine, separate
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import tensor_sites
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh, row_sharding
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.run import train
from ift_jax.train.step import Constants, gradient_sums, init_state, make_step

KINDS = ("int8", "int4", "nf4")
RANDOM = np.random.default_rng(0)


def layer(stored, number=0):
    return jax.tree.map(lambda x: jnp.asarray(x[number]), stored)


def weights(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def test_nf4_levels_are_the_quantiles_of_the_paper():
    offset = 0.9677083  # of bitsandbytes: the mean of 1 - 1/32 and 1 - 1/30, appendix E
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, below, [0.0]]))
    np.testing.assert_allclose(NF4_LEVELS, levels / levels.max(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_qwix(kind):
    weight = weights(2, 96, 5)
    stored = quantize(weight, 1, kind, 32, "w")
    for number in range(2):
        theirs = qwix.quantize(
            jnp.asarray(weight[number]), kind if kind == "nf4" else jnp.dtype(kind),
            channelwise_axes=[1], tiled_axes={0: 32},
        )  # fmt: skip
        # A group's largest weight lies between qwix's two outermost integers, and rounding picks.
        groups = np.abs(weight[number]).reshape(3, 32, 5)
        inner = (groups < groups.max(1, keepdims=True)).reshape(96, 5)
        ours, other = (
            np.asarray(x)[inner]
            for x in (dense(layer(stored, number), "float32"), qwix.dequantize(theirs))
        )
        np.testing.assert_allclose(ours, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_at_most_half_a_step_of_the_group(kind):
    weight = weights(1, 128, 6)
    weight[0, 70, 2] = 1000.0  # an outlier costs only its own group
    weight[0, :64, 3] = 0.0
    restored = np.asarray(dense(layer(quantize(weight, 1, kind, 64, "w")), "float32"))
    steps = {"int8": 1 / 127.5, "int4": 1 / 7.5, "nf4": max(np.diff(NF4_LEVELS))}[kind]
    largest = np.abs(weight[0]).reshape(2, 64, 6).max(1, keepdims=True)
    error = np.abs(restored - weight[0]).reshape(2, 64, 6)
    assert (error <= largest * steps / 2 * (1 + 1e-4)).all()
    assert error[0, :, 2].max() < 1
    assert (restored[:64, 3] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_groups_go_on_over_several_input_axes(kind):
    weight = weights(2, 3, 4, 8, 10)  # 96 inputs in groups of 16, two head sizes each
    flat = quantize(weight.reshape(2, 96, 10), 1, kind, 16, "w")
    stored = quantize(weight, 3, kind, 16, "w")
    np.testing.assert_array_equal(
        dense(layer(stored, 1), "float32"),
        dense(layer(flat, 1), "float32").reshape(3, 4, 8, 10),
    )


def test_four_bits_take_half_a_byte_on_the_device():
    weight = weights(2, 128, 64)
    for kind, bits in (("int8", 8.5), ("int4", 4.5), ("nf4", 4.5)):
        stored = jax.tree.map(jnp.asarray, quantize(weight, 1, kind, 64, "w"))
        arrays = jax.tree.leaves(stored)
        assert sum(x.on_device_size_in_bytes() for x in arrays) * 8 == bits * weight.size
        assert sum(x.nbytes for x in arrays) * 8 == bits * weight.size


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"quantize_group=64: attention\.out has 96 inputs"):
        quantize(weights(1, 3, 32, 4), 2, "int8", 64, "attention.out")
    with pytest.raises(InputError, match="both must be even"):
        quantize(weights(1, 9, 4), 1, "nf4", 3, "w")


@pytest.fixture(scope="module")
def quantized(tiny_llama):
    """The tiny model per kind, with its dequantized twin loaded from what it saved."""

    def pair(kind, folder, **options):
        model = load_pretrained(tiny_llama, quantize=kind, quantize_group=16, **options)
        model.save_pretrained(folder)
        return model, load_pretrained(folder, **options)

    return pair


IDS = RANDOM.integers(0, 258, (2, 7))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_computes_with_the_dequantized_weights(
    quantized, tiny_llama, tmp_path, kind, dtype
):
    model, twin = quantized(kind, tmp_path / "m", dtype=dtype)
    logits = np.asarray(model.logits(IDS))
    np.testing.assert_array_equal(logits, twin.logits(IDS))
    away = np.abs(logits - load_pretrained(tiny_llama, dtype=dtype).logits(IDS)).max()
    assert away > {"int8": 1e-3, "int4": 0.05, "nf4": 0.05}[kind]  # it is quantized at all
    held = {path for path, x in _leaves(model.params) if isinstance(x, Quantized)}
    assert held == {"attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"}


def _leaves(params):
    for part in ("attention", "mlp"):
        for name, leaf in params["layers"][part].items():
            yield f"{part}.{name}", leaf


def test_generation_and_saving_work_on_quantized_weights(quantized, tmp_path):
    model, twin = quantized("nf4", tmp_path / "m")
    prompts = ["Hello", "What is it?"]
    assert model.generate(prompts, max_new_tokens=8) == twin.generate(prompts, max_new_tokens=8)
    assert repr(model) == repr(twin)  # counts weights, not bytes


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=4, data=2), MeshConfig(tensor=2, fsdp=2, data=2)], ids=str
)
def test_codes_are_cut_over_the_mesh_as_the_weights_are(tiny_llama, mesh):
    mesh = make_mesh(mesh)
    one = load_pretrained(tiny_llama, quantize="nf4", quantize_group=16)
    with jax.set_mesh(mesh):
        model = load_pretrained(tiny_llama, quantize="nf4", quantize_group=16, mesh=mesh)
        logits = np.asarray(model.logits(IDS))
    np.testing.assert_allclose(logits, one.logits(IDS), atol=2e-5)
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for path, leaf in _leaves(model.params):
        local = leaf.codes.addressable_shards[0].data.nbytes
        assert local * parts == leaf.codes.nbytes, path
    # qkv has 32 inputs in 2 groups: they follow where they divide, and are whole where not.
    cut = model.params["layers"]["attention"]["qkv"].scales.sharding.spec[1]
    assert cut == ("fsdp" if mesh.shape["fsdp"] == 2 else None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_the_gradient_that_it_has_on_the_dequantized_weights(
    quantized, tmp_path, kind, dtype
):
    batch = packed_batch(random_examples(20))
    found = []
    for model in quantized(kind, tmp_path / "m", dtype=dtype):
        adapted = model.adapt(PeftConfig(method="lora", rank=2))
        trained, base = separate(adapted.params)
        shaken = jax.tree.map(lambda x: x + 0.02, trained)
        sums = jax.jit(gradient_sums, static_argnums=0)
        found.append(sums(adapted.structure, shaken, Constants(base), batch))
    near = 1e-4 if dtype == "float32" else 1e-2
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=near, atol=near * float(jnp.abs(y).max()))


def test_an_adapter_beside_codes_has_its_gradient_on_a_mesh(tiny_llama):
    batch = packed_batch(random_examples(40))

    def gradient(mesh, batch):
        base = load_pretrained(tiny_llama, quantize="nf4", quantize_group=16, mesh=mesh)
        model = base.adapt(PeftConfig(method="lora", rank=2))
        trained, frozen = separate(model.params)
        shaken = jax.tree.map(lambda x: x + 0.02, trained)
        sums = jax.jit(gradient_sums, static_argnums=0)
        return sums(model.structure, shaken, Constants(frozen), batch)[0]

    alone = gradient(None, batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        meshed = gradient(mesh, jax.device_put(batch, row_sharding(mesh)))
    for x, y in zip(*map(jax.tree.leaves, (alone, meshed)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=3e-4 * float(jnp.abs(x).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_beside_codes_is_lowered_for_every_platform(tiny_llama, kind):
    base = load_pretrained(tiny_llama, quantize=kind, quantize_group=16, dtype="bfloat16")
    model = base.adapt(PeftConfig(method="lora", rank=2))
    trained, frozen = separate(model.params)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = jax.jit(make_step(model.structure, optimizer))
    platforms = ("cpu", "cuda", "rocm", "tpu")
    batch = packed_batch(random_examples(8))
    state = init_state(trained, optimizer)
    lowered = step.trace(state, Constants(frozen), batch).lower(lowering_platforms=platforms)
    assert "stablehlo.dot_general" in lowered.as_text()


@pytest.mark.parametrize("init", ["b_zero", "pissa"])
def test_merging_an_adapter_gives_the_logits_that_it_had_beside_the_codes(tiny_llama, init):
    model = load_pretrained(tiny_llama, quantize="int4", quantize_group=16)
    adapted = model.adapt(PeftConfig(method="lora", rank=2, init=init))
    start = np.asarray(model.logits(IDS))
    np.testing.assert_allclose(adapted.logits(IDS), start, atol=2e-4)
    trained, base = separate(adapted.params)
    adapted = adapted.with_params(combine(jax.tree.map(lambda x: x + 0.05, trained), base))
    logits = np.asarray(adapted.logits(IDS))
    np.testing.assert_allclose(adapted.merged().logits(IDS), logits, atol=3e-4)
    np.testing.assert_allclose(interpolated(model, adapted, 0.0).logits(IDS), start, atol=2e-4)
    assert np.abs(logits - start).max() > 0.1


def test_full_tuning_of_quantized_weights_is_refused(tiny_llama, tmp_path):
    config = build_run_config({"model": {"path": str(tiny_llama), "quantize": "nf4"}})
    with pytest.raises(InputError, match=r"quantize=nf4: full tuning .* set config\.peft\.method"):
        train(config, tmp_path / "w")
    with pytest.raises(InputError, match="expected one of none, int8, int4, nf4, got 'fp4'"):
        build_run_config({"model": {"quantize": "fp4"}})
    with pytest.raises(InputError, match="quantize_group: expected 1 or more, got 0"):
        load_pretrained(tiny_llama, quantize_group=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_has_the_memory_of_one_on_float_weights_less_the_weights(dtype):
    """Remat "none" keeps what the backward pass reads; dequantized weights are not among it."""
    config = decoder.DecoderConfig(
        vocab_size=16, width=64, mlp_width=256, num_layers=8, num_heads=4, num_kv_heads=4,
        head_size=16, rope_base=1e4, norm_epsilon=1e-5, tie_embeddings=True, max_positions=16,
    )  # fmt: skip
    shapes = decoder.param_shapes(config)
    flat = {path: x.shape for path, x in flat_paths(shapes).items()}
    axes = flat_paths(decoder.param_axes(config), lambda x: isinstance(x, tuple))
    tensors = tensor_sites(LLAMA.rows, flat, axes)
    adapter = Adapter.of(PeftConfig(method="lora", rank=2), tensors, (8, 64, 4, 16))
    structure = decoder.build(config, decoder.Compute(dtype=dtype, remat="none"))._replace(
        adapter=adapter
    )
    ones = jnp.ones((1, 96), jnp.int32)

    def bytes_of(params):
        def loss(trained, base):
            hidden = structure.merge(combine(trained, base)).hidden_states(ones, ones, ones)
            return jnp.sum(jnp.square(hidden))

        compiled = jax.jit(jax.grad(loss)).lower(adapter.shapes()[TRAINED], params).compile()
        memory = compiled.memory_analysis()
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes

    arguments, temporary = bytes_of(shapes)
    in_axes = {row.path: row.in_axes for row in LLAMA.rows if row.in_axes}
    stored = jax.tree.map(lambda x: x, shapes)
    for path, count in in_axes.items():
        *_, group, name = path.split(".")
        whole = stored["layers"][group][name]
        stored["layers"][group][name] = quantized_shapes(whole, count, "nf4", 64, path)
    quantized_arguments, quantized_temporary = bytes_of(stored)
    weights = 8 * (4 * 64 * 64 + 3 * 64 * 256)
    assert arguments - quantized_arguments == weights * (4 - 4.5 / 8)
    one_layer = 4 * weights / 8
    assert abs(quantized_temporary - temporary) < one_layer / 4
