"""What a study says of predictions whose gains, losses and ties are known."""

from pathlib import Path

import pytest
from tiny_study import study_tree

from ift_jax.config import build_run_config
from ift_jax.evaluation.intervals import share
from ift_jax.evaluation.predictions import Line, Prediction
from ift_jax.study.findings import Model, findings
from ift_jax.study.outcome import reference_run
from ift_jax.study.plan import make_plan

RUNS = [
    {"name": "first", "tasks": ["topic", "names"]},
    {"name": "single", "after": "first"},
    {"name": "kept", "after": "first"},
    {"name": "worse", "after": "first"},
    {"name": "alike", "after": "first"},
    {"name": "curve", "train_sizes": [4, 10, 50], "scores": ["rating"]},
]  # fmt: skip
COUNT = 100


def lines(label, task, num_right, *, shots=0, seed=0):
    """The first items are right, so that models differ in as few items as they can."""
    return [
        Line(
            label, task, "test", shots, seed, shots, "t", str(n), ("accuracy",), "?",
            Prediction(
                "yes", ranked="yes" if n < num_right else "no", choices=("yes", "no"),
                scores=(0.0, 0.0), num_choice_tokens=(1, 1),
            ),
        )
        for n in range(COUNT)
    ]  # fmt: skip


@pytest.fixture
def ask(tmp_path):
    def asked(right, results=None, seeds=(0,)):
        """The answer by question; `right` has of each label the right items of each task."""
        tree = study_tree(Path("m"), Path("f"), runs=RUNS, seeds=list(seeds))
        tree["data"]["tasks"].append({**tree["data"]["tasks"][1], "name": "names"})
        config = build_run_config(tree)
        plan = make_plan(config, tmp_path)
        models = {}
        for label, tasks in right.items():
            name = label.split(" ")[0]
            own = [p for p in plan if p.run.name == name]
            if " of " in label:
                own = [p for p in own if p.train_size == int(label.split(" of ")[1])]
            shots = int(label.split()[2]) if " at " in label else 0
            said = [
                line
                for seed in (seeds if own else (0,))
                for task, numbers in tasks.items()
                for line in lines(
                    label, task, numbers if isinstance(numbers, int) else numbers[seed],
                    shots=shots, seed=seed,
                )
            ]  # fmt: skip
            models[label] = Model(name, label, own, said)
        whole = {"changes": [], "retained": [], "probes": [], "matrices": [], **(results or {})}
        named = {m["model"] for m in whole["matrices"]}
        whole["matrices"] += [{"model": r["name"]} for r in RUNS[:-1] if r["name"] not in named]
        found = findings(config, whole, models, reference_run(config))
        return {one["question"]: one["answer"] for one in found}

    return asked


def models(**changes):
    """Right items of 100: prompts of 5 examples help, of 2 hurt, one changes nothing."""
    found = {
        "base": 20, "base at 1 shots": 20, "base at 2 shots": 5, "base at 5 shots": 60,
        "curve of 4": 30, "curve of 10": 88, "curve of 50": 90,
    }  # fmt: skip
    rated = {label: {"rating": right} for label, right in {**found, **changes}.items()}
    tuned = {
        "single": {"rating": 80, "topic": 10, "names": 50},
        "kept": {"rating": 80, "topic": 70, "names": 50},
        "worse": {"rating": 40, "topic": 2, "names": 20},
        "alike": {"rating": 95, "topic": 10, "names": 51},
    }
    return {**rated, **tuned}


def test_prompts_help_hurt_or_show_no_difference(ask):
    said = ask(models())["Does prompting help?"]
    assert said.startswith("On rating (accuracy) the base model scores 20 [")
    assert "] at 0 shots, 20 [" in said
    assert "] at 1 shot, 5 [" in said
    assert (
        "1 shot against 0: +0.0 [+0.0, +0.0], no difference shows; 2 shots against 0: −15.0 ["
        in said
    )
    two, five = said.split("; ")[1:]
    assert two.endswith("], hurts")
    assert five.startswith("5 shots against 0: +40.0 [")
    assert five.endswith("], helps.")


