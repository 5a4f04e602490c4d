"""Studies with remedies and with quantized weights, on a tiny model."""

import json
import re

import jax
import numpy as np
import pytest
from tiny_study import study_tree, write_files

from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.evaluation.drift import weight_drift
from ift_jax.models.quantization import Quantized
from ift_jax.pretrained import load_pretrained
from ift_jax.study.runs import study

QLORA = {"peft.method": "lora", "model.quantize": "nf4", "model.quantize_group": 16}
RUNS = [
    {"name": "first", "tasks": ["topic"], "config": {"train.num_steps": 20}},
    {"name": "single", "after": "first"},
    {"name": "multi", "after": "first", "tasks": ["rating", "topic"]},
    {"name": "near", "after": "first", "config": {"remedies.l2sp_weight": 30.0}},
    {"name": "held", "after": "first",
     "config": {"remedies.text_kl_weight": 30.0, "remedies.text_rows": 8}},
    {"name": "qlora", "after": "first", "config": QLORA, "interpolations": [0.5]},
]  # fmt: skip


def tree_of(model, files, **study):
    """With a probe of plain text, which no number of shots changes, before all others."""
    tree = study_tree(model, files, **study)
    tree["data"]["tasks"].insert(
        0, {"name": "notes", "source": str(files / "notes.jsonl"), "test_fraction": 0.5}
    )
    tree["study"]["task"] = "rating"
    tree["neutral"] = {"source": "embedded:notes"}
    return tree


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("data"))
    notes = [{"text": f"Lamp {n} shines {'very ' * (n % 4)}bright."} for n in range(24)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


@pytest.fixture(scope="module")
def finished(tiny_llama, files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study") / "W"
    return workdir, study(build_run_config(tree_of(tiny_llama, files, runs=RUNS)), workdir)


def params(workdir, part):
    return load_pretrained(workdir / "runs" / f"{part}-seed0").params


def test_each_remedy_repeats_the_second_stage(finished):
    workdir, results = finished
    for matrix in results["matrices"][1:]:
        assert matrix["stages"] == ["base", "first", matrix["model"]]
        assert matrix["values"][:2] == results["matrices"][1]["values"][:2]
    said = next(f for f in results["findings"] if f["question"] == "What helped against it?")
    for name in ("multi", "near", "held", "qlora"):
        assert f"{name}: rating" in said["answer"]
    before, single, near = (params(workdir, name) for name in ("first", "single", "near"))
    distance = {
        name: weight_drift(before, found)["all"]
        for name, found in (("single", single), ("near", near))
    }
    assert 0 < distance["near"] < 0.9 * distance["single"]
    # KL is measured on other texts than those that training sees.
    kl = {d["model"]: d["value"] for d in results["drift"] if d["measure"].startswith("KL")}
    assert 0 < kl["held"] < 0.7 * kl["single"]
    card = json.loads((workdir / "runs" / "multi-seed0" / "data" / "card.json").read_text())
    assert {task for task, mixed in card["mixture"]["tasks"].items() if mixed["drawn"]} == {
        "rating", "topic",
    }  # fmt: skip


def test_a_study_with_a_probe_that_has_no_baseline_goes_on(finished, tiny_llama, files):
    workdir, results = finished
    config = build_run_config(tree_of(tiny_llama, files, runs=RUNS))
    assert "notes" not in {r["task"] for r in results["rows"] if r["model"] == "majority"}
    assert study(config, workdir)["rows"] == results["rows"]
    # Of what tasks baselines were made is known all the same, so that none can be missing.
    part = workdir / "runs" / "baselines" / "results.json"
    text = part.read_text()
    baselines = json.loads(text)
    assert baselines["tasks"] == ["notes", "rating", "topic"]
    part.write_text(json.dumps({**baselines, "tasks": ["notes", "rating"]}))
    with pytest.raises(InputError, match="baselines: was scored on notes, rating, not on what"):
        study(config, workdir)
    part.write_text(text)


def test_a_run_tunes_beside_what_it_quantizes(finished):
    workdir, results = finished
    before, folder = params(workdir, "first"), workdir / "runs" / "qlora-seed0"
    tuned = load_pretrained(folder)
    leaves = jax.tree.leaves(tuned.params, is_leaf=lambda x: isinstance(x, Quantized))
    codes = [leaf for leaf in leaves if isinstance(leaf, Quantized)]
    assert {leaf.kind for leaf in codes} == {"nf4"}
    # Four bits are near the weights, not equal to them; the embedding stays as it was.
    base = tuned.without_adapter()
    assert 0 < weight_drift(before, base.params)["all"] < 0.1
    np.testing.assert_array_equal(base.params["embedding"], before["embedding"])
    # What a study says of the run counts from the weights that it trained beside.
    [moved] = [d["value"] for d in results["drift"]
               if d["model"] == "qlora" and d["measure"].endswith("all weights")]  # fmt: skip
    assert moved == pytest.approx(weight_drift(base.params, tuned.merged().params)["all"])
    rows = [r for r in results["rows"] if r["model"] == "qlora" and r.get("interpolation") == 0.5]
    assert {row["task"] for row in rows} == {"notes", "rating", "topic"}


def test_plain_text_is_scored_once_however_many_shots_others_get(finished):
    _, results = finished
    rows = [r for r in results["rows"] if (r["model"], r["task"]) == ("base", "notes")]
    assert [(row["metric"], row["shots"]) for row in rows] == [
        ("token_accuracy", 0), ("perplexity", 0),
    ]  # fmt: skip
    prompting = next(f for f in results["findings"] if f["question"] == "Does prompting help?")
    assert re.fullmatch(
        r"On rating \(accuracy\) the base model scores \S+ \S+ \S+ at 0 shots, \S+ \S+ \S+ at "
        r"2 shots\. 2 shots against 0: .*",
        prompting["answer"],
    )


def test_full_tuning_of_quantized_weights_is_refused_before_anything_runs(
    tiny_llama, files, tmp_path
):
    runs = [RUNS[0], {"name": "b", "after": "first", "config": {"model.quantize": "int8"}}]
    with pytest.raises(InputError, match=r"config\.study\.runs: b: config\.model\.quantize=int8"):
        study(build_run_config(tree_of(tiny_llama, files, runs=runs)), tmp_path / "W")
    assert not (tmp_path / "W" / "runs").exists()
