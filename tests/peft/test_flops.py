"""The count of FLOPs in a compiled step, and what it says of a LoRA step beside a full one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ift_jax.hf.families import LLAMA, weight_rows
from ift_jax.hf.weights import flat_paths
from ift_jax.models import decoder
from ift_jax.models.decoder import Compute, DecoderConfig
from ift_jax.peft.adapter import Adapter, separate
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import tensor_sites
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, init_state, make_step
from scripts import benchmark

CONFIG = DecoderConfig(
    vocab_size=64, width=256, mlp_width=768, num_layers=3, num_heads=4, num_kv_heads=2,
    head_size=64, rope_base=1e4, norm_epsilon=1e-5, tie_embeddings=True, max_positions=128,
)  # fmt: skip


def flops_of(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return benchmark("peft_step").matmul_flops(compiled.as_text())


def test_bodies_of_loops_count_as_often_as_they_run():
    x, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))

    def product(x, w):
        return x @ w

    def looped(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert flops_of(product, x, w[0]) == 2 * 8 * 16 * 16
    assert flops_of(looped, x, w) == 5 * flops_of(product, x, w[0])


@pytest.mark.parametrize(
    ("method", "remat", "bound"),
    [
        ("lora", "none", 0.75),
        ("lora", "dots", 0.75),
        ("lora", "full", 0.83),
        ("dora", "none", 0.75),
        ("dora", "dots", 0.75),
        ("dora", "full", 0.85),  # the norms of W + AB once more
    ],
)
def test_an_adapted_step_multiplies_less_than_a_full_one(method, remat, bound):
    """By what the gradient of the frozen weights costs: of a forward, a backward pass to the
    inputs and one to the weights, and a second forward one with full remat, one is spared. The
    rank is the share of the width that 16 is of SmolLM2's 576."""
    structure = decoder.build(CONFIG, Compute(remat=remat))
    weights = decoder.init_params(CONFIG, 0)
    shapes = {path: x.shape for path, x in flat_paths(decoder.param_shapes(CONFIG)).items()}
    axes = flat_paths(decoder.param_axes(CONFIG), lambda x: isinstance(x, tuple))
    sites = tensor_sites(weight_rows(LLAMA, CONFIG), shapes, axes)
    adapter = Adapter.of(PeftConfig(method=method, rank=7), sites, (3, 256, 2, 64))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    tokens = np.random.default_rng(0).integers(2, 64, (32, 64), np.int32)
    batch = benchmark("peft_step").batch_of(tokens, 8)

    def flops(structure, params):
        trained, base = separate(params)
        step = make_step(structure, optimizer)
        return flops_of(step, init_state(trained, optimizer), Constants(base), batch)

    adapted = flops(structure._replace(adapter=adapter), {**weights, **adapter.init(weights, 0)})
    assert 0.6 < adapted / flops(structure, weights) < bound
