"""The table of PEFT methods: what each trains, what it costs, what it learns and what it forgets.

    python benchmarks/peft_methods.py [--study=runs/methods] [--rounds=5] [--costs=costs.jsonl]

The model and the methods with their settings are those of configs/methods.py or, with --study, of
that study: its plain full tuning, and every adapter that goes on from the same model.

What a method costs is measured in a process of its own: the parameters that get a gradient, as a
share of the model's; the peak resident memory of a process that loads the model, compiles the step
and makes three; then, beside it, the full step, with which it takes turns, A B A B: the ratio of
the medians. The batch is that of peft_step.py, eight rows of 128 tokens with 16 targets each. What
the file of --costs holds is not measured again.

What it learns and forgets is what the study scored: the task that was learned, with its interval
and against full tuning, and the change of every other task against the model before; differences
are paired by item.

Prints a line of JSON a method, then the table in Markdown. Reads /proc, so it needs Linux.
"""

import argparse
import json
import os
import platform
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
from peft_step import Step, full_step, in_turn, random_batch

from ift_jax.compilation import enable_compilation_cache
from ift_jax.config import RunConfig, build_run_config, read_run_config
from ift_jax.errors import InputError
from ift_jax.evaluation.comparison import compare_lines
from ift_jax.evaluation.intervals import Score
from ift_jax.evaluation.predictions import Line
from ift_jax.hf.folder import read_json
from ift_jax.model_config import ModelConfig
from ift_jax.models.decoder import param_shapes
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_configured
from ift_jax.report.table import score_text
from ift_jax.study.findings import points
from ift_jax.study.outcome import part_lines, reference_run
from ift_jax.study.plan import Planned, make_plan, scored_tasks, study_task

CONFIG = Path(__file__).parents[1] / "configs" / "methods.py"
STEPS = 3  # until memory has seen its peak: compiled, and the state in use

Columns = dict[str, dict[str, str]]  # heading -> method -> text


class Setup(NamedTuple):
    """A way of tuning, and the model that it would begin with: as it is, or quantized."""

    model: ModelConfig
    peft: PeftConfig


def methods_of(config: RunConfig, plan: Sequence[Planned]) -> dict[str, Setup]:
    """By name, plain full tuning first, then the adapters that go on from the same model."""
    reference, everything = reference_run(config), set(scored_tasks(config))
    alike = {
        planned.run.name: Setup(_begun(config, planned), planned.config.peft)
        for planned in plan
        if reference is not None
        and planned.run.after == reference.after
        and planned.trains == (study_task(config),)
        and not planned.train_size
        and set(planned.scores) == everything
    }
    if reference is None or alike[reference.name].peft.method != "none":
        raise InputError("config.study.runs: none is plain full tuning to compare methods with")
    adapters = {name: setup for name, setup in alike.items() if setup.peft.method != "none"}
    return {reference.name: alike[reference.name], **adapters}


def _begun(config: RunConfig, planned: Planned) -> ModelConfig:
    """The study's base, kept as the run keeps the model that it goes on from."""
    return replace(planned.config.model, path=config.model.path)


def measured(setup: Setup, rounds: int) -> dict[str, Any]:
    """What a method costs, measured in this process, which has done nothing else."""
    model, peft = setup
    base = load_configured(model)
    batch = random_batch(base.structure.config.vocab_size)
    shapes = param_shapes(base.structure.config)
    step = Step(base.adapt(peft), batch)
    for _ in range(STEPS):
        step.run()
    trained, whole = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (step.state.params, shapes)
    )
    cost = {
        "trained": trained,
        "parameters": whole,
        "share": trained / whole,
        "peak_gb": round(peak_bytes() / 1e9, 3),
    }
    if peft.method == "none":
        return {**cost, "seconds": {"ratio": 1.0}}
    if model.quantize != "none":
        base = load_configured(replace(model, quantize="none"))
    enable_compilation_cache()  # the full step is the same beside all methods
    return {**cost, "seconds": in_turn(step, full_step(base, batch), rounds)}


