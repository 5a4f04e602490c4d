"""The config that a user writes becomes frozen dataclasses, or an error that names the field."""

import dataclasses
import doctest
import json
import math
from pathlib import Path

import pytest
from conftest import ROOT

from ift_jax.commands import config_flag
from ift_jax.commands.config_flag import config_arguments, config_file, known_configs
from ift_jax.config import (
    RunConfig,
    TrainConfig,
    build_run_config,
    default_config,
    differences,
    field_type,
    read_run_config,
    task_config,
    to_json,
)
from ift_jax.errors import InputError

CONFIGS = ", ".join(known_configs())


def refusal(tree):
    with pytest.raises(InputError) as caught:
        build_run_config(tree)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(file):
    """The config of a file, or each of them where it has several to name."""
    variables = {"__file__": file}
    exec(compile(Path(file).read_text(), file, "exec"), variables)
    if "names" in variables:
        return [variables["get_config"](name) for name in variables["names"]()]
    return [variables["get_config"]()]


# Building


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            {"train": {"num_stps": 3}},
            "config.train.num_stps: no such field; did you mean num_steps?",
        ),
        ({"trian": {}}, "config.trian: no such field; did you mean train?"),
        ({"zzz": {}}, "config.zzz: no such field; there are data, evaluation, mesh, model, neutra"),
        (
            {"data": {"tasks": [{"name": "a"}, {"nam": "b"}]}},
            "config.data.tasks[1].nam: no such fi",
        ),
        ({"train": {"num_steps": "3"}}, "config.train.num_steps: expected int, got '3' (str)"),
        ({"train": {"num_steps": 3.0}}, "config.train.num_steps: expected int, got 3.0 (float)"),
        ({"train": {"num_steps": True}}, "config.train.num_steps: expected int, got True (bool)"),
        ({"train": {"num_epochs": True}}, "config.train.num_epochs: expected float, got True"),
        ({"train": {"num_steps": None}}, "config.train.num_steps: expected int, got None"),
        ({"data": {"pack": 1}}, "config.data.pack: expected bool, got 1 (int)"),
        ({"data": {"path": 1}}, "config.data.path: expected str, got 1 (int)"),
        ({"data": {"tasks": {"name": "a"}}}, "config.data.tasks: expected tuple"),
        ({"data": {"tasks": ["a"]}}, "config.data.tasks[0]: expected a section with fields"),
        ({"data": {"tasks": [{"source": 3}]}}, "config.data.tasks[0].source: expected str | tuple"),
        ({"data": {"tasks": [{"metrics": [3]}]}}, "config.data.tasks[0].metrics[0]: expected str"),
        ({"data": {"on_too_long": 3}}, "config.data.on_too_long: expected"),
        ({"data": {"on_too_long": "no"}}, "config.data.on_too_long: expected drop, truncate or er"),
        ({"evaluation": {"shots": [0, "5"]}}, "config.evaluation.shots[1]: expected int, got '5'"),
        ({"evaluation": {"shots": 5}}, "config.evaluation.shots: expected tuple"),
        ({"model": []}, "config.model: expected a section with fields, got []"),
    ],
)
def test_a_wrong_field_is_named(tree, says):
    assert says in refusal(tree)


def test_whole_numbers_pass_for_floats_and_lists_for_tuples():
    config = build_run_config(
        {"train": {"num_epochs": 2}, "evaluation": {"shots": [0, 5]}, "optimizer": {"peak_lr": 1}}
    )
    assert config.train.num_epochs == 2.0
    assert type(config.train.num_epochs) is type(config.optimizer.peak_lr) is float
    assert config.evaluation.shots == (0, 5)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.jsonl", "a.jsonl"),
        (["a.jsonl", "b.jsonl"], ("a.jsonl", "b.jsonl")),
        ('("a.jsonl", "b,c.jsonl")', ("a.jsonl", "b,c.jsonl")),  # as the command line has it
        ("(a).jsonl", "(a).jsonl"),
        ("[ab].jsonl", "[ab].jsonl"),
    ],
)
def test_a_source_is_one_file_or_several(source, expected):
    [task] = build_run_config({"data": {"tasks": [{"source": source}]}}).data.tasks
    assert task.source == expected


