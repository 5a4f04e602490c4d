import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from ift_jax.errors import InputError
from ift_jax.train.optimizer import OptimizerConfig, is_matrix, make_optimizer, make_schedule


def test_schedule_rises_then_falls_to_the_final_share():
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=4, schedule="cosine", final_share=0.1)
    schedule = make_schedule(config, 20)
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    np.testing.assert_allclose(rates[20], 0.1, rtol=1e-5)


def test_linear_and_constant_schedules():
    linear = make_schedule(OptimizerConfig(peak_lr=1.0, warmup_steps=0, schedule="linear"), 10)
    np.testing.assert_allclose([float(linear(s)) for s in (0, 5, 10)], [1.0, 0.5, 0.0], atol=1e-6)
    constant = make_schedule(OptimizerConfig(peak_lr=1.0, warmup_steps=0, schedule="constant"), 10)
    assert float(constant(0)) == float(constant(9)) == 1.0


def test_warmup_longer_than_the_run_does_not_break():
    schedule = make_schedule(OptimizerConfig(peak_lr=1.0, warmup_steps=100), 5)
    assert [float(schedule(s)) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_adamw_with_clipping_equals_torch():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    config = OptimizerConfig(
        peak_lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.1, clip_norm=1.0
    )
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.asarray(start)}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, eps=1e-8)
    for _ in range(5):
        gradient = rng.normal(size=(4, 3)).astype(np.float32) * 3
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
            params = {"w": params["w"] + updates["w"]}
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        reference.step()
        np.testing.assert_allclose(np.asarray(params["w"]), weight.detach().numpy(), atol=1e-5)


def test_norm_scales_are_not_decayed():
    tree = {"layers": {"attention_norm": 1, "mlp": {"down": 1}}, "final_norm": 1, "embedding": 1}
    assert is_matrix(tree) == {
        "layers": {"attention_norm": False, "mlp": {"down": True}},
        "final_norm": False,
        "embedding": True,
    }


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_weight_decay_is_the_learning_rate_times_the_weights(name):
    config = OptimizerConfig(
        name=name, peak_lr=0.1, warmup_steps=2, schedule="linear", weight_decay=0.3
    )
    optimizer, rate = make_optimizer(config, 6), make_schedule(config, 6)
    params = {"w": jnp.arange(1.0, 7).reshape(2, 3), "norm": jnp.ones(3)}
    state = optimizer.init(params)
    for step in range(5):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(updates["w"], -rate(step) * 0.3 * params["w"], rtol=1e-6)
        assert not updates["norm"].any()
        params = jax.tree.map(jnp.add, params, updates)


@pytest.mark.parametrize("name", ["adafactor", "sgd"])
def test_rules_without_decay_are_those_of_optax(name):
    config = OptimizerConfig(name=name, peak_lr=0.1, warmup_steps=0, clip_norm=0.0)
    schedule = make_schedule(config, 6)
    reference = {
        "adafactor": optax.adafactor(schedule, multiply_by_parameter_scale=False),
        "sgd": optax.sgd(schedule, momentum=0.9),
    }[name]
    optimizer = make_optimizer(config, 6)
    params = {"w": jnp.ones((200, 130)), "b": jnp.ones(3)}
    states = [one.init(params) for one in (optimizer, reference)]
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed))
        grads = {"w": jax.random.normal(keys[0], (200, 130)), "b": jax.random.normal(keys[1], 3)}
        with jax.numpy_dtype_promotion("standard"):
            mine, states[0] = optimizer.update(grads, states[0], params)
            theirs, states[1] = reference.update(grads, states[1], params)
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_every_optimizer_lowers_a_quadratic(name):
    optimizer = make_optimizer(OptimizerConfig(name=name, peak_lr=0.05, warmup_steps=0), 50)
    params = {"w": jnp.ones((4, 4))}
    state = optimizer.init(params)
    for _ in range(50):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(params, state, params)
            params = {"w": params["w"] + updates["w"]}
    assert float(jnp.abs(params["w"]).max()) < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "adam"), ("schedule", "cos"), ("peak_lr", -1.0), ("warmup_steps", -1)],
)
def test_wrong_values_name_the_field(field, value):
    with pytest.raises(InputError, match=rf"config\.optimizer\.{field}"):
        OptimizerConfig(**{field: value})