def peak_bytes() -> int:
    """The peak resident size of this process; getrusage would count its parent's as well."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def costs_of(
    methods: Mapping[str, Setup], rounds: int, file: Path | None
) -> dict[str, dict[str, Any]]:
    """The cost of each method, by name; what a file holds is taken from it, the rest added."""
    text = file.read_text(encoding="utf-8") if file is not None and file.exists() else ""
    known = [json.loads(line) for line in text.splitlines()]
    found = {}
    for name, setup in methods.items():
        asked = json.loads(json.dumps({k: asdict(v) for k, v in setup._asdict().items()}))
        line = next((line for line in known if line["of"] == asked), None)
        if line is None:
            print(f"measuring {name}", file=sys.stderr)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                cost = process.submit(measured, setup, rounds).result()
            machine = f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"
            line = {"benchmark": "peft_methods", **cost, "machine": machine, "of": asked}
            if file is not None:
                with file.open("a", encoding="utf-8") as opened:
                    opened.write(json.dumps(line) + "\n")
        found[name] = line
        print(json.dumps({"method": name, **line}), flush=True)
    return found


def cost_columns(costs: Mapping[str, Mapping[str, Any]]) -> Columns:
    """What is trained, and what a step takes."""
    return {
        "trained": {name: f"{100 * cost['share']:.3g} %" for name, cost in costs.items()},
        "step time": {name: f"{cost['seconds']['ratio']:.2f}" for name, cost in costs.items()},
        "peak memory": {name: f"{cost['peak_gb']:.2f} GB" for name, cost in costs.items()},
    }


def study_columns(workdir: Path, plan: Sequence[Planned], methods: Sequence[str]) -> Columns:
    """What each method scores on what was learned, and what it changed elsewhere."""
    file = workdir / "results.json"
    results = read_json(file) if file.exists() else {"matrices": []}
    matrices = {matrix["model"]: matrix for matrix in results["matrices"]}
    missing = [name for name in methods if name not in matrices]
    if missing:
        raise InputError(f"{workdir}: has no results of {', '.join(missing)}; let `ift study` end")
    changes = {(row["model"], row["task"], row["metric"]): row for row in results["changes"]}
    target, full = results["target"], methods[0]
    plain = _lines(workdir, plan, full, target)
    columns: Columns = {}
    for name in methods:
        matrix = matrices[name]
        values, low, high = (matrix[key][-1] for key in ("values", "low", "high"))
        for j, (task, metric) in enumerate(zip(matrix["tasks"], matrix["metrics"], strict=True)):
            heading = f"{task} {metric}"
            if task == target:
                row = {"metric": metric, "value": values[j], "low": low[j], "high": high[j]}
                columns.setdefault(heading, {})[name] = score_text(row)
                [row] = compare_lines(plain, _lines(workdir, plan, name, target), [metric])
                change = points(Score(row["difference"], row["low"], row["high"]))
                columns.setdefault(f"against {full}", {})[name] = "" if name == full else change
            else:
                row = changes[name, task, metric]
                heading += "" if row["counted"] else " (not counted)"
                change = points(Score(row["value"], row["low"], row["high"]))
                columns.setdefault(heading, {})[name] = change
    return columns


def _lines(workdir: Path, plan: Sequence[Planned], name: str, task: str) -> list[Line]:
    """What a run of all seeds predicted for a task."""
    return [
        line._replace(seed=planned.seed)
        for planned in plan
        if planned.run.name == name
        for line in part_lines(workdir, planned.key)
        if line.task == task
    ]


def markdown(methods: Sequence[str], columns: Columns) -> str:
    """A line a method."""
    rows = [["method", *columns], ["---"] * (1 + len(columns))]
    rows += [[name, *(cells[name] for cells in columns.values())] for name in methods]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, help="a finished study's folder")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the two steps")
    parser.add_argument("--costs", type=Path, help="a file that keeps what was measured")
    flags = parser.parse_args(arguments)
    try:
        if flags.study:
            config = read_run_config(flags.study)
        else:
            config = build_run_config(runpy.run_path(str(CONFIG))["get_config"]().to_dict())
        plan = make_plan(config, flags.study or Path())
        methods = methods_of(config, plan)
        scored = study_columns(flags.study, plan, list(methods)) if flags.study else {}
    except InputError as error:
        sys.exit(f"peft_methods: {error}")
    costs = costs_of(methods, flags.rounds, flags.costs)
    print(f"\n{markdown(list(methods), {**cost_columns(costs), **scored})}\n")
    print(
        "trained: of the model's parameters. step time: full tuning is 1. peak memory: of a "
        "process that loads the model and makes steps."
    )
    if scored:
        print(
            "Percent with 95 % intervals; then changes in points, paired by item: against full "
            "tuning, and of other tasks against the model before."
        )


if __name__ == "__main__":
    main()
