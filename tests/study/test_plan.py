"""What a study will do is known, and checked, before anything runs."""

import dataclasses

import pytest
from tiny_study import study_tree

from ift_jax.config import RunConfig, build_run_config
from ift_jax.errors import InputError
from ift_jax.study.config import StudyConfig
from ift_jax.study.outcome import reference_run
from ift_jax.study.plan import make_plan

QLORA = {"model.quantize": "int8", "peft.method": "lora"}


def config(tmp_path, **study) -> RunConfig:
    return build_run_config(study_tree(tmp_path / "model", tmp_path, **study))


def test_every_run_has_a_workdir_for_each_seed_and_size(tmp_path):
    plan = make_plan(config(tmp_path, seeds=[0, 3]), tmp_path / "W")
    assert [planned.key for planned in plan] == [
        f"{name}-seed{seed}"
        for seed in (0, 3)
        for name in ("first", "single", "replay", "lora", "more", "curve-4", "curve-10")
    ]
    by_key = {planned.key: planned for planned in plan}
    single = by_key["single-seed3"]
    assert (single.after, single.stage) == ("first-seed3", 2)
    assert single.config.model.path == str(tmp_path / "W" / "runs" / "first-seed3")
    assert single.config.train.seed == 3
    assert (by_key["more-seed0"].stage, by_key["curve-4-seed0"].stage) == (3, 1)
    assert [t.train_size for t in by_key["curve-10-seed0"].config.data.tasks] == [10, 0]
    assert by_key["curve-4-seed0"].scores == ("rating",)
    assert single.scores == ("rating", "topic")
    assert all(planned.config.study == StudyConfig() for planned in plan)


def test_a_run_trains_its_tasks_alone_and_keeps_the_others_test_splits(tmp_path):
    plan = {p.run.name: p for p in make_plan(config(tmp_path), tmp_path)}
    base = config(tmp_path).data.tasks
    rating, topic = plan["single"].config.data.tasks
    assert rating == base[0]
    assert topic == dataclasses.replace(base[1], weight=0.0)
    assert plan["single"].config.train.eval_tasks == "trained"
    rating, topic = plan["first"].config.data.tasks
    assert (rating.weight, topic) == (0, base[1])
    assert plan["first"].config.train.num_steps == 40
    rating, topic = plan["replay"].config.data.tasks
    assert (rating.replay, topic.replay, topic.weight) == (False, True, 1)
    assert plan["replay"].config.data.mixture.replay_share == 0.3


def test_a_run_is_scored_on_no_more_than_what_it_goes_on_from(tmp_path):
    runs = [{"name": "a", "scores": ["rating"]}, {"name": "b", "after": "a"}]
    with pytest.raises(InputError, match=r"b: is scored on topic, and a, .* scores of a"):
        make_plan(config(tmp_path, runs=runs), tmp_path)
    runs[1]["scores"] = ["rating"]
    assert len(make_plan(config(tmp_path, runs=runs), tmp_path)) == 2


def test_a_run_changes_any_field_by_its_name(tmp_path):
    run = {"name": "a", "config": {"data.tasks[1].weight": 0.5, "data.decontaminate": ["topic"]},
           "tasks": ["rating", "topic"]}  # fmt: skip
    [planned] = make_plan(config(tmp_path, runs=[run]), tmp_path)
    assert planned.config.data.tasks[1].weight == 0.5
    assert planned.config.data.decontaminate == ("topic",)
    same = dataclasses.replace(planned.config.data.tasks[1], weight=1.0)
    assert same == config(tmp_path).data.tasks[1]


def test_a_task_that_a_run_trains_has_a_weight(tmp_path):
    """As a config of `ift train` has its probes, with weight 0, a run would draw nothing of it."""
    tree = study_tree(tmp_path / "model", tmp_path, runs=[{"name": "a"}])
    tree["data"]["tasks"][1]["weight"] = 0.0
    [alone] = make_plan(build_run_config(tree), tmp_path)
    assert alone.trains == ("rating",)
    run = {"name": "b", "tasks": ["rating", "topic"]}
    tree["study"]["runs"] = [run]
    with pytest.raises(InputError, match=r"b: trains topic, whose weight is 0, .* give the task"):
        make_plan(build_run_config(tree), tmp_path)
    run["config"] = {"data.tasks[1].weight": 0.5}
    [both] = make_plan(build_run_config(tree), tmp_path)
    assert [task.weight for task in both.config.data.tasks] == [1, 0.5]


def test_what_lies_between_is_asked_for_by_the_runs(tmp_path):
    tree = study_tree(tmp_path / "model", tmp_path)
    tree["evaluation"]["interpolation"] = [0.5]
    with pytest.raises(InputError, match=r"config\.evaluation\.interpolation: .*interpolations of"):
        make_plan(build_run_config(tree), tmp_path)


