"""A run with an adapter: its checkpoints hold the small tree, resume, load, and export merged."""

import json

import jax
import numpy as np
import pytest
from torch_peft import IDS

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.pretrained import load_pretrained
from ift_jax.train.run import check_run, train


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


@pytest.fixture(scope="module")
def stopped(tiny_llama, tmp_path_factory):
    """Workdirs of a run with dropout and PiSSA, undisturbed and stopped half-way."""
    config = run_config(tiny_llama, dropout=0.2, init="pissa")
    whole, stopped = (tmp_path_factory.mktemp("lora") / name for name in ("whole", "stopped"))
    rows = train(config, whole)

    def stop_after_two(self, state, score, frozen):
        save(self, state, score, frozen)
        if int(state.step) == 2:
            raise KeyboardInterrupt

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(config, stopped)
    assert train(config, stopped) == rows
    return whole, stopped


def test_a_run_stopped_with_dropout_goes_on_as_if_it_had_not(stopped):
    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(stopped[0]) == losses(stopped[1])
    models = [load_workdir(folder, which="latest") for folder in stopped]
    for x, y in zip(*(jax.tree.leaves(m.params["adapter"]) for m in models), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_checkpoint_is_as_large_as_the_adapter(stopped, tiny_llama):
    folder = stopped[0] / "checkpoints"
    model = load_workdir(stopped[0])
    adapter = sum(x.nbytes for x in jax.tree.leaves(
        (model.params["adapter"], model.params["adapter_frozen"])))  # fmt: skip
    step = next(p for p in folder.iterdir() if p.is_dir())
    names = {p.name for p in step.iterdir() if p.is_dir()}
    assert {"params", "optimizer", "frozen"} <= names
    assert "embedding" not in (step / "params" / "_METADATA").read_text()
    assert adapter > 0


def test_the_loaded_adapter_is_the_trained_one_and_exports_merged(stopped, tiny_llama, tmp_path):
    model, base = load_pretrained(stopped[0]), load_pretrained(tiny_llama)
    logits = model.logits(IDS)
    assert float(np.abs(logits - base.logits(IDS)).max()) > 0.01
    np.testing.assert_array_equal(model.without_adapter().logits(IDS), base.logits(IDS))
    model.save_pretrained(tmp_path / "out")
    np.testing.assert_allclose(load_pretrained(tmp_path / "out").logits(IDS), logits, atol=1e-3)


def test_virtual_tokens_that_leave_no_room_are_named(tiny_llama):
    config = run_config(tiny_llama, method="prefix", rank=16, num_virtual_tokens=2000)
    model = load_pretrained(tiny_llama).adapt(config.peft)
    message = r"max_length=480: .* context is 1024, of which config\.peft\.num_virtual_tokens=2000"
    with pytest.raises(InputError, match=message):
        check_run(config, model, None)
