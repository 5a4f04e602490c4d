"""Remedies as terms of the loss, against torch; invariances; the Fisher information."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from batches import packed_batch, random_examples, unpacked_batch
from torch_reference import torch_model

from ift_jax.hf import families, weights
from ift_jax.models.decoder import param_axes
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh, param_shardings, row_sharding
from ift_jax.train import fisher as fisher_module
from ift_jax.train.fisher import estimate_fisher, stored_fisher
from ift_jax.train.loss import Reference, loss_sums, token_kl
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.remedies import RemediesConfig, weight_penalty
from ift_jax.train.step import Constants, init_state, make_step, place_state, reference_of

ALL = RemediesConfig(
    kl_weight=0.5, text_kl_weight=0.7, l2sp_weight=0.05, ewc_weight=0.3, fisher_tasks=("x",)
)
RATE, STEPS = 0.05, 2
OPTIMIZER = make_optimizer(
    OptimizerConfig(name="sgd", b1=0.0, peak_lr=RATE, warmup_steps=0, schedule="constant",
                    clip_norm=0.0), STEPS,
)  # fmt: skip


def shaken(params, seed, size=0.1):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def named(model, tree):
    """A tree like the parameters, by the names that torch has for them."""
    rows = families.weight_rows(families.family_of(model.hf_config, ""), model.structure.config)
    return {n: np.asarray(x) for n, x in weights.write_tensors(rows, tree, jnp.dtype("float32"))}


@pytest.fixture(scope="module")
def case(tiny_llama, tmp_path_factory):
    """A base, a model some way off it, a batch and one of neutral text, and a made-up Fisher."""
    base = load_pretrained(tiny_llama)
    tuned = base.with_params(shaken(base.params, 1))
    folder = tmp_path_factory.mktemp("tuned") / "model"
    tuned.save_pretrained(folder, dtype="float32")
    examples, texts = random_examples(24), random_examples(10, seed=5)
    fisher = jax.tree.map(jnp.square, shaken(jax.tree.map(jnp.zeros_like, base.params), 2, 1.0))
    return SimpleNamespace(
        base=base, tuned=tuned, folder=folder, base_folder=tiny_llama, examples=examples,
        texts=texts, batch=packed_batch(examples, rows=8), text=packed_batch(texts, rows=8),
        constants=Constants({}, base.params, fisher),
    )  # fmt: skip


def torch_sums(model, reference, examples):
    """(nll, KL(reference || model), number) over the targets of each example alone."""
    nll = kl = count = 0
    for number in range(len(examples.lengths)):
        ids, trained = (torch.tensor(x) for x in examples.get(number))
        ids = ids.long()
        places = torch.nonzero(trained[1:])[:, 0]
        own = torch.log_softmax(model(ids[None]).logits[0, places], -1)
        with torch.no_grad():
            base = torch.log_softmax(reference(ids[None]).logits[0, places], -1)
        nll = nll - own.gather(1, ids[places + 1, None]).sum()
        kl = kl + torch.nn.functional.kl_div(own, base, reduction="sum", log_target=True)
        count += len(places)
    return nll, kl, count


@pytest.fixture(scope="module")
def expected(case):
    """Two SGD steps of torch on the loss as the config's docstring says it."""
    model, reference = torch_model(case.folder), torch_model(case.base_folder)
    start = {n: p.detach().clone() for n, p in reference.named_parameters()}
    matters = {n: torch.tensor(x) for n, x in named(case.base, case.constants.fisher).items()}
    said = []
    for _ in range(STEPS):
        nll, kl, count = torch_sums(model, reference, case.examples)
        _, text_kl, text_count = torch_sums(model, reference, case.texts)
        moved = {n: p - start[n] for n, p in model.named_parameters()}
        terms = {
            "kl": kl / count,
            "text_kl": text_kl / text_count,
            "l2sp": ALL.l2sp_weight / 2 * sum((d**2).sum() for d in moved.values()),
            "ewc": ALL.ewc_weight / 2 * sum((matters[n] * d**2).sum() for n, d in moved.items()),
        }
        loss = nll / count + ALL.kl_weight * terms["kl"] + ALL.text_kl_weight * terms["text_kl"]
        model.zero_grad()
        (loss + terms["l2sp"] + terms["ewc"]).backward()
        said.append({name: float(term.detach()) for name, term in terms.items()})
        with torch.no_grad():
            for p in model.parameters():
                p -= RATE * p.grad
    return {n: p.detach().numpy() for n, p in model.named_parameters()}, said


