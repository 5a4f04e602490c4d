"""A run with an adapter: its checkpoints hold the small tree, resume, load, and export merged."""

import dataclasses
import json
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from torch_peft import IDS

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.pretrained import load_configured, load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh
from ift_jax.train.run import check_run, train, tune


def run_config(model, **peft):
    task = {
        "name": "rating", "source": "embedded:reviews", "templates": "reviews",
        "template_names": ["Predict the rating"], "split_by": ["review_body"],
        "balance_by": "star_rating", "train_size": 40, "validation_size": 5, "test_size": 5,
    }  # fmt: skip
    return build_run_config(
        {
            "model": {"path": str(model)},
            "data": {"max_length": 480, "tasks": [task]},
            "train": {"num_steps": 4, "batch_size": 8, "eval_every": 2},
            "optimizer": {"peak_lr": 1e-2, "warmup_steps": 0},
            "evaluation": {"shots": [0], "metrics": ["accuracy"]},
            "peft": {"method": "lora", "rank": 4, **peft},
        }
    )


@contextmanager
def stopping_after(step):
    """A run that begins inside stops when it has saved that step."""

    def save_and_stop(self, state, score, frozen):
        save(self, state, score, frozen)
        if int(state.step) == step:
            raise KeyboardInterrupt

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


METHODS = {
    "pissa": {"dropout": 0.2, "init": "pissa"},
    "vera": {"method": "vera", "rank": 8, "dropout": 0.2},  # whose matrices all layers share
}


@pytest.fixture(scope="module", params=METHODS)
def stopped(request, tiny_llama, tmp_path_factory):
    """Workdirs of a run with dropout, undisturbed and stopped half-way."""
    config = run_config(tiny_llama, **METHODS[request.param])
    whole, stopped = (tmp_path_factory.mktemp("lora") / name for name in ("whole", "stopped"))
    rows = train(config, whole)

    with stopping_after(2):
        train(config, stopped)
    assert train(config, stopped) == rows
    return whole, stopped


def test_a_run_stopped_with_dropout_goes_on_as_if_it_had_not(stopped):
    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(stopped[0]) == losses(stopped[1])
    models = [load_workdir(folder, which="latest") for folder in stopped]
    for name in ("adapter", "adapter_frozen"):
        for x, y in zip(*(jax.tree.leaves(m.params[name]) for m in models), strict=True):
            np.testing.assert_array_equal(x, y)


