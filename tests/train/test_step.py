import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import packed_batch, random_examples

from ift_jax.data.loader import Batches, RowSource
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh, row_sharding
from ift_jax.train.loss import loss_sums
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, gradient_sums, init_state, make_step, place_state


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def batch():
    return packed_batch(random_examples(40))


ALL_TRAINED = Constants({})
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=2, clip_norm=1.0), 10)


def run(model, batches, *, micro_batches=1, mesh=None, optimizer=OPTIMIZER):
    """Parameters and metrics after a few steps."""
    step = jax.jit(make_step(model.structure, optimizer, micro_batches))
    metrics = []
    if mesh is None:
        state = init_state(model.params, optimizer)
    else:
        params = jax.device_put(model.params, mesh[1])
        state = place_state(jax.tree.map(jnp.copy, params), optimizer, mesh[0])
    for batch in batches:
        placed = batch if mesh is None else jax.device_put(batch, row_sharding(mesh[0]))
        state, out = step(state, ALL_TRAINED, placed)
        metrics.append(float(out.sums.nll))
    return state, metrics


def assert_close(a, b, atol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_give_the_gradient_of_one_batch(model, batch, parts):
    whole, whole_sums = gradient_sums(model.structure, model.params, ALL_TRAINED, batch)
    cut, cut_sums = gradient_sums(model.structure, model.params, ALL_TRAINED, batch, parts)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole))
    assert_close(whole, cut, atol=1e-5 * scale)
    assert_close(whole_sums, cut_sums, atol=1e-3)


def test_micro_batches_with_unequal_target_counts_are_not_averaged(model, batch):
    weights = np.array(batch.weights)
    weights[: len(weights) // 2, 1:] = 0.0  # the halves now hold very different numbers
    uneven = batch._replace(weights=weights)
    whole, _ = run(model, [uneven])
    cut, _ = run(model, [uneven], micro_batches=2)
    assert_close(whole.params, cut.params)


def test_accumulation_is_float32_for_bfloat16_parameters(model, batch):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), model.params)
    gradients, _ = gradient_sums(model.structure, params, ALL_TRAINED, batch, 4)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_a_batch_of_padding_changes_nothing(model, batch):
    empty = batch._replace(
        segment_ids=np.zeros_like(batch.segment_ids), weights=np.zeros_like(batch.weights)
    )
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    state, _ = run(model, [empty], optimizer=optimizer)
    assert_close(state.params, model.params, atol=0)


def test_one_sgd_step_subtracts_the_mean_gradient(model, batch):
    optimizer = make_optimizer(
        OptimizerConfig(
            name="sgd", b1=0.0, peak_lr=0.1, warmup_steps=0, schedule="constant", clip_norm=0.0
        ),
        10,
    )
    state, _ = run(model, [batch], optimizer=optimizer)
    mean = jax.grad(lambda p: (lambda s: s.nll / s.weight)(loss_sums(model.structure, p, batch)))(
        model.params
    )
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, model.params, mean)
    assert_close(state.params, expected, atol=1e-6)


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 4}, {"fsdp": 8, "data": 1}]
)
def test_meshes_agree_with_one_device(model, batch, sizes):
    from ift_jax.models.decoder import param_axes
    from ift_jax.sharding import param_shardings

    alone, losses = run(model, [batch] * 3)
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        placed = param_shardings(mesh, param_axes(model.structure.config), model.params)
        meshed, mesh_losses = run(model, [batch] * 3, mesh=(mesh, placed))
    np.testing.assert_allclose(losses, mesh_losses, rtol=1e-4)
    assert_close(alone.params, meshed.params, atol=2e-4)
    moments = [
        (path, x.sharding)
        for path, x in jax.tree_util.tree_leaves_with_path(meshed.opt_state)
        if getattr(x, "ndim", 0) > 1
    ]
    assert any(not s.is_fully_replicated for _, s in moments) == (
        sizes.get("fsdp", 1) > 1 or sizes.get("tensor", 1) > 1
    )


def test_the_step_compiles_once_in_a_run(model):
    batches = Batches(RowSource(random_examples(60), 48, seed=0), 4, 3)
    step = jax.jit(make_step(model.structure, OPTIMIZER), donate_argnums=0)
    state = init_state(jax.tree.map(jnp.copy, model.params), OPTIMIZER)
    for number in range(batches.num_steps):  # the last batches hold padding
        state, _ = step(state, ALL_TRAINED, batches[number])
    assert batches.num_steps > 5
    assert step._cache_size() == 1


def test_the_step_is_callable_with_shapes_only(model, batch):
    state = jax.eval_shape(lambda p: init_state(p, OPTIMIZER), model.params)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    new, metrics = jax.eval_shape(make_step(model.structure, OPTIMIZER), state, ALL_TRAINED, shapes)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert metrics.sums.nll.shape == ()


def test_dtypes_are_stable_after_an_update(model, batch):
    for dtype in ("float32", "bfloat16"):
        params = jax.tree.map(lambda p, d=dtype: p.astype(d), model.params)
        state, _ = run(model.with_params(params), [batch] * 2)
        assert {p.dtype for p in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}


def test_gradient_norm_is_that_before_clipping(model, batch):
    step = jax.jit(make_step(model.structure, OPTIMIZER))
    _, metrics = step(init_state(model.params, OPTIMIZER), ALL_TRAINED, batch)
    gradients, sums = gradient_sums(model.structure, model.params, ALL_TRAINED, batch)
    norm = optax.tree.norm(jax.tree.map(lambda g: g / sums.weight, gradients))
    np.testing.assert_allclose(float(metrics.gradient_norm), float(norm), rtol=1e-4)
    assert float(norm) > 1.0  # so clipping was at work