def steps(case, *, micro_batches=1, mesh=None, remedies=ALL):
    """The parameters and what was said after two steps."""
    step = jax.jit(make_step(case.tuned.structure, OPTIMIZER, micro_batches, remedies=remedies))
    constants, batches = case.constants, (case.batch, case.text)
    if mesh is None:
        state = init_state(case.tuned.params, OPTIMIZER)
    else:
        placed = param_shardings(mesh, param_axes(case.base.structure.config), case.base.params)
        copied = jax.tree.map(jnp.copy, case.tuned.params)  # the state takes them
        state = place_state(jax.device_put(copied, placed), OPTIMIZER, mesh)
        constants = Constants({}, *(jax.device_put(t, placed) for t in constants[1:]))
        batches = jax.device_put(batches, row_sharding(mesh))
    said = []
    for _ in range(STEPS):
        state, metrics = step(state, constants, *batches)
        said.append({name: float(value) for name, value in metrics.remedies.items()})
    return state.params, said


@pytest.fixture(scope="module")
def found(case):
    return steps(case)


def assert_trees_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol)


def test_kl_is_that_of_torch():
    rng = np.random.default_rng(0)
    base, own = rng.normal(size=(2, 5, 11)).astype(np.float32) * 3
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(own), -1), torch.log_softmax(torch.tensor(base), -1),
        reduction="none", log_target=True,
    ).sum(-1)  # fmt: skip
    np.testing.assert_allclose(token_kl(base, own), expected, rtol=1e-4)
    np.testing.assert_allclose(token_kl(base, base), 0, atol=1e-6)


