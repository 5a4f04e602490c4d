"""The same adapter in the PEFT library on torch: what logits, gradients and steps must equal."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from batches import random_examples, unpacked_batch
from torch_reference import torch_logits, torch_model

from ift_jax.batch import Batch
from ift_jax.language_model import LanguageModel
from ift_jax.models.decoder import Compute, build
from ift_jax.peft.adapter import combine, separate
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, gradient_sums, init_state, make_step

IDS = np.random.default_rng(0).integers(2, 258, (2, 12))
RATE, STEPS = 1e-2, 3


def shaken(model: LanguageModel, seed: int = 1, size: float = 0.1) -> LanguageModel:
    """The model with an adapter that is no longer at its start."""
    trained, base = separate(model.params)
    leaves, tree = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model.with_params(combine(jax.tree.unflatten(tree, moved), base))


def in_bfloat16(base: LanguageModel) -> LanguageModel:
    """The model with weights in bfloat16, computing in bfloat16."""
    params = jax.tree.map(lambda p: p.astype("bfloat16"), base.params)
    structure = build(base.structure.config, Compute(dtype="bfloat16"))
    return dataclasses.replace(base, structure=structure, params=params)


def torch_peft(folder: Path, config: Any) -> Any:
    """The folder's model with a fresh adapter."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(torch_model(folder), config).eval()


def _filled(model: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The model with these tensors, which must be all that it trains."""
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(wanted) == set(tensors)
    with torch.no_grad():
        for name, parameter in wanted.items():
            assert tuple(parameter.shape) == tensors[name].shape
            parameter.copy_(torch.tensor(tensors[name]))
    return model


class Ours(NamedTuple):
    """What our side computes: all as torch tensors' names to arrays."""

    gradients: dict[str, np.ndarray]
    losses: list[float]
    after: dict[str, np.ndarray]


def our_training(model: LanguageModel, batch: Batch, to_torch: Any, **changes: Any) -> Ours:
    """Mean gradient at the start, losses of three AdamW steps, and the arrays after them."""
    optimizer = make_optimizer(
        OptimizerConfig(peak_lr=RATE, warmup_steps=0, schedule="constant", clip_norm=0.0),
        STEPS,
        **changes,
    )
    trained, base = separate(model.params)
    sums_of = jax.jit(lambda t: gradient_sums(model.structure, t, Constants(base), batch))
    gradients, sums = sums_of(trained)
    step = jax.jit(make_step(model.structure, optimizer))
    state, losses = init_state(trained, optimizer), []
    for _ in range(STEPS):
        state, metrics = step(state, Constants(base), batch)
        losses.append(float(metrics.sums.nll / metrics.sums.weight))
    mean = jax.tree.map(lambda g: g / sums.weight, gradients)
    return Ours(to_torch(mean), losses, to_torch(state.params))


def assert_parity(
    model: LanguageModel, reference: Any, to_torch: Any, *, groups: Any = None, cut: int = 0,
    **changes: Any,
) -> None:  # fmt: skip
    """Logits, gradients and three optimizer steps equal those of a torch model.

    Args:
        reference: the torch model, of which exactly what we train requires a gradient.
        to_torch: from a tree like the trained one to its tensors by name.
        groups: the optimizer's parameter groups from the torch model; default: one.
        cut: logits of virtual positions that peft puts in front.
        changes: arguments of `make_optimizer`.
    """
    reference = _filled(reference, to_torch(separate(model.params)[0]))
    np.testing.assert_allclose(
        model.logits(IDS), torch_logits(reference, IDS)[:, cut:], rtol=1e-3, atol=2e-4
    )
    examples = random_examples(3, seed=3)
    batch = unpacked_batch(examples, 24)
    ours = our_training(model, batch, to_torch, **changes)
    parameters = {n: p for n, p in reference.named_parameters() if p.requires_grad}
    clear = {name: np.ones(p.shape, bool) for name, p in parameters.items()}
    adamw = torch.optim.AdamW(
        groups(reference) if groups else list(parameters.values()), lr=RATE, weight_decay=0.0
    )
    for number in range(STEPS):
        loss = _torch_loss(reference, examples, cut)
        adamw.zero_grad()
        loss.backward()
        for name, parameter in parameters.items():
            theirs = parameter.grad.numpy()
            scale = float(np.abs(theirs).max())
            clear[name] &= (theirs == 0) | (np.abs(theirs) > 1e-4 * scale)
            if number == 0:
                assert scale > 0, name
                np.testing.assert_allclose(
                    ours.gradients[name], theirs, rtol=2e-3, atol=2e-4 * scale, err_msg=name
                )
        adamw.step()
        np.testing.assert_allclose(ours.losses[number], float(loss.detach()), rtol=1e-4)
    for name, parameter in parameters.items():
        # Where a gradient is nearly zero, Adam turns its rounding into a whole step.
        at, theirs = clear[name], parameter.detach().numpy()
        assert at.mean() > 0.85, name
        np.testing.assert_allclose(
            ours.after[name][at], theirs[at], rtol=1e-3, atol=0.03 * RATE, err_msg=name
        )


def _torch_loss(reference: Any, examples: Any, cut: int) -> torch.Tensor:
    total, weight = torch.zeros(()), 0
    for number in range(len(examples.lengths)):
        ids, trained = examples.get(number)
        labels = torch.where(torch.tensor(trained), torch.tensor(ids.astype(np.int64)), -100)
        logits = reference(torch.tensor(ids.astype(np.int64))[None]).logits[0, cut:]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=-100, reduction="sum"
        )
        weight += int(trained[1:].sum())
    return total / weight


def loraplus_groups(reference: Any) -> list[dict[str, Any]]:
    """peft's groups of a model's parameters, in which some learn twice as fast."""
    from peft.optimizers import create_loraplus_optimizer

    made = create_loraplus_optimizer(reference, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=2.0)
    return [{"params": g["params"], "lr": g["lr"]} for g in made.param_groups if g["params"]]


def per_layer(model: LanguageModel, names: dict[str, Any]) -> Any:
    """Turns our tree of linear layers into torch tensors by name.

    Args:
        names: of each of our arrays, the torch name with {} for the layer's, and what makes the
            torch tensor of one layer's array.
    """

    def convert(trained: Any) -> dict[str, np.ndarray]:
        found = {}
        for site in model.structure.adapter.sites:
            for array, (name, layout) in names.items():
                for value, whole in zip(
                    np.asarray(trained["layers"][site.module][array]), site.names(), strict=True
                ):
                    found[name.format(whole)] = layout(value)
        return found

    return convert


LORA = {
    "a": ("base_model.model.{}.lora_A.default.weight", lambda a: a.reshape(-1, a.shape[-1]).T),
    "b": ("base_model.model.{}.lora_B.default.weight", lambda b: b.reshape(len(b), -1).T),
}


def lora_tensors(model: LanguageModel) -> Any:
    """From our tree of A and B to peft's names and layouts."""
    return per_layer(model, LORA)


def whole_tensors(model: LanguageModel, name: str) -> Any:
    """Turns our tree of weights trained whole into torch tensors, {} being a weight's name."""

    def convert(trained: Any) -> dict[str, np.ndarray]:
        found = {}
        for site in model.structure.adapter.whole:
            array = np.asarray(trained["whole"][site.module])
            for value, whole in zip(array if site.layers else [array], site.names(), strict=True):
                if site.in_shape:
                    value = value.reshape(int(np.prod(site.in_shape)), -1).T
                found[name.format(whole)] = value
        return found

    return convert
