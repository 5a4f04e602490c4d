"""Whole runs with every remedy: what is written, and resume bit for bit."""

import json

import jax
import numpy as np
import pytest
from tiny_run import run_tree

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.evaluation.drift import weight_drift
from ift_jax.interpolation import interpolated
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.report.inputs import read_run
from ift_jax.report.rows import is_part
from ift_jax.report.table import results_table
from ift_jax.train import fisher
from ift_jax.train.run import train


def config(model):
    tree = run_tree(model)
    tree["data"]["tasks"][0]["test_size"] = 5
    tree["train"] = {"num_steps": 3, "batch_size": 8, "micro_batches": 1, "save_every": 1,
                     "eval_metrics": ["loss"], "num_samples": 0, "watch_drift": True}  # fmt: skip
    tree["evaluation"] = {"shots": [0], "metrics": ["accuracy", "token_accuracy"],
                          "interpolation": [0.0, 0.5, 1.0]}  # fmt: skip
    tree["neutral"] = {"num_texts": 8, "max_tokens": 32}
    tree["remedies"] = {"kl_weight": 0.5, "text_kl_weight": 0.5, "l2sp_weight": 0.01,
                        "ewc_weight": 0.1, "fisher_tasks": ["rating"],
                        "fisher_examples": 6}  # fmt: skip
    return build_run_config(tree)


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("held") / "W"
    train(config(tiny_llama), workdir)
    return workdir


def test_every_term_and_the_drift_are_logged_and_reported(finished):
    run = read_run(finished)
    steps = [m for m in run.metrics if "loss" in m]
    assert len(steps) == 3
    assert all({"kl", "text_kl", "l2sp", "ewc"} <= m.keys() for m in steps)
    # The first step starts from the base: nothing has moved yet.
    assert [steps[0][term] for term in ("kl", "text_kl", "l2sp", "ewc")] == pytest.approx(
        [0] * 4, abs=1e-5
    )
    assert all(steps[2][term] > 1e-6 for term in ("kl", "text_kl", "l2sp", "ewc"))
    drift = [(m["step"], m["weight_drift"], m["kl_from_base"]) for m in run.metrics
             if "weight_drift" in m]  # fmt: skip
    assert drift[0] == pytest.approx((0, 0, 0), abs=1e-6)
    assert drift[1][0] == 3
    entries = {entry["measure"]: entry["value"] for entry in run.results["drift"]}
    assert entries["relative L2 distance of all weights"] == pytest.approx(drift[1][1], rel=1e-4)
    assert entries["KL divergence on neutral text, nats/token"] == pytest.approx(
        drift[1][2], rel=1e-3
    )


def test_a_run_with_remedies_resumes_bit_for_bit(finished, tiny_llama, tmp_path):
    """From the stored Fisher information, with the neutral text of the steps to come."""
    save = Checkpoints.save

    def interrupted(self, state, score, *frozen):
        save(self, state, score, *frozen)
        if int(state.step) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(tiny_llama), tmp_path / "W")
        patch.setattr(Checkpoints, "save", save)
        patch.setattr(fisher, "estimate_fisher", None)
        train(config(tiny_llama), tmp_path / "W")
    whole, resumed = (load_workdir(w, which="latest").params for w in (finished, tmp_path / "W"))
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    texts = [json.loads((w / "results.json").read_text()) for w in (finished, tmp_path / "W")]
    assert texts[0] == texts[1]


def test_weights_are_interpolated_between_base_and_tuned(finished, tiny_llama):
    base = load_pretrained(tiny_llama)
    shares = (0.0, 0.5, 1.0)
    models = {share: load_workdir(finished, share=share) for share in shares}
    for start, *between in zip(
        jax.tree.leaves(base.params), *(jax.tree.leaves(m.params) for m in models.values()),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(between[0], start)
        np.testing.assert_allclose(between[1], (start + between[2]) / 2, atol=1e-6)
    assert weight_drift(base.params, models[1.0].params)["all"] > 1e-3
    rows = [row for row in read_run(finished).rows if not is_part(row)]

    def values(model, share):
        return [(r["metric"], r["value"]) for r in rows
                if r["model"] == model and r.get("interpolation") == share]  # fmt: skip

    assert values("tuned", 0.0) == values("base", None)
    assert values("tuned", 1.0) == values("tuned", None)
    assert len(values("tuned", 0.5)) == 2
    # The table for the terminal shows the tuned model itself.
    assert results_table(rows) == results_table([r for r in rows if "interpolation" not in r])


def test_an_adapter_is_merged_before_it_is_interpolated(tiny_llama):
    base = load_pretrained(tiny_llama)
    adapted = base.adapt(PeftConfig(method="lora", rank=2))
    adapter = jax.tree.map(lambda x: x + 0.1, adapted.params["adapter"])
    adapted = adapted.with_params({**adapted.params, "adapter": adapter})
    half = interpolated(base, adapted, 0.5)
    assert half.structure.adapter is None
    whole = adapted.merged().params["layers"]["mlp"]["down"]
    start = base.params["layers"]["mlp"]["down"]
    np.testing.assert_allclose(half.params["layers"]["mlp"]["down"], (start + whole) / 2, atol=1e-6)
    with pytest.raises(InputError, match=r"share: expected 0 \(base\) to 1 \(tuned\), got 1.5"):
        interpolated(base, adapted, 1.5)