def test_steps_with_all_remedies_equal_torch(case, found, expected):
    """Values and gradients of every term, each divided by its own number of targets."""
    params, said = found
    wanted, wanted_said = expected
    for ours, theirs in zip(said, wanted_said, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    ours, start = named(case.base, params), named(case.base, case.tuned.params)
    for name, array in wanted.items():
        scale = np.abs(array - start[name]).max()
        assert scale > 1e-5
        np.testing.assert_allclose(ours[name], array, atol=2e-3 * scale + 1e-6)


def test_remedies_do_not_depend_on_micro_batches(case, found):
    params, said = steps(case, micro_batches=4)
    assert_trees_close(params, found[0], atol=2e-5)
    for a, b in zip(said, found[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_remedies_do_not_depend_on_the_mesh(case, found):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params, said = steps(case, mesh=mesh)
    assert_trees_close(params, found[0], atol=5e-5)
    for a, b in zip(said, found[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_kl_in_chunks_is_kl_in_one(case, monkeypatch):
    from ift_jax.train import loss

    def kl_and_gradient():
        reference = Reference(case.base.structure, case.base.params)
        return jax.jit(
            jax.value_and_grad(
                lambda p: loss_sums(case.base.structure, p, case.batch, reference=reference).kl
            )
        )(case.tuned.params)

    whole = kl_and_gradient()
    monkeypatch.setattr(loss, "CHUNK_TARGETS", 20)
    cut = kl_and_gradient()
    np.testing.assert_allclose(float(whole[0]), float(cut[0]), rtol=1e-5)
    assert_trees_close(whole[1], cut[1], atol=1e-3)


def test_without_weights_the_step_is_the_one_without_remedies(case):
    """Bit for bit, and whatever stands in the constants."""
    plain = jax.jit(make_step(case.tuned.structure, OPTIMIZER))
    state = init_state(case.tuned.params, OPTIMIZER)
    alone, metrics = plain(state, Constants({}), case.batch)
    off, _ = jax.jit(make_step(case.tuned.structure, OPTIMIZER, remedies=RemediesConfig()))(
        state, case.constants, case.batch
    )
    assert metrics.remedies == {}
    for x, y in zip(jax.tree.leaves(alone.params), jax.tree.leaves(off.params), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_penalties_by_hand():
    config = RemediesConfig(l2sp_weight=0.5, ewc_weight=2.0, fisher_tasks=("x",))
    values, gradient = weight_penalty(
        config, {"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([0.0, 1.0])},
        {"w": jnp.array([10.0, 0.1])},
    )  # fmt: skip
    assert float(values["l2sp"]) == pytest.approx(0.5 / 2 * (1 + 4))
    assert float(values["ewc"]) == pytest.approx(2.0 / 2 * (10 * 1 + 0.1 * 4))
    np.testing.assert_allclose(gradient["w"], [0.5 * 1 + 2 * 10 * 1, 0.5 * 2 + 2 * 0.1 * 2])


def test_penalties_of_bfloat16_weights_are_computed_in_float32():
    near = {"w": jnp.full(3, 1.0078125, jnp.bfloat16)}  # one bit from 1
    values, gradient = weight_penalty(
        RemediesConfig(l2sp_weight=1.0), near, {"w": jnp.ones(3, jnp.bfloat16)}, {}
    )
    assert gradient["w"].dtype == jnp.float32
    assert float(values["l2sp"]) == pytest.approx(1.5 * 0.0078125**2)


def test_with_an_adapter_kl_is_from_the_frozen_weights_alone(case):
    adapted = case.base.adapt(PeftConfig(method="lora", rank=2), seed=3)
    base = {name: tree for name, tree in adapted.params.items() if name != "adapter"}
    reference = reference_of(adapted.structure, Constants(base))
    assert reference.structure == case.base.structure

    def kl_of(structure):
        return jax.jit(lambda p: loss_sums(structure, p, case.batch, reference=reference).kl)

    kl = kl_of(adapted.structure)
    assert float(kl(adapted.params)) == pytest.approx(0, abs=1e-3)
    moved = adapted.with_params({**base, "adapter": shaken(adapted.params["adapter"], 4)})
    expected = float(kl_of(case.base.structure)(moved.merged().params))
    assert expected > 1
    assert float(kl(moved.params)) == pytest.approx(expected, rel=1e-3)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_the_empirical_fisher_is_the_mean_square_of_each_examples_gradient(case):
    examples = random_examples(5)
    found = estimate_fisher(
        case.base.structure, case.base.params, examples, labels="given", seed=0, mesh=one_device()
    )
    model, squares = torch_model(case.base_folder), {}
    for number in range(5):
        ids, trained = (torch.tensor(x) for x in examples.get(number))
        logp = torch.log_softmax(model(ids.long()[None]).logits[0], -1)
        places = torch.nonzero(trained[1:])[:, 0]
        model.zero_grad()
        logp[places, ids.long()[places + 1]].sum().backward()
        for name, p in model.named_parameters():
            squares[name] = squares.get(name, 0) + p.grad.numpy() ** 2 / 5
    for name, ours in named(case.base, found).items():
        np.testing.assert_allclose(ours, squares[name], atol=1e-4 * squares[name].max())


def test_sampled_labels_estimate_the_fisher_information(case):
    """Against the exact sum over the vocabulary: F = sum over places and v of p(v) dlog p(v)^2."""
    (ids, trained), draws = random_examples(1, seed=3).get(0), 320
    repeated = random_examples(1, seed=3)
    repeated = type(repeated)(
        np.repeat(repeated.lengths, draws), np.repeat(repeated.num_targets, draws),
        lambda _: (ids, trained),
    )  # fmt: skip
    found = estimate_fisher(
        case.base.structure, case.base.params, repeated, labels="sampled", seed=0,
        mesh=one_device(),
    )  # fmt: skip
    places = np.flatnonzero(trained[1:])
    batch = unpacked_batch(random_examples(1, seed=3))

    @jax.jit
    def exact(params):
        def log_probabilities(params):
            module = case.base.structure.merge(params)
            hidden = module.hidden_states(batch.tokens, batch.positions, batch.segment_ids)
            return jax.nn.log_softmax(module.logits(hidden[0, places])).reshape(-1)

        logp, pull = jax.vjp(log_probabilities, params)

        def add(total, xs):
            number, p = xs
            (gradient,) = pull(jnp.zeros_like(logp).at[number].set(1.0))
            return jax.tree.map(lambda t, g: t + p * g * g, total, gradient), None

        start = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, start, (jnp.arange(len(logp)), jnp.exp(logp)))[0]

    wanted = exact(case.base.params)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert float(ours.sum()) == pytest.approx(float(theirs.sum()), rel=0.25)
    total = [sum(float(x.sum()) for x in jax.tree.leaves(t)) for t in (found, wanted)]
    assert total[0] == pytest.approx(total[1], rel=0.15)
    given = estimate_fisher(  # which the example's own, unlikely tokens do not
        case.base.structure, case.base.params, random_examples(1, seed=3), labels="given", seed=0,
        mesh=one_device(),
    )  # fmt: skip
    assert not math.isclose(
        sum(float(x.sum()) for x in jax.tree.leaves(given)), total[1], rel_tol=0.3
    )


def test_the_fisher_of_a_run_is_estimated_once_and_kept(case, tmp_path, monkeypatch):
    config = RemediesConfig(ewc_weight=1.0, fisher_tasks=("a",), fisher_examples=3)
    monkeypatch.setattr(fisher_module, "fisher_examples", lambda *_: random_examples(3))
    first = stored_fisher(config, 0, tmp_path, one_device(), case.base, None)
    monkeypatch.setattr(fisher_module, "estimate_fisher", None)  # which nobody calls again
    again = stored_fisher(config, 0, tmp_path, one_device(), case.base, None)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