def test_examples_suffice_where_the_largest_size_is_no_better(ask):
    said = ask(models())["How many examples suffice?"]
    assert said.startswith("rating (accuracy) by training examples, curve: 4: 30 [")
    assert "From 10 on no difference from 50 shows." in said
    assert said.endswith("10 are the fewest that beat every prompt of the base model.")


def test_a_size_must_beat_every_prompt(ask):
    said = ask(models(**{"base at 5 shots": 90}))["How many examples suffice?"]
    assert said.endswith("None of them beats every prompt of the base model.")
    said = ask(models(**{"base at 5 shots": 90, "curve of 50": 100}))["How many examples suffice?"]
    assert "10 are still worse than 50, so more may help." in said
    assert said.endswith("50 are the fewest that beat every prompt of the base model.")


def test_a_score_has_the_interval_that_it_has_in_the_table(ask):
    """Of none right a resample is none right, too, which says nothing about the model."""
    said = ask(models(**{"curve of 4": 0}))["How many examples suffice?"]
    low, high = share(0, COUNT)[1:]
    assert f"4: 0 [{100 * low:.0f}, {100 * high:.0f}]" in said
    assert "4: 0 [0, 4]" in said


def test_what_was_lost_gained_and_does_not_count_is_named(ask):
    def change(task, value, low, high, metric="accuracy"):
        return {"model": "single", "task": task, "metric": metric,
                "value": value, "low": low, "high": high}  # fmt: skip

    results = {
        "retained": ["topic", "names"],
        "changes": [
            change("rating", 0.5, 0.4, 0.6),
            change("topic", -0.6, -0.7, -0.5),
            change("topic", 0.9, 0.8, 1.0, "macro_f1"),  # a task counts by its first metric
            change("names", 0.2, 0.1, 0.3),
            {**change("names", -0.9, -1.0, -0.8), "model": "kept"},
        ],
        "probes": [{"task": task, "counted": True} for task in ("topic", "names", "nli")],
        "matrices": [{"model": "single", "mean_change": {"value": -0.2, "low": -0.3, "high": 0.0}}],
    }
    assert ask(models(), results)["What was forgotten?"] == (
        "After single: topic (accuracy) −60.0 [−70.0, −50.0], names (accuracy) +20.0 [+10.0, "
        "+30.0]. Lost: topic. Gained: names. Mean change: −20.0 [−30.0, +0.0]. Not counted, not "
        "being beyond doubt above a baseline: nli."
    )
    nothing = {**results, "changes": [change("topic", -0.1, -0.2, 0.1)], "matrices": []}
    said = ask(models(), nothing)["What was forgotten?"]
    assert "Lost: nothing that shows. Not counted" in said


def test_a_remedy_helps_where_what_is_retained_gained_beyond_doubt(ask):
    found = ask(models(), {"retained": ["topic", "names"]})["What helped against it?"]
    assert found.startswith("Against single, on the same items: kept: rating +0.0 [+0.0, +0.0], ")
    kept, worse, alike = found.removesuffix(".").split("; ")
    assert "retained score +30.0 [" in kept
    assert kept.endswith("], helps")
    assert "worse: rating −40.0 [" in worse
    assert "retained score −19.0 [" in worse
    assert worse.endswith("], makes it worse")
    assert "alike: rating +15.0 [" in alike
    assert alike.endswith("], no difference shows")


def test_several_seeds_are_averaged(ask):
    right = {**models(), "single": {"rating": (60, 80), "topic": (0, 20), "names": (40, 60)}}
    for label in ("kept", "worse", "alike"):
        right[label] = {task: (count, count) for task, count in right[label].items()}
    for label in ("curve of 4", "curve of 10", "curve of 50"):
        right[label] = {"rating": (right[label]["rating"],) * 2}
    found = ask(right, {"retained": ["topic", "names"]}, seeds=(0, 1))["What helped against it?"]
    kept = found.split("; ")[0]
    assert "kept: rating +10.0 [" in kept
    assert "retained score +30.0 [" in kept
