"""A whole study on a tiny model: its files, that it goes on where it stopped, and its numbers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_study import study_tree, write_files
from transformers import AutoModelForCausalLM

from ift_jax.checkpoint import Checkpoints
from ift_jax.config import build_run_config, read_run_config
from ift_jax.errors import InputError
from ift_jax.evaluation.comparison import compare
from ift_jax.evaluation.metrics import score
from ift_jax.evaluation.predictions import read_lines
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.report.inputs import read_runs
from ift_jax.sharding import make_mesh
from ift_jax.study import runs
from ift_jax.study.plan import make_plan
from ift_jax.study.runs import study
from scripts import benchmark

PARTS = [
    "baselines", "base-0-shots", "base-2-shots", "first-seed0", "single-seed0",
    "single-seed0-at-0.5", "replay-seed0", "lora-seed0", "lora-seed0-at-0.25",
    "more-seed0", "curve-4-seed0", "curve-10-seed0",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tiny_llama, files, tmp_path_factory):
    """A study that was not disturbed, and what it returned."""
    workdir = tmp_path_factory.mktemp("study") / "W"
    return workdir, study(build_run_config(study_tree(tiny_llama, files)), workdir)


def without_times(results):
    costs = [{k: v for k, v in cost.items() if not k.endswith("_s")} for cost in results["costs"]]
    return {**results, "costs": costs}


def test_every_part_leaves_its_files(finished):
    workdir, results = finished
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    assert sorted(p.name for p in (workdir / "runs").iterdir()) == sorted(PARTS)
    for part in PARTS:
        assert (workdir / "runs" / part / "results.json").exists()
        assert (workdir / "runs" / part / "predictions.jsonl").exists() == (part != "baselines")
    for name in ("config.json", "metrics.jsonl", "data/card.json"):
        assert (workdir / "runs" / "replay-seed0" / name).exists()
    assert [cost["steps"] for cost in results["costs"]] == [40, 4, 4, 4, 4, 2, 2]
    assert all(cost["tokens"] > 0 and cost["training_s"] > 0 for cost in results["costs"])


def test_the_report_reads_it(finished):
    workdir, results = finished
    whole, *shown = read_runs([workdir])
    assert whole.is_study
    assert [run.name.split("-")[0] for run in shown] == [
        "first", "single", "replay", "lora", "more", "curve", "curve",
    ]  # fmt: skip
    assert whole.results == json.loads(json.dumps(results))
    assert {"probes", "costs", "findings", "changes", "matrices"} <= results.keys()
    drift = {(d["model"], d["measure"].split()[0]): d["value"] for d in results["drift"]}
    assert {model for model, _ in drift} == {
        "first", "single", "replay", "lora", "more", "curve of 4", "curve of 10",
    }  # fmt: skip
    assert drift["first", "relative"] > drift["single", "relative"] > 0  # more steps go further


def test_rows_say_which_run_they_are_of(finished):
    _, results = finished
    whole = [r for r in results["rows"] if not r.keys() & {"template", "class"}]
    kinds = {
        (r["model"], r["shots"], r.get("seed"), r.get("stage"), r.get("train_size"),
         r.get("interpolation"))
        for r in whole if r["metric"] == "accuracy" and r["task"] == "rating"
    }  # fmt: skip
    assert kinds == {
        ("majority", 0, None, None, None, None), ("random", 0, None, None, None, None),
        ("base", 0, None, 0, None, None), ("base", 2, None, 0, None, None),
        ("first", 0, 0, 1, None, None), ("single", 0, 0, 2, None, None),
        ("replay", 0, 0, 2, None, None), ("lora", 0, 0, 2, None, None),
        *(("lora", 0, 0, 2, None, share) for share in (0.0, 0.25, 1.0)),
        *(("single", 0, 0, 2, None, share) for share in (0.0, 0.5, 1.0)),
        ("curve", 0, 0, 1, 4, None), ("curve", 0, 0, 1, 10, None),
    }  # fmt: skip


def test_the_matrix_is_what_the_predictions_give(finished):
    workdir, results = finished
    matrix = next(m for m in results["matrices"] if m["model"] == "single")
    assert matrix["stages"] == ["base", "first", "single"]
    assert matrix["tasks"] == ["rating", "topic"]
    parts = ["base-0-shots", "first-seed0", "single-seed0"]
    for i, part in enumerate(parts):
        lines = read_lines(workdir / "runs" / part / "predictions.jsonl")
        for j, task in enumerate(matrix["tasks"]):
            predictions = [line.prediction for line in lines if line.task == task]
            right = [p.ranked == p.answer for p in predictions]
            assert matrix["values"][i][j] == pytest.approx(np.mean(right))
            assert matrix["values"][i][j] == score("accuracy", [predictions]).value
    # The topic was learned, so that it counts, and there is something to forget.
    assert results["retained"] == ["topic"]
    column = [row[1] for row in matrix["values"]]
    assert column[1] > column[0] + 0.2
    lost = matrix["forgetting"][1]
    assert lost["value"] == pytest.approx(max(column[:2]) - column[2])
    assert lost["low"] <= lost["value"] <= lost["high"]
    assert matrix["average_forgetting"] == lost  # the topic is the one probe
    assert matrix["backward_transfer"]["value"] == pytest.approx(column[2] - column[1])
    assert matrix["mean_change"]["value"] == pytest.approx(column[2] - column[1])


def test_changes_are_paired_and_from_what_a_run_went_on_from(finished):
    workdir, results = finished
    asked = ("replay", "topic", "accuracy")
    [row] = [r for r in results["changes"] if (r["model"], r["task"], r["metric"]) == asked]
    paths = [workdir / "runs" / f"{p}-seed0" / "predictions.jsonl" for p in ("first", "replay")]
    [expected] = [r for r in compare(*paths)
                  if (r["task"], r["metric"]) == ("topic", "accuracy")]  # fmt: skip
    assert (row["before"], row["after"]) == ("first", "replay")
    assert [row[k] for k in ("low", "high", "p")] == [expected[k] for k in ("low", "high", "p")]
    assert row["value"] == expected["difference"]
    assert {r["before"] for r in results["changes"] if r["model"] == "first"} == {"base"}
    assert not [r for r in results["changes"] if r["model"].startswith("curve")]


def test_a_model_between_has_weights_between_and_an_adapter_is_worked_in(finished, tiny_llama):
    """What a run with an adapter made stands in the weights that the next goes on from."""
    workdir, _ = finished
    mesh = make_mesh(build_run_config({}).mesh)
    plan = make_plan(read_run_config(workdir), workdir)
    for name, share in (("single", 0.5), ("lora", 0.25)):
        [planned] = [p for p in plan if p.run.name == name]
        folder = workdir / "runs" / planned.key
        between = runs._between(planned.config, folder, share, mesh).params
        before = load_pretrained(workdir / "runs" / "first-seed0").params
        after = load_pretrained(folder).merged().params
        assert any(leaf.any() for leaf in jax.tree.leaves(jax.tree.map(np.subtract, after, before)))
        expected = jax.tree.map(lambda a, b, s=share: (1 - s) * a + s * b, before, after)
        for one, other in zip(jax.tree.leaves(between), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    more = load_pretrained(workdir / "runs" / "more-seed0", remat="none")
    assert more.structure.compute.remat == "none"
    assert more.structure.adapter is None
    moved = np.abs(np.asarray(more.params["embedding"]) - np.asarray(after["embedding"])).max()
    assert 0 < moved < 4 * 3e-3 * 1.1  # four steps of Adam from there, and not from the base


def test_the_table_of_methods_joins_costs_and_scores(finished, tiny_llama, tmp_path, capsys):
    workdir, _ = finished
    known = {"share": 0.5, "peak_gb": 7.0, "seconds": {"ratio": 0.25}}
    model = build_run_config({"model": {"path": str(tiny_llama)}}).model
    of = {"model": dataclasses.asdict(model), "peft": dataclasses.asdict(PeftConfig())}
    costs = tmp_path / "costs.jsonl"
    costs.write_text(json.dumps({**known, "of": of}) + "\n")
    benchmark("peft_methods").main([f"--study={workdir}", "--rounds=1", f"--costs={costs}"])
    out = capsys.readouterr().out.splitlines()
    heads, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in out if line[:1] == "|"
    )
    assert heads == [
        "method", "trained", "step time", "peak memory", "rating accuracy", "against single",
        "topic accuracy",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["single", "lora"]
    single, lora = (dict(zip(heads, row, strict=True)) for row in rows)
    # What the file held was not measured again, and what was measured is in the file now.
    assert list(single.values())[1:4] == ["50 %", "0.25", "7.00 GB"]
    _, measured = map(json.loads, costs.open())
    assert measured["of"]["peft"]["method"] == "lora"

    # LoRA has rank * (inputs + outputs) parameters in each linear layer, here as torch has them.
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)
    trained = 16 * sum(sum(w.shape) for n, w in reference.named_parameters() if "_proj" in n)
    assert (measured["trained"], measured["parameters"]) == (trained, reference.num_parameters())
    assert lora["trained"] == f"{100 * trained / reference.num_parameters():.3g} %"
    seconds = measured["seconds"]
    assert seconds["ratio"] == pytest.approx(seconds["adapter"] / seconds["full"], abs=1e-3)
    assert lora["step time"] == f"{seconds['ratio']:.2f}"
    assert 0.1 < measured["peak_gb"] < 4
    assert lora["peak memory"] == f"{measured['peak_gb']:.2f} GB"

    def percent(name, task):
        lines = read_lines(workdir / "runs" / f"{name}-seed0" / "predictions.jsonl")
        found = [line.prediction for line in lines if line.task == task]
        return 100 * np.mean([p.ranked == p.answer for p in found])

    for name, row in (("single", single), ("lora", lora)):
        assert row["rating accuracy"].startswith(f"{percent(name, 'rating'):.0f} [")
        change = percent(name, "topic") - percent("first", "topic")
        assert row["topic accuracy"].startswith(f"{change:+.1f} [".replace("-", "−"))
    less = percent("lora", "rating") - percent("single", "rating")
    assert lora["against single"].startswith(f"{less:+.1f} [".replace("-", "−"))
    assert single["against single"] == ""


def test_the_table_of_methods_refuses_a_study_that_has_not_ended(finished, tmp_path):
    (tmp_path / "config.json").write_text((finished[0] / "config.json").read_text())
    with pytest.raises(SystemExit, match="has no results of single, lora; let `ift study` end"):
        benchmark("peft_methods").main([f"--study={tmp_path}"])


def test_what_a_finished_run_leaves_is_its_model_alone(finished):
    workdir, _ = finished
    for part in ("first-seed0", "single-seed0", "curve-4-seed0"):
        [step] = [p for p in (workdir / "runs" / part / "checkpoints").iterdir() if p.is_dir()]
        kept = {p.name for p in step.iterdir()}
        assert "params" in kept
        assert "optimizer" not in kept


def test_a_study_that_is_stopped_goes_on_to_the_same_results(
    finished, tiny_llama, files, tmp_path, monkeypatch
):
    _, results = finished
    config = build_run_config(study_tree(tiny_llama, files))
    workdir = tmp_path / "W"
    save, tune, made = Checkpoints.save, runs.tune, []

    def stopped(self, state, score, *frozen):
        save(self, state, score, *frozen)
        if "single" in str(self.folder) and int(state.step) == 2:
            raise KeyboardInterrupt

    def counted(config, folder, *more, **shots):
        made.append(folder.name)
        return tune(config, folder, *more, **shots)

    monkeypatch.setattr(runs, "tune", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            study(config, workdir)
    assert not (workdir / "results.json").exists()
    assert not (workdir / "runs" / "single-seed0" / "results.json").exists()
    made.clear()
    evaluate, scored = runs.evaluate, []

    def cut_off(*args, name, keep, **more):
        scored.append(name)
        kept = []

        def keep_some(line):
            if scored.count("single") == 2 and len(kept) == 2:
                raise KeyboardInterrupt
            kept.append(line)
            return keep(line)

        return evaluate(*args, name=name, keep=keep_some, **more)

    with monkeypatch.context() as patch:  # while the weights half-way are scored
        patch.setattr(runs, "evaluate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            study(config, workdir)
    half = workdir / "runs" / "single-seed0-at-0.5"
    assert len((half / "predictions.jsonl").read_text().splitlines()) == 2
    assert not (half / "results.json").exists()
    assert made == ["single-seed0"]
    made.clear()
    again = study(config, workdir)
    assert made == ["replay-seed0", "lora-seed0", "more-seed0", "curve-4-seed0", "curve-10-seed0"]
    steps = (workdir / "runs" / "single-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps if "learning_rate" in line] == [1, 2, 3, 4]
    assert without_times(again) == without_times(results)


def test_a_study_that_is_killed_at_its_beginning_keeps_its_folder(
    tiny_llama, files, tmp_path, monkeypatch
):
    config = build_run_config(study_tree(tiny_llama, files))
    workdir, write = tmp_path / "W", runs.replace_text
    kills = ["data_hashes.json", "config.json"]

    def killed(path, text):
        if path.name in kills[-1:]:
            kills.pop()
            path.with_suffix(".partial").write_text(text[:10])
            raise KeyboardInterrupt
        write(path, text)

    def begun(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "replace_text", killed)
    monkeypatch.setattr(runs, "_write", begun)
    for _ in list(kills):
        with pytest.raises(KeyboardInterrupt):
            study(config, workdir)
    with pytest.raises(ZeroDivisionError):
        study(config, workdir)
    hashes = json.loads((workdir / "data_hashes.json").read_text())
    assert hashes.keys() == {"rating", "topic"}


def test_a_finished_study_shows_its_results_and_computes_nothing(
    finished, tiny_llama, files, monkeypatch, capsys
):
    workdir, results = finished
    monkeypatch.setattr(runs, "load_configured", lambda *_: pytest.fail("loaded a model"))
    left = next(workdir.glob("runs/*/checkpoints")).parent / "fisher"
    left.mkdir()  # as where it was stopped at its very end
    assert study(build_run_config(study_tree(tiny_llama, files)), workdir) == results
    assert not left.exists()
    shown = capsys.readouterr().out
    for question in ("Does prompting help?", "How many examples suffice?", "What was forgotten?",
                     "What helped against it?"):  # fmt: skip
        assert f"\n{question}\n" in shown
    assert "curve of 10, 0 shots" in shown


def test_a_changed_config_is_refused_with_the_field(finished, tiny_llama, files):
    workdir, _ = finished
    tree = study_tree(tiny_llama, files)

    def refused(tree):
        with pytest.raises(InputError) as caught:
            study(build_run_config(tree), workdir)
        return str(caught.value)

    assert "config.train.batch_size is 8 there and 16 here" in refused(
        {**tree, "train": {**tree["train"], "batch_size": 16}}
    )
    changed = [dict(run) for run in tree["study"]["runs"]]
    changed[2]["config"] = {"data.mixture.replay_share": 0.2}
    said = refused({**tree, "study": {"runs": changed}})
    assert "replay-seed0: holds a run with another config; config.data.mixture.replay_share" in said
    assert "is 0.3 there and 0.2 here" in said
    changed = [dict(run) for run in tree["study"]["runs"]]
    changed[-1]["scores"] = []
    said = refused({**tree, "study": {"runs": changed}})
    assert "curve-4-seed0: was scored on rating, not on what config.study.runs: curve.sc" in said
    (workdir / "checkpoints").mkdir()
    said = refused(tree)
    (workdir / "checkpoints").rmdir()
    assert "is a workdir of `ift train`" in said


def test_a_curve_may_have_fewer_examples_than_the_base_is_shown(
    tiny_llama, files, tmp_path, monkeypatch
):
    class Began(Exception):
        pass

    def begin(*_, **__):
        raise Began

    monkeypatch.setattr(runs, "baseline_rows", begin)
    tree = study_tree(tiny_llama, files)
    tree["evaluation"]["shots"] = [0, 5]  # and the curve begins with 4
    with pytest.raises(Began):
        study(build_run_config(tree), tmp_path / "W")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("study", "runs", -1, "train_sizes"), [4, 1000],
         "config.study.runs: curve: config.data.tasks: rating.train_size is 1000, but the split"),
        (("study", "runs", 3, "config"), {"peft.method": "lora", "peft.targets": ["a"]},
         "config.study.runs: lora: config.peft.targets"),
        (("study", "runs", 3, "config"), {"peft.method": "prompt"},
         "config.study.runs: lora: interpolations: an adapter of method 'prompt' cannot be merged"),
        (("study", "runs", 0, "config"), {"peft.method": "bitfit"},
         "config.study.runs: first: single.after: an adapter of method 'bitfit' cannot be merged"),
        (("study", "runs", 2, "config"), {},
         "config.study.runs: replay: config.data.mixture.replay_share and a task with replay"),
        (("study", "runs", 1, "config"), {"data.tasks[0].test_fraction": 0.1},
         "config.study.runs: single: it would train on text of the test split of rating"),
        (("data", "tasks", 0, "metrics"), ["perplexity"],
         "config.data.tasks: rating.metrics: a study compares by the first, of which more must"),
        (("evaluation", "shots"), [0, 900], "900 shots asked for, the training split has"),
        (("data", "prepared"), "set", "config.data.prepared: a study makes a data set for each"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_refused_at_once(tiny_llama, files, tmp_path, path, value, says):
    tree = study_tree(tiny_llama, files)
    place = tree
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(InputError) as caught:
        study(build_run_config(tree), tmp_path / "W")
    assert says in str(caught.value)
    assert not (tmp_path / "W" / "runs").exists()


def test_a_study_does_not_go_on_with_other_probes_or_other_data(tiny_llama, tmp_path):
    files = write_files(tmp_path)
    run = {"name": "a", "config": {"train.num_steps": 2}}
    tree = {**study_tree(tiny_llama, files), "study": {"runs": [run]}}
    study(build_run_config(tree), tmp_path / "W")
    said = r"runs.baselines: was scored on rating, topic, not on what config.study.probes asks for"
    shutil.rmtree(tmp_path / "W" / "runs" / "a-seed0")  # as if it had not come so far
    other = build_run_config({**tree, "study": {"runs": [run], "probes": ["rating"]}})
    with pytest.raises(InputError, match=said):
        study(other, tmp_path / "W")
    with (files / "topics.jsonl").open("a") as file:
        file.write(json.dumps({"text": "Wet wood", "topic": "rain"}) + "\n")
    further = {**tree, "study": {"runs": [run, {**run, "name": "b"}]}}
    with pytest.raises(InputError, match="the data of task topic is not what the study began"):
        study(build_run_config(further), tmp_path / "W")
    assert not (tmp_path / "W" / "runs" / "b-seed0").exists()


def test_a_study_can_be_given_more(finished, tiny_llama, files, tmp_path, monkeypatch):
    """A further run and a further seed are made; what was finished is not made again."""
    tree = study_tree(tiny_llama, files)
    ewc = {"ewc_weight": 0.1, "fisher_tasks": ["rating"], "fisher_examples": 4}
    remedies = {f"remedies.{name}": value for name, value in ewc.items()}
    first = {"name": "a", "tasks": ["topic"], "config": {"train.num_steps": 2, **remedies}}
    made, tune = [], runs.tune

    def counted(config, folder, *more, **shots):
        made.append(folder.name)
        return tune(config, folder, *more, **shots)

    monkeypatch.setattr(runs, "tune", counted)
    tree["study"] = {"runs": [first], "keep_models": False}
    study(build_run_config(tree), tmp_path / "W")
    tree["study"] = {"runs": [first], "seeds": [0, 1]}
    results = study(build_run_config(tree), tmp_path / "W")
    assert made == ["a-seed0", "a-seed1"]
    rows = [r for r in results["rows"] if (r["model"], r["task"], r["metric"]) == (
        "a", "topic", "accuracy") and not r.keys() & {"template", "class"}]  # fmt: skip
    assert [row["seed"] for row in rows] == [0, 1]
    [matrix] = results["matrices"]
    assert matrix["values"][1][1] == pytest.approx(np.mean([row["value"] for row in rows]))
    assert not (tmp_path / "W" / "runs" / "a-seed0" / "checkpoints").exists()
    assert (tmp_path / "W" / "runs" / "a-seed1" / "checkpoints").exists()
    assert not (tmp_path / "W" / "runs" / "a-seed1" / "fisher").exists()


def test_configs_of_runs_are_those_of_their_workdirs(finished, tiny_llama, files):
    workdir, _ = finished
    for planned in make_plan(build_run_config(study_tree(tiny_llama, files)), workdir):
        stored = read_run_config(workdir / "runs" / planned.key)
        assert dataclasses.replace(stored, model=planned.config.model) == planned.config
