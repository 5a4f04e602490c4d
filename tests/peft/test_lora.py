"""LoRA: equal to the base at its start, to peft after it, and to its merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import packed_batch, random_examples
from jaxprs import made_shapes
from peft import LoraConfig
from torch_peft import (
    IDS,
    assert_parity,
    in_bfloat16,
    lora_tensors,
    loraplus_groups,
    shaken,
    torch_peft,
)

from ift_jax.batch import Batch
from ift_jax.errors import InputError
from ift_jax.peft.adapter import combine, separate
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.method import many_rows
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh, param_shardings, row_sharding
from ift_jax.train.loss import loss_sums
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, gradient_sums, init_state, make_step, place_state

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=0), 10)


def lora(**fields):
    return PeftConfig(**{"method": "lora", "rank": 4, "alpha": 8.0, **fields})


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def adapted(base):
    return shaken(base.adapt(lora()))


@pytest.fixture(scope="module")
def batch():
    return packed_batch(random_examples(40))


@pytest.mark.parametrize("init", ["b_zero", "a_zero"])
def test_the_start_is_the_base_bit_for_bit(base, init):
    model = base.adapt(lora(init=init), seed=3)
    np.testing.assert_array_equal(model.logits(IDS), base.logits(IDS))
    pairs = model.params["adapter"]["layers"]
    zero, random = ("b", "a") if init == "b_zero" else ("a", "b")
    for pair in pairs.values():
        assert not pair[zero].any()
        # As peft draws A: Kaiming-uniform with a slope of the root of 5.
        fan_in = np.prod(pair["a"].shape[1:-1]) if random == "a" else 4
        assert 0.95 < float(jnp.abs(pair[random]).max()) * fan_in**0.5 <= 1
    assert not np.allclose(pairs["mlp.gate_proj"][random], pairs["mlp.up_proj"][random])
    other = base.adapt(lora(init=init), seed=4).params["adapter"]["layers"]
    assert not np.allclose(pairs["mlp.up_proj"][random], other["mlp.up_proj"][random])


def test_pissa_starts_at_the_base_with_the_strongest_directions(base):
    model = base.adapt(lora(init="pissa"))
    np.testing.assert_allclose(model.logits(IDS), base.logits(IDS), atol=2e-4)
    pair = model.params["adapter"]["layers"]["self_attn.k_proj"]
    weight = np.asarray(base.params["layers"]["attention"]["qkv"])[1][:, :, -2].reshape(32, 16)
    u, s, vt = np.linalg.svd(weight)
    product = 2.0 * np.asarray(pair["a"][1]) @ np.asarray(pair["b"][1]).reshape(4, 16)
    np.testing.assert_allclose(product, u[:, :4] * s[:4] @ vt[:4], atol=1e-5)


def test_pissa_needs_as_many_directions_as_its_rank(base):
    whole = {"method": "lora", "init": "pissa", "targets": ("k_proj",)}
    base.adapt(PeftConfig(**whole, rank=16))
    with pytest.raises(InputError, match=r"config\.peft\.rank=17: .*k_proj, 32 inputs by 16 outp"):
        base.adapt(PeftConfig(**whole, rank=17))


def test_pissa_trains_as_lora_beside_what_is_left_of_the_weights(base, batch):
    """The reference takes the start out of the weights themselves, as the paper does."""
    model = shaken(base.adapt(lora(init="pissa")))
    trained, constants = separate(model.params)
    start = {"layers": constants["adapter_frozen"]["layers"]}
    whole = base.adapt(lora())
    negative = jax.tree.map(lambda x: x, start)
    for pair in negative["layers"].values():
        pair["a"] = -pair["a"]
    residual = whole.with_params(combine(negative, whole.merged().params)).merged()
    plain = residual.adapt(lora())
    expected, _ = gradient_sums(plain.structure, trained, Constants(residual.params), batch)
    found, _ = gradient_sums(model.structure, trained, Constants(constants), batch)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3 * float(jnp.abs(y).max()))
    np.testing.assert_allclose(model.merged().logits(IDS), model.logits(IDS), atol=5e-4)


def test_merged_weights_equal_the_adapter(adapted, base):
    logits = adapted.logits(IDS)
    np.testing.assert_allclose(adapted.merged().logits(IDS), logits, atol=2e-4)
    assert float(jnp.abs(logits - base.logits(IDS)).max()) > 0.1
    assert adapted.merged().structure.adapter is None


def test_equals_peft(base, tiny_llama):
    model = shaken(base.adapt(lora()))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR)
    assert_parity(model, torch_peft(tiny_llama, config), lora_tensors(model))


def test_some_layers_and_root_scaling_equal_peft(base, tiny_llama):
    model = shaken(base.adapt(lora(targets=("q_proj", "v_proj", "mlp.down_proj"), layers=(0, 2),
                                   rank_scaling="sqrt")))  # fmt: skip
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
        layers_to_transform=[0, 2], use_rslora=True,
    )  # fmt: skip
    assert_parity(model, torch_peft(tiny_llama, config), lora_tensors(model))


def test_pissa_equals_peft(base, tiny_llama):
    """peft takes the start out of the base's weights; here it stands beside them."""
    model = shaken(base.adapt(lora(init="pissa")))
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR, init_lora_weights="pissa"
    )  # fmt: skip
    assert_parity(model, torch_peft(tiny_llama, config), lora_tensors(model))


