"""The table of PEFT methods beside a study, and the configs of such studies."""

import dataclasses
import runpy
from typing import get_args

import pytest

from ift_jax.commands.config_flag import config_file
from ift_jax.config import RunConfig, build_run_config
from ift_jax.errors import InputError
from ift_jax.peft.config import Method
from ift_jax.study.outcome import reference_run
from ift_jax.study.plan import make_plan, scored_tasks
from scripts import benchmark


def shipped(name: str) -> RunConfig:
    file, _, argument = config_file(name).partition(":")
    made = runpy.run_path(file)["get_config"](*([argument] if argument else []))
    return build_run_config(made.to_dict())


def test_the_config_of_methods_has_them_all_from_one_start(tmp_path):
    config = shipped("methods")
    plan = make_plan(config, tmp_path)
    assert reference_run(config).name == "full"
    methods = benchmark("peft_methods").methods_of(config, plan)
    assert {setup.peft.method for setup in methods.values()} == set(get_args(Method))
    assert {name for name, setup in methods.items() if setup.model != config.model} == {"qlora"}
    assert methods["qlora"].model == dataclasses.replace(config.model, quantize="nf4")
    assert len(scored_tasks(config)) == 4
    differs = {name for planned in plan if planned.run.name in methods
               for name in planned.run.config}  # fmt: skip
    assert differs - {"optimizer.peak_lr", "model.quantize"} == {
        name for name in differs if name.startswith("peft.")
    }
    some = shipped("methods:dora,ia3")
    assert [run.name for run in some.study.runs] == ["stage1", "full", "dora", "ia3"]
    with pytest.raises(InputError, match="methods:lroa: no method 'lroa'; there are lora, qlora"):
        shipped("methods:lroa")


def test_the_larger_studies_go_on_from_the_short_one(tmp_path):
    short, *larger = [
        {planned.key: planned.config for planned in make_plan(shipped(name), tmp_path)}
        for name in ("study", "study:peft", "study:remedies", "study:full")
    ]
    for plan in larger:
        assert {key: plan[key] for key in short} == short
    more = [{key.removesuffix("-seed0") for key in plan.keys() - short.keys()} for plan in larger]
    peft, remedies = {"dora", "ia3", "qlora"}, {"kl", "l2sp"}
    assert more[:2] == [peft, peft | remedies]
    assert {key for key in more[2] if "seed" not in key} == {
        *peft, *remedies, "curve-2000", "curve-4000",
    }  # fmt: skip
    assert all(larger[1][key] == config for key, config in larger[0].items())
    assert all(larger[2][key] == config for key, config in larger[1].items())
    some = make_plan(shipped("study:ia3,stage1"), tmp_path)
    assert [planned.key for planned in some] == ["stage1-seed0", "ia3-seed0"]
    assert all(larger[2][planned.key] == planned.config for planned in some)
    sizes = make_plan(shipped("study:curve-4000,curve-50"), tmp_path)
    assert [planned.key for planned in sizes] == ["curve-50-seed0", "curve-4000-seed0"]
    assert all(larger[2][planned.key] == planned.config for planned in sizes)
    assert len(make_plan(shipped("study:curve,curve-50"), tmp_path)) == 7
    named = "expected study, .* or names of runs: stage1, single.* curve, curve-50, .* l2sp$"
    for wrong in ("stage1,sinlge", "curve-3000"):
        with pytest.raises(InputError, match=f"study:{wrong}: {named}"):
            shipped(f"study:{wrong}")