def test_the_examples_of_the_config_flag_are_true():
    assert doctest.testmod(config_flag) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_steps": -1}, "config.train.num_steps: must not be negative"),
        ({"seed": -1}, "config.train.seed: expected 0 to 2**32 - 1, got -1"),
        ({"seed": 2**32}, "config.train.seed: expected 0 to 2**32 - 1, got 4294967296"),
        ({"num_epochs": math.nan}, "config.train.num_epochs: expected a finite number, got nan"),
        ({"num_epochs": 0.0}, "config.train: num_steps and num_epochs are both 0"),
        ({"batch_size": 0}, "config.train.batch_size: expected 1 or more"),
        ({"batch_size": 6, "micro_batches": 4}, "config.train.batch_size=6 is not a multiple of"),
        (
            {"select_by": "f1"},
            "config.train.select_by: loss, or a metric: no metric 'f1'; there are",
        ),
        ({"eval_metrics": ("f1",)}, "config.train.eval_metrics: loss, or a metric: no metric 'f1'"),
        ({"eval_tasks": "none"}, "config.train.eval_tasks: expected all or trained, got 'none'"),
        ({"eval_items": -1}, "config.train.eval_items: must not be negative"),
        ({"patience": -1}, "config.train.patience: must not be negative"),
        ({"patience": 2}, "config.train.patience=2: counts validations on the way; set eval_every"),
    ],
)
def test_values_that_cannot_work_are_refused(changes, says):
    assert says in refusal({"train": changes})


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"remedies": {"kl_weight": -1.0}}, "config.remedies.kl_weight: expected 0 or more"),
        ({"remedies": {"text_rows": 0}}, "config.remedies.text_rows: expected 1 or more"),
        ({"remedies": {"ewc_weight": 1.0}}, "config.remedies: ewc_weight needs fisher_tasks"),
        ({"remedies": {"fisher_tasks": ["a"]}}, "config.remedies: ewc_weight needs fisher_tasks"),
        (
            {"remedies": {"ewc_weight": 1.0, "fisher_tasks": ["raing"]},
             "data": {"tasks": [{"name": "rating"}]}},
            "config.remedies.fisher_tasks: no task 'raing'; did you mean rating?",
        ),
        ({"remedies": {"fisher_labels": "own"}}, "fisher_labels: expected sampled or given"),
        (
            {"remedies": {"l2sp_weight": 1.0}, "peft": {"method": "lora"}},
            "config.peft.method=lora does not train them; kl_weight and text_kl_weight work",
        ),
        (
            {"remedies": {"l2sp_weight": 1.0}, "optimizer": {"weight_decay": 0.1}},
            "config.optimizer.weight_decay=0.1 to 0; set it to 0",
        ),
        ({"evaluation": {"interpolation": [1.5]}}, "config.evaluation.interpolation: expected 0"),
        ({"optimizer": {"b1": 1.0}}, "config.optimizer.b1: expected 0 to below 1, got 1.0"),
        ({"optimizer": {"b2": -0.1}}, "config.optimizer.b2: expected 0 to below 1, got -0.1"),
        ({"optimizer": {"epsilon": 0.0}}, "config.optimizer.epsilon: expected above 0, got 0.0"),
        ({"neutral": {"num_texts": -1}}, "config.neutral.num_texts: must not be negative"),
    ],
)  # fmt: skip
def test_remedies_that_cannot_work_are_refused(tree, says):
    assert says in refusal(tree)


def test_remedies_that_work_together_are_not_refused():
    config = build_run_config({"remedies": {"kl_weight": 1.0, "text_kl_weight": 1.0},
                               "peft": {"method": "lora"},
                               "optimizer": {"weight_decay": 0.1}})  # fmt: skip
    assert config.remedies.needs_base
    assert not config.remedies.holds_weights
    assert build_run_config(
        {"remedies": {"kl_weight": 1.0, "l2sp_weight": 1.0}}
    ).remedies.holds_weights


def test_what_is_built_is_frozen():
    config = build_run_config({})
    assert config == RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.num_steps = 3


def test_an_unset_field_is_zero_or_empty_and_never_none():
    """ml_collections cannot override a None from the command line."""

    def leaves(tree):
        for value in tree.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    tree = dataclasses.asdict(RunConfig())
    assert None not in list(leaves(tree))
    assert None not in list(leaves(task_config().to_dict()))
    assert TrainConfig().num_steps == TrainConfig().eval_every == 0
    assert RunConfig().data.path == ""
    assert RunConfig().data.tasks == ()


# config.json


def test_a_config_comes_back_from_its_json(tmp_path):
    for made in (made for name in known_configs() for made in load(config_file(name))):
        config = build_run_config(made.to_dict())
        (tmp_path / "config.json").write_text(to_json(config))
        assert read_run_config(tmp_path) == config
        assert differences(config, read_run_config(tmp_path)) == []
        sections = json.loads(to_json(config))
        assert set(sections) >= {"model", "data", "train", "optimizer", "mesh", "evaluation"}


def test_differences_name_the_field_and_both_values():
    tasks = [{"name": "a", "train_size": 3}, {"name": "b"}]
    old = build_run_config({"data": {"tasks": tasks}})
    new = build_run_config(
        {"train": {"seed": 5}, "data": {"tasks": [{**tasks[0], "train_size": 4}, tasks[1]]}}
    )
    assert differences(old, new) == [
        "config.data.tasks.0.train_size is 3 there and 4 here",
        "config.train.seed is 0 there and 5 here",
    ]
    fewer = build_run_config({"data": {"tasks": tasks[:1]}})
    assert any(
        d.startswith("config.data.tasks.1.name is 'b' there") for d in differences(old, fewer)
    )