def test_others_are_compared_with_the_first_plain_tuning_scored_on_everything(tmp_path):
    every = [{"name": "a"}, {"name": "b", "tasks": ["topic"]},
             {"name": "c", "after": "b", "scores": ["rating"]},
             {"name": "d", "after": "b", "replay": ["topic"],
              "config": {"data.mixture.replay_share": 0.1}},
             {"name": "e", "after": "b"}, {"name": "f", "after": "b"}]  # fmt: skip

    def chosen(*runs):
        found = reference_run(config(tmp_path, runs=list(runs)))
        return found and found.name

    assert chosen(*every) == "e"
    assert chosen(*every[:4]) == "a"
    assert chosen(*every[1:4]) is None


@pytest.mark.parametrize(
    ("study", "says"),
    [
        ({"runs": []}, "config.study.runs: no run is given"),
        ({"task": "ratings"}, "config.study.task: no task 'ratings'; there are rating, topic"),
        ({"probes": ["a"]}, "config.study.probes: no task 'a'; there are rating, topic"),
        ({"seeds": []}, "config.study.seeds: expected different numbers, got ()"),
        ({"seeds": [2**32]}, "config.study.seeds: expected 0 to 2**32 - 1, got 4294967296"),
        ({"seeds": [1, 1]}, "config.study.seeds: expected different"),
        ({"runs": [{"name": "a b"}]}, "config.study.runs: a run's name is a folder's: letters"),
        ({"runs": [{"name": "base"}]}, "config.study.runs: base: the name stands for something"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "config.study.runs: a: is there twice"),
        ({"runs": [{"nam": "a"}]}, "config.study.runs[0].nam: no such field; did you mean name?"),
        ({"runs": [{"after": "a"}]}, "config.study.runs: a run's name is a folder's"),
        ({"runs": [{"name": "a", "after": "b"}]},
         "config.study.runs: a.after: no run 'b' stands before it; there are none"),
        ({"runs": [{"name": "a", "train_sizes": [1, 2]}, {"name": "b", "after": "a"}]},
         "config.study.runs: b.after: a has several train_sizes"),
        ({"runs": [{"name": "a", "train_sizes": [0]}]}, "a.train_sizes: expected different num"),
        ({"runs": [{"name": "a", "train_sizes": [4], "tasks": ["topic"]}]},
         "a.train_sizes: are numbers of examples of rating, which it does not train; add it to ta"),
        ({"runs": [{"name": "a", "train_sizes": [4], "scores": ["topic"]}]},
         "a.scores: a learning curve is of rating; add it to them, or leave out train_sizes"),
        ({"runs": [{"name": "a", "interpolations": [1.0]}]}, "a.interpolations: expected diff"),
        ({"runs": [{"name": "a", "tasks": ["b"]}]}, "config.study.runs: a.tasks: no task 'b'"),
        ({"runs": [{"name": "a", "replay": ["b"]}]}, "config.study.runs: a.replay: no task 'b'"),
        ({"runs": [{"name": "a", "scores": ["b"]}]}, "config.study.runs: a.scores: no task 'b'"),
        ({"runs": [{"name": "a", "config": {"train.num_stps": 1}}]},
         "config.study.runs[0].config: config.train.num_stps: no such field; did you mean num_"),
        ({"runs": [{"name": "a", "config": {"train.num_steps": "1"}}]},
         "config.study.runs: a: config.train.num_steps: expected int, got '1' (str)"),
        ({"runs": [{"name": "a", "config": {"train.batch_size": 0}}]},
         "config.study.runs: a: config.train.batch_size: expected 1 or more"),
        ({"runs": [{"name": "a", "config": {"data.tasks[2].weight": 1.0}}]},
         "config.study.runs[0].config: data.tasks[2].weight: there is no such entry"),
        ({"runs": [{"name": "a", "config": {"train.seed": 1}}]},
         "config.study.runs[0].config: train.seed is the study's to set, not a run's"),
        ({"runs": [{"name": "a", "config": {"mesh.fsdp": 2}}]},
         "config.study.runs[0].config: mesh.fsdp is the study's to set, not a run's"),
        ({"runs": [{"name": "a", "config": {"evaluation.max_items": 1}}]},
         "evaluation.max_items is the study's to set"),
        ({"runs": [{"name": "a", "config": QLORA}, {"name": "b", "after": "a", "config": QLORA}]},
         "config.study.runs: b: config.model.quantize='int8': the base of a, which it goes on"),
        ({"runs": [{"name": "a", "config": {"train": {}}}]}, "config.train: is a section; set one"),
        ({"runs": [{"name": "a", "config": 3}]}, "config.study.runs[0].config: expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_named(tmp_path, study, says):
    with pytest.raises(InputError) as caught:
        make_plan(config(tmp_path, **study), tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_quantizes_what_it_goes_on_from_where_it_says_so(tmp_path):
    tree = study_tree(
        tmp_path / "model",
        tmp_path,
        runs=[{"name": "a", "config": {"peft.method": "lora"}},
              {"name": "b", "after": "a"},
              {"name": "c", "after": "b", "config": QLORA}],
    )  # fmt: skip
    tree["model"]["quantize"] = "nf4"
    plan = make_plan(build_run_config(tree), tmp_path)
    assert [planned.config.model.quantize for planned in plan] == ["nf4", "none", "int8"]
