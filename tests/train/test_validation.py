"""What is looked at on the way: items, metrics and samples; who is chosen; early stopping."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run_tree

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import TrainConfig, build_run_config
from ift_jax.data import pipeline
from ift_jax.errors import InputError
from ift_jax.evaluation.metrics import deciding_key
from ift_jax.evaluation.tasks import evaluate
from ift_jax.pretrained import load_pretrained
from ift_jax.report.inputs import read_run
from ift_jax.sharding import MeshConfig, make_mesh
from ift_jax.train import loop, run, validation
from ift_jax.train.run import train
from ift_jax.train.selection import choose, is_over, oriented_score
from ift_jax.train.step import TrainState
from ift_jax.train.validation import plan_validation, sample, validate

WRITING = {
    "name": "writing", "source": "embedded:reviews", "templates": "reviews",
    "template_names": ["Describe the review in a short sentence"], "split_by": ["review_body"],
    "train_size": 10,
    "validation_size": 6, "test_size": 0, "test_fraction": 0.0,
}  # fmt: skip


KNOWN = pipeline.Known()


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def planned(base, tree):
    config = build_run_config(tree)
    data = pipeline.build(config.data, base.chat, KNOWN)
    return config, data, plan_validation(config, base, data)


def two_tasks(model, **writing):
    tree = run_tree(model)
    tree["data"]["tasks"].append({**WRITING, **writing})
    return tree


def metrics_of(plan):
    return {each.name: each.config.metrics for each in plan.tasks}


def test_each_task_is_scored_by_its_own_metrics_unless_others_are_asked_for(base):
    tree = two_tasks("", metrics=["token_f1"])
    _, _, plan = planned(base, tree)
    assert metrics_of(plan) == {"rating": ("accuracy", "exact_match"), "writing": ("token_f1",)}
    tree["train"]["eval_metrics"] = ["accuracy"]  # which writing has no choices for
    _, _, plan = planned(base, tree)
    assert metrics_of(plan) == {"rating": ("accuracy",)}
    tree["train"]["eval_metrics"] = ["loss"]
    _, _, plan = planned(base, tree)
    assert metrics_of(plan) == {}
    assert plan.packed is not None
    tree = two_tasks("", weight=0.0)
    assert set(metrics_of(planned(base, tree)[2])) == {"rating", "writing"}
    tree["train"]["eval_tasks"] = "trained"
    _, _, plan = planned(base, tree)
    assert set(metrics_of(plan)) == {"rating"}
    assert {prompt.task for prompt in plan.prompts} == {"rating", "writing"}


def test_metrics_go_to_the_tasks_whose_answers_they_can_score(base):
    tree = two_tasks("")
    tree["train"]["eval_metrics"] = ["numeric_match", "exact_match"]
    both = ("numeric_match", "exact_match")
    assert metrics_of(planned(base, tree)[2]) == {"rating": both, "writing": ("exact_match",)}


def test_a_trained_task_without_validation_is_named(base, capsys):
    """Else another task alone would decide which step is best, without a word."""
    planned(base, two_tasks(""))
    assert "no say in which step" not in capsys.readouterr().err
    planned(base, two_tasks("", validation_size=0, validation_fraction=0.0))
    said = "no say in which step is best, without a validation split: writing\n"
    assert capsys.readouterr().err == said


def test_selection_averages_the_trained_tasks_that_have_the_metric(base):
    tree = two_tasks("")
    tree["train"]["select_by"] = "exact_match"
    assert planned(base, tree)[2].selecting == ("rating", "writing")
    tree["train"]["select_by"] = "accuracy"
    assert planned(base, tree)[2].selecting == ("rating",)
    tree["data"]["tasks"][1]["weight"] = 0.0
    tree["train"]["select_by"] = "exact_match"
    assert planned(base, tree)[2].selecting == ("rating",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train__select_by": "rouge1"}, "select_by=rouge1: no task that is trained"),
        (
            {"train__select_by": "accuracy", "train__eval_metrics": ["loss"]},
            "select_by=accuracy: no task that is trained has a validation split that is scored by",
        ),
    ],
)
def test_a_choice_by_what_is_not_scored_is_refused(base, changes, says):
    with pytest.raises(InputError, match=says):
        planned(base, run_tree("", **changes))


@pytest.mark.parametrize("option", [{"select_by": "accuracy"}, {"patience": 2}])
def test_without_a_validation_split_nothing_can_be_chosen(base, option):
    tree = run_tree("")
    tree["data"]["tasks"][0] |= {"validation_size": 0, "validation_fraction": 0.0}
    _, _, plan = planned(base, tree)
    assert (plan.packed, plan.tasks, plan.selecting) == (None, (), ())
    assert [prompt.task for prompt in plan.prompts] == ["rating"] * 4  # of the training split
    tree["train"] |= option
    with pytest.raises(InputError, match="no task that is trained has a validation split; give"):
        planned(base, tree)


def test_a_metric_that_no_task_can_have_is_refused(base):
    tree = two_tasks("")
    del tree["data"]["tasks"][0]
    tree["train"]["eval_metrics"] = ["accuracy"]
    with pytest.raises(InputError, match=r"accuracy: no task with .* can be scored by it"):
        planned(base, tree)


def test_validation_looks_at_the_first_items_of_the_trained_tasks(base, mesh):
    """Loss, scores and cost follow from eval_items; what is only evaluated is in no loss."""
    tree = two_tasks("", weight=0.0)
    tree["train"] |= {"eval_items": 4, "select_by": "accuracy"}
    tree["train"]["eval_metrics"] = ["accuracy", "token_accuracy"]
    config, data, plan = planned(base, tree)
    values = validate(config, plan, base, mesh)
    first = data.tasks[0].splits["validation"][:4]
    encoded = [data.chat.encode([(e.messages, e.completion)])[0] for e in first]
    tokens = np.zeros((4, max(len(one.ids) for one in encoded)), np.int32)
    for row, one in zip(tokens, encoded, strict=True):
        row[: len(one.ids)] = one.ids
    logp = np.asarray(jax.nn.log_softmax(base.logits(tokens)))
    nll = weight = 0.0
    for row, one in zip(logp, encoded, strict=True):
        targets = np.flatnonzero(one.trained)
        nll -= row[targets - 1, one.ids[targets]].sum()
        weight += len(targets)
    assert values["validation_loss"] == pytest.approx(nll / weight, rel=1e-5)
    assert {"validation/rating/accuracy", "validation/rating/token_accuracy",
            "validation/writing/token_accuracy"} <= values.keys()  # fmt: skip
    assert values["validation_accuracy"] == values["validation/rating/accuracy"]
    assert values["validation/rating/accuracy"] in (0, 0.25, 0.5, 0.75, 1)


def test_samples_are_of_each_task_in_turn_and_are_what_the_model_generates(base, mesh):
    tree = two_tasks("")
    tree["train"]["num_samples"] = 3
    tree["evaluation"]["max_new_tokens"] = 7
    _, data, plan = planned(base, tree)
    found = sample(plan, base, mesh)
    assert [one["task"] for one in found] == ["rating", "writing", "rating"]
    second = data.tasks[1].splits["validation"][0]
    assert found[1]["reference"] == second.completion
    assert found[1]["prompt"] == base.chat.prompt_text(second.messages)
    (said,) = base.generate([second.messages[0]["content"]], max_new_tokens=7)
    assert found[1]["completion"] == said
    tree["train"]["num_samples"] = 0
    assert planned(base, tree)[2].prompts == ()


@pytest.mark.parametrize(
    ("by", "value", "score"),
    [("loss", 2.0, -2.0), ("accuracy", 0.5, 0.5), ("perplexity", 3.0, -3.0),
     ("loss", math.nan, -math.inf), ("accuracy", math.nan, -math.inf)],
)  # fmt: skip
def test_scores_know_which_way_is_better(by, value, score):
    assert oriented_score(by, {deciding_key(by): value}) == score
    assert oriented_score(by, {}) is None


def checkpointed(folder, scores):
    """Checkpoints of a run whose steps had these scores; stops where `is_over` says so."""
    settings = TrainConfig(eval_every=10, patience=2, select_by="accuracy")
    checkpoints = Checkpoints(folder)
    for step, score in scores.items():
        state = TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.zeros(2)}, {"m": jnp.zeros(2)})
        checkpoints.save(state, score)
        if is_over(settings, checkpoints):
            break
    return settings, checkpoints


@pytest.mark.parametrize(
    ("scores", "last", "best"),
    [
        ({10: 0.1, 20: 0.3, 30: 0.2, 40: 0.3, 50: 0.9}, 40, 20),  # equal is not better
        ({10: 0.1, 20: 0.0, 30: 0.2, 40: 0.1, 50: 0.3}, 50, 50),
        ({10: 0.1, 15: None, 20: 0.0, 25: None, 30: 0.0, 40: 0.9}, 30, 10),
        ({10: -math.inf, 20: -math.inf, 30: -math.inf, 40: 0.5}, 30, 10),
        ({15: None, 30: None, 45: None}, 45, 45),
    ],
)
def test_training_stops_after_patience_validations_without_a_better_one(
    tmp_path, scores, last, best
):
    settings, checkpoints = checkpointed(tmp_path, scores)
    chosen = choose(settings, checkpoints, num_steps=60)
    assert (chosen.last_step, chosen.step) == (last, best)
    said = chosen.to_json()
    value = scores[best]
    if value is None:
        assert (said["by"], "value" in said) == ("last step", False)
        assert "no step that was kept has a validation score, so the last" in said["why"]
    else:
        assert said["by"] == "accuracy"
        assert said.get("value") == (value if math.isfinite(value) else None)
        assert f"stopped at step {last} of 60" in said["why"]
        assert ("no validation gave a number" in said["why"]) == math.isinf(value)
    json.dumps(said, allow_nan=False)
    # Whoever goes on from these checkpoints sees the same.
    again = Checkpoints(tmp_path)
    assert is_over(settings, again) == is_over(settings, checkpoints)
    assert not is_over(TrainConfig(eval_every=10), again)


def test_a_single_validation_chooses_nothing_and_says_so(tmp_path):
    settings, checkpoints = checkpointed(tmp_path, {30: 0.4})
    settings = dataclasses.replace(settings, eval_every=0, patience=0)
    chosen = choose(settings, checkpoints, num_steps=30)
    assert chosen.why == "the last step, the only one that was validated"


def worsening(model):
    """A rate so high that the first validation is the best: the run stops at step 6 of 9."""
    tree = run_tree(model, optimizer__peak_lr=3.0, optimizer__warmup_steps=0)
    tree["optimizer"] |= {"clip_norm": 0.0, "schedule": "constant"}
    tree["train"] = {"num_steps": 9, "batch_size": 8, "eval_every": 2, "patience": 2,
                     "eval_metrics": ["accuracy"], "num_samples": 2}  # fmt: skip
    tree["evaluation"] = {"shots": [0], "max_new_tokens": 4, "metrics": ["accuracy"]}
    return build_run_config(tree)


@pytest.fixture(scope="module")
def stopped(tiny_llama, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped") / "W"
    seen = SimpleNamespace(workdir=workdir, splits=[], tested={})

    def noted(model, *args, name, split, **more):
        seen.splits.append(split)
        if split == "test":
            seen.tested[name] = model.params
        return evaluate(model, *args, name=name, split=split, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "evaluate", noted)
        patch.setattr(run, "evaluate", noted)
        train(worsening(tiny_llama), workdir)
    return seen


def test_a_run_that_stops_early_says_so_and_scores_the_chosen_step(stopped):
    results = json.loads((stopped.workdir / "results.json").read_text())
    chosen = results["chosen"]
    found = read_run(stopped.workdir)
    losses = {m["step"]: m["validation_loss"] for m in found.metrics if "validation_loss" in m}
    assert list(losses) == [0, 2, 4, 6]
    assert chosen == {
        "step": 2, "by": "loss", "value": losses[2], "last_step": 6,
        "why": "the best validation loss; training stopped at step 6 of 9, after 2 validations "
        "that were no better",
    }  # fmt: skip
    assert all("validation/rating/accuracy" in m for m in found.metrics if "validation_loss" in m)
    best = load_workdir(stopped.workdir, which="2").params
    for x, y in zip(jax.tree.leaves(best), jax.tree.leaves(stopped.tested["tuned"]), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_workdir_is_its_chosen_step(stopped, base):
    """Whoever names it: `ift evaluate`, `ift generate`, runs that go on, weights between."""
    best, last = (load_workdir(stopped.workdir, which=which).params for which in ("2", "latest"))
    half = load_workdir(stopped.workdir, share=0.5).params
    for load in (load_workdir, load_pretrained):
        found = load(stopped.workdir).params
        trees = map(jax.tree.leaves, (found, best, last, base.params, half))
        for x, y, z, start, between in zip(*trees, strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.abs(np.subtract(x, z)).max() > 0
            middle = (np.asarray(start) + np.asarray(y)) / 2
            np.testing.assert_allclose(between, middle, rtol=1e-5, atol=1e-6)


def test_a_metric_chooses_another_step_than_the_loss(tiny_llama, tmp_path, monkeypatch):
    """The loss falls until the end; answers were right most often at step 2."""
    tree = run_tree(tiny_llama)
    tree["train"] = {"num_steps": 4, "batch_size": 8, "eval_every": 1, "select_by": "exact_match",
                     "patience": 1}  # fmt: skip
    tree["evaluation"] = {"shots": [0], "max_new_tokens": 4, "metrics": ["exact_match"]}
    right, calls = [0.1, 0.2, 0.9, 0.3, 0.3], []

    def validated(*_):
        calls.append(len(calls))
        number = calls[-1]
        return {"validation_loss": 5.0 - number, deciding_key("exact_match"): right[number]}

    monkeypatch.setattr(loop, "validate", validated)
    train(build_run_config(tree), tmp_path / "W")
    chosen = json.loads((tmp_path / "W" / "results.json").read_text())["chosen"]
    assert (chosen["step"], chosen["by"], chosen["value"]) == (2, "exact_match", 0.9)
    assert chosen["last_step"] == 3
    assert chosen["why"].startswith("the best validation exact match; training stopped at step 3")


def test_the_test_split_is_scored_once_and_only_after_training(stopped):
    # Validation of steps 0, 2, 4 and 6; then the chosen and the base model on test.
    assert stopped.splits == ["validation"] * 4 + ["test"] * 2


def test_samples_follow_the_same_prompts_from_the_base_model_on(stopped, base):
    samples = read_run(stopped.workdir).samples
    assert [s["step"] for s in samples] == [0, 0, 2, 2, 4, 4, 6, 6]
    prompts = [[(s["task"], s["template"], s["prompt"], s["reference"]) for s in samples[i : i + 2]]
               for i in range(0, 8, 2)]  # fmt: skip
    assert prompts == [prompts[0]] * 4
    assert len({s["completion"] for s in samples}) > 2
    asked = samples[0]["prompt"].split("user\n")[1].split("<|im_end|>")[0]
    assert samples[0]["completion"] == base.generate([asked], max_new_tokens=4)[0]


def test_early_stopping_is_exact_under_resume(stopped, tiny_llama, tmp_path):
    """Killed before the stop, and again right behind it, a run ends as the undisturbed one did."""
    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        for at in (4, 6):

            def interrupted(self, state, score, *frozen, at=at):
                save(self, state, score, *frozen)
                if int(state.step) == at:
                    raise KeyboardInterrupt

            patch.setattr(Checkpoints, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(worsening(tiny_llama), tmp_path / "W")
    train(worsening(tiny_llama), tmp_path / "W")
    for file in ("results.json", "samples.jsonl"):
        assert (tmp_path / "W" / file).read_text() == (stopped.workdir / file).read_text()
    logged = [
        [(m["step"], m.get("loss"), m.get("validation_loss")) for m in read_run(w).metrics]
        for w in (stopped.workdir, tmp_path / "W")
    ]
    assert logged[0] == logged[1]


def test_what_cannot_be_merged_is_not_to_be_interpolated(tiny_llama, tmp_path):
    tree = run_tree(tiny_llama)
    tree["peft"] = {"method": "prompt"}
    tree["evaluation"]["interpolation"] = [0.5]
    says = "config.evaluation.interpolation: an adapter of method 'prompt' cannot be merged"
    with pytest.raises(InputError, match=says):
        train(build_run_config(tree), tmp_path / "W")
    assert not (tmp_path / "W" / "metrics.jsonl").exists()


def test_metrics_of_a_validation_that_there_is_not_are_refused(base):
    tree = run_tree("")
    tree["data"]["tasks"][0] |= {"validation_size": 0, "validation_fraction": 0.0}
    tree["train"]["eval_metrics"] = ["loss"]
    assert planned(base, tree)[2].tasks == ()
    tree["train"]["eval_metrics"] = ["accuracy"]
    with pytest.raises(InputError, match="eval_metrics: accuracy: no task has a validation split"):
        planned(base, tree)


def test_token_accuracy_of_all_targets_and_its_mean_over_tasks_are_told_apart(
    base, mesh, monkeypatch
):
    """Answers of many tokens count as much as those of one only in the mean."""
    tree = two_tasks("", validation_size=6)
    tree["train"] |= {"eval_metrics": ["token_accuracy"], "select_by": "token_accuracy"}
    config, _, plan = planned(base, tree)

    def scored(_, data, *__, **___):
        [task] = [one.config.name for one in data.tasks]
        value = {"rating": 0.2, "writing": 0.8}[task]
        return [{"task": task, "metric": "token_accuracy", "value": value}]

    monkeypatch.setattr(validation, "evaluate", scored)
    monkeypatch.setattr(validation, "divided", lambda _: (1.0, 0.7))
    values = validate(config, plan, base, mesh)
    assert values["validation_token_accuracy"] == 0.7
    assert values["validation_mean_token_accuracy"] == pytest.approx(0.5)
    assert oriented_score("token_accuracy", values) == pytest.approx(0.5)


def test_samples_of_the_start_are_made_once_also_without_validation(tiny_llama, tmp_path):
    """Killed behind a checkpoint, the run does not sample its tuned weights as step 0."""
    tree = run_tree(tiny_llama, train__num_steps=4, train__save_every=2, train__num_samples=2)
    tree["data"]["tasks"][0] |= {"validation_size": 0, "validation_fraction": 0.0}
    tree["evaluation"] = {"shots": [0], "max_new_tokens": 4}
    config = build_run_config(tree)
    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(self, state, *rest):
            save(self, state, *rest)
            raise KeyboardInterrupt

        patch.setattr(Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "W")
    begun = read_run(tmp_path / "W").samples
    train(config, tmp_path / "W")
    samples = read_run(tmp_path / "W").samples
    assert [s["step"] for s in samples] == [0, 0, 3, 3, 4, 4]
    assert samples[:2] == begun