def test_a_config_json_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: expected a JSON object, got list"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").write_text('{"train": {"num_stps": 3}}')
    with pytest.raises(InputError, match=r"config\.train\.num_stps: no such field"):
        read_run_config(tmp_path)


# Config files


def test_the_defaults_for_a_config_file_are_those_of_the_dataclasses():
    assert build_run_config(default_config().to_dict()) == RunConfig()


def test_a_task_with_an_unknown_field_is_refused_where_it_is_written():
    with pytest.raises(InputError, match="task_config: no field 'train_sze'; did you mean train_s"):
        task_config(train_sze=3)


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "configs").glob("*.py"))])
def test_every_config_of_ours_builds_and_says_how_to_run_it(name):
    file = config_file(name)
    for made in load(file):
        assert build_run_config(made.to_dict()).data.tasks
    assert f"--config={name}" in Path(file).read_text().split('"""')[1]


def test_a_name_without_slash_is_a_config_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = str(ROOT / "configs" / "amazon_reviews.py")
    assert config_file("amazon_reviews") == ours
    assert config_file("configs/amazon_reviews.py") == ours  # from another working directory
    assert config_file("amazon_reviews:large") == f"{ours}:large"
    Path("amazon_reviews.py").write_text("")
    assert config_file("amazon_reviews.py") == "amazon_reviews.py"
    assert config_file("amazon_reviews") == ours
    Path("configs").mkdir()
    Path("configs/amazon_reviews.py").write_text("")
    assert config_file("configs/amazon_reviews.py") == "configs/amazon_reviews.py"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nosuch", f"--config=nosuch: no such config; there are {CONFIGS}"),
        ("no/such.py", "--config=no/such.py: no such file"),
        ("nosuch.py", "--config=nosuch.py: no such file"),
        ("configs/nosuch.py", "--config=configs/nosuch.py: no such file"),
        ("other/quickstart.py", "--config=other/quickstart.py: no such file"),
        ("", f"--config is missing; name a file or one of {CONFIGS}"),
    ],
)
def test_a_config_that_is_not_there_is_named(name, says):
    with pytest.raises(InputError) as caught:
        config_file(name)
    assert str(caught.value) == says


# The command line


def test_the_config_comes_first_however_it_was_given():
    file = config_file("quickstart")
    for config in (["--config=quickstart"], ["--config", "quickstart"], ["-config=quickstart"]):
        for arguments in (
            [*config, "--config.train.seed=3", "--preview=2"],
            ["--config.train.seed=3", *config, "--preview=2"],
            ["--config.train.seed=3", "--preview=2", *config],
        ):
            assert config_arguments(["ift data", *arguments]) == [
                "ift data", f"--config={file}", "--config.train.seed=3", "--preview=2",
            ]  # fmt: skip


def test_without_a_config_nothing_is_added():
    assert config_arguments(["ift data", "--preview=2"]) == ["ift data", "--preview=2"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.num_stps=3", "config.train.num_stps: no such field; did you mean num_steps?"),
        ("train.num_steps=x", "config.train.num_steps: expected a whole number, got 'x'"),
        ("train.num_steps=2.5", "config.train.num_steps: expected a whole number, got '2.5'"),
        ("optimizer.peak_lr=fast", "config.optimizer.peak_lr: expected a number, got 'fast'"),
        ("data.pack=maybe", "config.data.pack: expected true or false, got 'maybe'"),
        ("train=3", "config.train: is a section; set one of its fields"),
        ("train.seed.x=3", "config.train.seed: has no fields, so there is no config.train.seed.x"),
        (
            "train.seed[0]=3",
            "config.train.seed: is not a list, so there is no config.train.seed[0]",
        ),
        (
            "data.tasks[0].train_sze=3",
            "config.data.tasks[0].train_sze: no such field; did you mean",
        ),
        ("data.tasks[0]=3", "config.data.tasks[0]: is a section; set one of its fields"),
        ("data.tasks[x].name=3", "config.data.tasks[x]: expected the name of a field"),
        (".=3", "config.: expected the name of a field"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override, says):
    with pytest.raises(InputError) as caught:
        config_arguments(["ift data", "--config=quickstart", f"--config.{override}"])
    assert says in str(caught.value)


def test_an_override_without_a_config_says_what_is_missing():
    with pytest.raises(InputError, match="--config is missing"):
        config_arguments(["ift data", "--config.train.seed=3"])


def test_overrides_that_can_be_pass():
    for override in (
        "--config.train.seed=3", "--config.optimizer.peak_lr=1", "--config.optimizer.peak_lr=1e-5",
        "--config.data.pack=false", "--noconfig.data.pack", "--config.data.pack",
        "--config.data.path=a=b.jsonl", "--config.data.tasks[0].train_size=3",
        "--config.data.tasks=()", "--config.evaluation.shots=0,5",
    ):  # fmt: skip
        assert override in config_arguments(["ift data", "--config=quickstart", override])


def test_fields_have_their_types():
    assert field_type("train.num_steps") is int
    assert field_type("data.tasks[3].test_fraction") is float
    assert field_type("model.path") is str