def test_a_faster_b_equals_peft_with_two_groups(base, tiny_llama):
    model = shaken(base.adapt(lora(targets=("o_proj", "up_proj"), b_lr_ratio=2.0)))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj", "up_proj"])
    assert_parity(
        model, torch_peft(tiny_llama, config), lora_tensors(model), groups=loraplus_groups,
        b_lr_ratio=2.0,
    )  # fmt: skip


@pytest.mark.parametrize("rows", ["many", "few"])
def test_both_ways_of_computing_have_the_gradients_of_the_merged_weights(adapted, rows):
    """Many rows multiply with W + AB, few have A B beside W; see `lora.linear`."""
    batch = packed_batch(random_examples(40), 32, 8)
    if rows == "few":  # one short example
        tokens, places = np.arange(40, 48, dtype=np.int32)[None], np.array([[3, 4, 5, 6]], np.int32)
        batch = Batch(
            tokens, np.arange(8, dtype=np.int32)[None], np.ones_like(tokens), places,
            tokens[:, 4:], np.ones((1, 4), np.float32),
        )  # fmt: skip
    trained, base = separate(adapted.params)
    for path in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"):
        part, name = path.split(".")
        weight = base["layers"][part][name][0]
        num_in = weight.ndim - 1 if name in ("out", "down") else 1
        x = jnp.zeros((*batch.tokens.shape, *weight.shape[:num_in]))
        assert many_rows(x, weight, num_in) == (rows == "many"), path

    def reference(trained):
        merged = adapted.with_params(combine(trained, base)).merged()
        return loss_sums(merged.structure, merged.params, batch).nll

    found, sums = gradient_sums(adapted.structure, trained, Constants(base), batch)
    assert float(sums.weight) > 0
    for x, y in zip(*map(jax.tree.leaves, (found, jax.grad(reference)(trained))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * float(jnp.abs(y).max()))


def test_with_dropout_the_gradient_is_that_of_what_was_drawn(base, batch):
    """Against differences of the loss along a direction, with the same draws."""
    model = shaken(base.adapt(lora(dropout=0.5)))
    trained, frozen = separate(model.params)
    key = jax.random.key(7)
    sums = jax.jit(
        lambda trained: gradient_sums(
            model.structure, trained, Constants(frozen), batch, 1, None, key
        )
    )
    gradient, _ = sums(trained)
    for name in ("a", "b"):
        way = jax.tree_util.tree_map_with_path(
            lambda path, x, name=name: (
                jnp.sin(jnp.arange(x.size)).reshape(x.shape) * float(path[-1].key == name)
            ),
            trained,
        )
        slope = sum(
            float(jnp.vdot(g, w))
            for g, w in zip(*map(jax.tree.leaves, (gradient, way)), strict=True)
        )
        step = 2e-3
        ends = [
            float(sums(jax.tree.map(lambda x, w, s=s: x + s * w, trained, way))[1].nll)
            for s in (step, -step)
        ]
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02)
        assert abs(slope) > 1


def test_dropout_is_on_in_training_only_and_keyed_by_seed_step_and_micro_batch(base, batch):
    model = shaken(base.adapt(lora(dropout=0.5)))
    trained, frozen = separate(model.params)
    off = shaken(base.adapt(lora()))
    np.testing.assert_array_equal(model.logits(IDS), off.logits(IDS))

    @jax.jit
    def drawn(key, batch):
        return loss_sums(model.structure, model.params, batch, None, key).nll

    without = float(loss_sums(off.structure, off.params, batch).nll)
    draws = [float(drawn(jax.random.key(n), batch)) for n in range(12)]
    assert draws[0] == float(drawn(jax.random.key(0), batch))
    assert len({*draws, without}) == 13
    assert abs(np.mean(draws) - without) < 0.3 * without
    # Row i goes to part i % 2, and each part has a key of its own.
    key = jax.random.key(0)
    whole = gradient_sums(model.structure, trained, Constants(frozen), batch, 2, None, key)[1].nll
    parts = [
        float(drawn(jax.random.fold_in(key, n), jax.tree.map(lambda x, n=n: x[n::2], batch)))
        for n in range(2)
    ]
    assert float(whole) == pytest.approx(sum(parts), rel=1e-5)

    def losses(seed):
        """Of two steps that change nothing, on one batch."""
        still = make_optimizer(OptimizerConfig(peak_lr=0.0, warmup_steps=0), 10)
        step = jax.jit(make_step(model.structure, still, seed=seed))
        state, found = init_state(trained, still), []
        for _ in range(2):
            state, metrics = step(state, Constants(frozen), batch)
            found.append(float(metrics.sums.nll))
        return found

    assert len({*losses(0), *losses(1)}) == 4
    assert losses(0) == losses(0)


