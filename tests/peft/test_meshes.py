"""Every method on simulated meshes: the steps, and the tokens, of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_examples
from test_methods import CONFIGS, VIRTUAL
from torch_peft import shaken

from ift_jax.data.loader import Batches, RowSource
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.peft.adapter import separate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh, place_batch
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, make_step, place_state

LORA = PeftConfig(method="lora", rank=4, alpha=8.0)
METHODS = {
    **CONFIGS,
    **VIRTUAL,
    "lora": LORA,
    "pissa": PeftConfig(method="lora", rank=4, init="pissa", targets=("k_proj", "down_proj")),
    "rows": PeftConfig(
        method="lora", rank=4, targets=("q_proj",), token_rows=("v", "N"),
        modules_to_save=(r"model\.layers\.1\.mlp\.up_proj",),
    ),
    "nf4": LORA,
    "int8": PeftConfig(method="dora", rank=4),
}  # fmt: skip
STEPS = 3
ALONE = MeshConfig(data=1)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def on(config):
    return make_mesh(config, jax.devices()[:1] if config == ALONE else None)


def adapted(folder, name, mesh):
    """Away from its start, which a step could not be told from otherwise."""
    stored = {"quantize": name, "quantize_group": 16} if name in ("nf4", "int8") else {}
    base = load_pretrained(folder, mesh=mesh, **stored)
    return shaken(base.adapt(METHODS[name], seed=1), size=0.05)


def three_steps(folder, name, config):
    """Losses and trained arrays, behind a shared beginning; and whether any of these is cut."""
    mesh = on(config)
    with jax.set_mesh(mesh):
        model = adapted(folder, name, mesh)
        examples = random_examples(60, prefix=20)
        beginning = jnp.asarray(examples.common_prefix()[:20])
        batches = Batches(RowSource(examples, 48, seed=0, prefix=20), 8, 1)
        settings = OptimizerConfig(peak_lr=1e-3, warmup_steps=0, schedule="constant")
        optimizer = make_optimizer(settings, STEPS)
        trained, frozen = separate(model.params)
        cut = any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(trained))
        state = place_state(trained, optimizer, mesh)
        step = jax.jit(make_step(model.structure, optimizer, 1, beginning))
        losses = []
        for number in range(STEPS):
            batch = place_batch(batches[number % batches.num_steps], mesh)
            state, metrics = step(state, Constants(frozen), batch)
            losses.append(float(metrics.sums.nll))
    return losses, jax.tree.map(np.asarray, state.params), cut


@pytest.mark.parametrize("name", METHODS)
def test_a_mesh_takes_the_steps_of_one_device(tiny_llama, name):
    losses, arrays, _ = three_steps(tiny_llama, name, ALONE)
    mesh_losses, mesh_arrays, cut = three_steps(tiny_llama, name, MESH)
    np.testing.assert_allclose(mesh_losses, losses, rtol=1e-4)
    for x, y in zip(*map(jax.tree.leaves, (arrays, mesh_arrays)), strict=True):
        # Where a gradient is nearly zero, Adam turns its rounding into part of a step.
        assert np.isclose(y, x, rtol=1e-3, atol=1e-4).mean() > 0.98
        np.testing.assert_allclose(y, x, atol=2.1e-3 * STEPS)
    assert cut == (name != "norms")


@pytest.mark.parametrize(
    "name", ["lora", "dora", "vera", "ia3", "bottleneck", "prompt", "prefix", "nf4"]
)
def test_a_mesh_generates_the_tokens_of_one_device(tiny_llama, name):
    """Rows of unequal length, fewer than the mesh has parts for."""
    prompts = [np.arange(2, 2 + n, dtype=np.int32) for n in (5, 12)]
    found = []
    for config in (ALONE, MESH):
        mesh = on(config)
        with jax.set_mesh(mesh):
            model = adapted(tiny_llama, name, mesh)
            new = generate(model.structure, model.params, prompts, Sampling(max_new_tokens=8),
                           stop_ids=[1], mesh=mesh)  # fmt: skip
        found.append([tokens.tolist() for tokens in new])
    assert found[0] == found[1]