OTHERS = {
    "qlora": ({"method": "lora", "dropout": 0.2}, {"quantize": "nf4", "quantize_group": 16}),
    "dora": ({"method": "dora"}, {}),
    "a part of an array": (
        {"method": "selective", "rank": 16, "targets": ["v_proj"], "layers": [1]}, {},
    ),
    "rows of new tokens": ({"method": "lora", "token_rows": ["<new>"]}, {"new_tokens": ("<new>",)}),
    "prompt": ({"method": "prompt", "rank": 16, "prompt_text": "How many stars?"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_of_any_method_goes_on_as_if_it_had_not_stopped(tiny_llama, tmp_path, name):
    method, model = OTHERS[name]
    config = run_config(tiny_llama, **method)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        train=dataclasses.replace(config.train, num_steps=2, eval_every=1, num_samples=0),
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        start = load_configured(config.model, mesh).adapt(config.peft).params["adapter"]
        trained = tune(config, whole, mesh).model.params["adapter"]
        with stopping_after(1):
            tune(config, stopped, mesh)
        tune(config, stopped, mesh)
    loaded = load_workdir(stopped, which="latest").params["adapter"]
    moved = []
    for x, y, z in zip(*map(jax.tree.leaves, (loaded, trained, start)), strict=True):
        np.testing.assert_array_equal(x, y)
        moved.append(not np.array_equal(x, z))
    assert all(moved)


def test_a_checkpoint_is_as_large_as_the_adapter(stopped, tiny_llama):
    """Its arrays are those of the adapter, once themselves and twice as the optimizer's moments."""
    folder = stopped[0] / "checkpoints"
    params = load_workdir(stopped[0]).params
    count = {name: len(jax.tree.leaves(params[name])) for name in ("adapter", "adapter_frozen")}
    step = next(p for p in folder.iterdir() if p.is_dir())

    def stored(name):
        return json.loads((step / name / "_METADATA").read_text())["tree_metadata"]

    assert len(stored("params")) == count["adapter"] > 0
    assert len(stored("frozen")) == count["adapter_frozen"] > 0
    moments = [key for key in stored("optimizer") if "mu" in key or "nu" in key]
    assert len(moments) == 2 * count["adapter"]


def test_a_runs_b_learns_by_its_own_rate(tiny_llama, tmp_path):
    """After one step of AdamW from B = 0, B is its rate in each entry."""
    found = {}
    for ratio in (1.0, 8.0):
        config = run_config(tiny_llama, b_lr_ratio=ratio, targets=["q_proj"])
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, num_steps=1, eval_every=1)
        )
        train(config, tmp_path / str(ratio))
        pair = load_workdir(tmp_path / str(ratio), which="latest").params["adapter"]["layers"]
        found[ratio] = np.asarray(pair["self_attn.q_proj"]["b"])
    assert np.abs(found[1.0]).max() > 0
    np.testing.assert_allclose(found[8.0], 8 * found[1.0], rtol=1e-3)


def test_the_loaded_adapter_is_the_trained_one_and_exports_merged(stopped, tiny_llama, tmp_path):
    model, base = load_pretrained(stopped[0]), load_pretrained(tiny_llama)
    logits = model.logits(IDS)
    assert float(np.abs(logits - base.logits(IDS)).max()) > 0.01
    np.testing.assert_array_equal(model.without_adapter().logits(IDS), base.logits(IDS))
    model.save_pretrained(tmp_path / "out")
    np.testing.assert_allclose(load_pretrained(tmp_path / "out").logits(IDS), logits, atol=1e-3)


def test_what_a_run_made_can_be_quantized(stopped, tmp_path):
    """As what it exports, and only once."""
    options = {"quantize": "nf4", "quantize_group": 16}
    load_pretrained(stopped[0]).save_pretrained(tmp_path / "out", dtype="float32")
    model = load_pretrained(stopped[0], **options)
    expected = load_pretrained(tmp_path / "out", **options).logits(IDS)
    np.testing.assert_allclose(model.logits(IDS), expected, atol=2e-4)
    assert float(np.abs(expected - load_pretrained(stopped[0]).logits(IDS)).max()) > 0.02
    assert model.structure.adapter is None


def test_an_adapter_is_taken_out_of_weights_on_a_mesh(stopped, tiny_llama):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        merged = load_pretrained(stopped[0], mesh=mesh).merged()
        logits = merged.unmerged(stopped[0]).logits(IDS)
        assert float(np.abs(merged.logits(IDS) - logits).max()) > 0.01
    np.testing.assert_allclose(logits, load_pretrained(tiny_llama).logits(IDS), atol=5e-4)


def test_a_quantized_base_has_the_codes_that_it_had_in_training(tiny_llama, tmp_path, capsys):
    """They follow from the dtype to which the weights were rounded, and from the groups."""
    config = run_config(tiny_llama, targets=["q_proj"])
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, quantize="nf4", quantize_group=16, param_dtype="bfloat16"
        ),
        train=dataclasses.replace(config.train, num_steps=1, eval_every=1),
    )
    train(config, tmp_path / "W")
    loaded, wanted = load_pretrained(tmp_path / "W"), load_configured(config.model)
    other = load_pretrained(tiny_llama, quantize="nf4", quantize_group=16)
    scales = [m.params["layers"]["mlp"]["down"].scales for m in (loaded, wanted, other)]
    np.testing.assert_array_equal(scales[0], scales[1])
    assert not np.array_equal(scales[0], scales[2])
    capsys.readouterr()
    load_pretrained(tiny_llama, quantize="nf4", quantize_group=16).load_adapter(tmp_path / "W")
    assert "stored as" not in capsys.readouterr().err
    load_pretrained(tiny_llama, quantize="nf4", quantize_group=8).load_adapter(tmp_path / "W")
    said = "beside weights stored as nf4 in groups of 16, here they are nf4 in groups of 8"
    assert said in capsys.readouterr().err


def test_virtual_tokens_that_leave_no_room_are_named(tiny_llama):
    config = run_config(tiny_llama, method="prefix", rank=16, num_virtual_tokens=2000)
    model = load_pretrained(tiny_llama).adapt(config.peft)
    message = r"max_length=480: .* context is 1024, of which config\.peft\.num_virtual_tokens=2000"
    with pytest.raises(InputError, match=message):
        check_run(config, model, None)