def test_only_the_adapter_is_trained_and_has_moments(adapted, batch):
    trained, base = separate(adapted.params)
    state = init_state(trained, OPTIMIZER)
    step = jax.jit(make_step(adapted.structure, OPTIMIZER), donate_argnums=0)
    count = sum(x.size for x in jax.tree.leaves(trained))
    state, _ = step(jax.tree.map(jnp.copy, state), Constants(base), batch)
    assert jax.tree.structure(state.params) == jax.tree.structure(trained)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * count + 2
    # Donating the state leaves the frozen weights alone.
    assert not any(x.is_deleted() for x in jax.tree.leaves(base))
    assert all(float(jnp.abs(x - y).max()) > 0 for x, y in
               zip(*map(jax.tree.leaves, (trained, state.params)), strict=True))  # fmt: skip


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(
    ("dropout", "dtype"), [(0.0, "float32"), (0.1, "float32"), (0.0, "bfloat16")]
)
def test_the_step_holds_no_gradient_of_a_frozen_weight(tiny_llama, remat, dropout, dtype):
    """In its jaxpr no array but the weights themselves has the shape of all layers' weights,
    in any dtype, and no multiply gives the shape of one layer's but the product AB itself."""
    base = load_pretrained(tiny_llama, remat=remat, dtype=dtype)
    model = base.adapt(lora(dropout=dropout))
    trained, frozen = separate(model.params)
    batch = packed_batch(random_examples(40))
    state = init_state(trained, OPTIMIZER)
    step = make_step(model.structure, OPTIMIZER)
    stacked, single = made_shapes(jax.make_jaxpr(step)(state, Constants(frozen), batch))
    weights = {x.shape for x in jax.tree.leaves(frozen["layers"]) if x.ndim > 2}
    assert not stacked & weights
    assert not single & {shape[1:] for shape in weights}
    # In another dtype the embedding is cast once, for the output projection.
    assert (258, 32) not in (stacked | single if dtype == "float32" else single)
    # The check sees such gradients where they are: in full tuning.
    full = make_step(base.structure, OPTIMIZER)
    everything = init_state(base.params, OPTIMIZER)
    stacked, single = made_shapes(jax.make_jaxpr(full)(everything, Constants({}), batch))
    assert weights <= stacked
    assert {shape[1:] for shape in weights} <= single


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_remat_stores_is_not_computed_again(tiny_llama, batch, method):
    """A layer's products; beyond them "dots" computes the two of attention, as in full tuning."""

    def products(remat):
        model = load_pretrained(tiny_llama, remat=remat).adapt(lora(method=method))
        trained, frozen = separate(model.params)
        step = make_step(model.structure, OPTIMIZER)
        traced = jax.make_jaxpr(step)(init_state(trained, OPTIMIZER), Constants(frozen), batch)
        return str(traced).count("dot_general")

    none, dots, full = map(products, ("none", "dots", "full"))
    assert dots - none <= 2
    assert full - dots >= 4


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 4, "tensor": 2}])
def test_meshes_agree_with_one_device(base, adapted, batch, sizes):
    from ift_jax.models.decoder import param_axes

    def run(trained, constants, batch, mesh=None):
        state = place_state(trained, OPTIMIZER, mesh) if mesh else init_state(trained, OPTIMIZER)
        step = jax.jit(make_step(adapted.structure, OPTIMIZER))
        for _ in range(2):
            state, metrics = step(state, constants, batch)
        return state, float(metrics.sums.nll)

    trained, frozen = separate(adapted.params)
    alone, loss = run(trained, Constants(frozen), batch)
    mesh = make_mesh(MeshConfig(**sizes))
    adapter = adapted.structure.adapter
    with jax.set_mesh(mesh):
        weights = param_shardings(mesh, param_axes(base.structure.config), base.params)
        where = param_shardings(mesh, adapter.axes()["adapter"], trained)
        state, mesh_loss = run(
            jax.tree.map(jnp.copy, jax.device_put(trained, where)),
            Constants(jax.device_put(frozen, weights)),
            jax.device_put(batch, row_sharding(mesh)),
            mesh,
        )
    np.testing.assert_allclose(loss, mesh_loss, rtol=1e-4)
    for x, y in zip(*map(jax.tree.leaves, (alone.params, state.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-4)
    cut = state.params["layers"]["self_attn.q_proj"]["b"].sharding
    assert cut.is_fully_replicated == (sizes.get("tensor", 1) == 1)


def test_bfloat16_sees_changes_too_small_for_the_sum(base):
    """W + AB would round them away; A and B themselves stay in float32."""
    model = in_bfloat16(base).adapt(lora())
    trained, frozen = separate(model.params)
    small = jax.tree.map(lambda x: x, trained)
    for pair in small["layers"].values():
        pair["b"] = pair["b"] + 1e-4
    change = model.with_params(combine(small, frozen)).logits(IDS) - model.logits(IDS)
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert float(jnp.abs(change).max()) > 0


def test_an_exported_adapter_is_merged(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "out")
    np.testing.assert_allclose(
        load_pretrained(tmp_path / "out").logits(IDS), adapted.logits(IDS), atol=2e-4
    )


def test_a_second_adapter_is_refused(adapted):
    with pytest.raises(InputError, match="has an adapter already"):
        adapted.adapt(lora())
