"""Every PEFT method beside full tuning: what it learns, and what it forgets.

    IFT_JAX_DATA=data ift study --config=methods --workdir=runs/methods
    IFT_JAX_DATA=data ift study --config=methods:lora,dora,ia3 --workdir=runs/methods
    python benchmarks/peft_methods.py --study=runs/methods      # the table, with what each costs

SmolLM2-135M-Instruct first learns three probes (stage1: 150 examples of each); from there every
method learns the rating of the same 1,000 balanced Amazon reviews, in one pass. The tasks are those
of configs/study.py. The second command is of some methods, beside full tuning; the first then goes
on from there, in the same folder.

Learning rates are where each method's paper, or common practice, begins. They are not tuned, nor
are ranks, so a low score says that a method wants more care, not that it cannot do better.

Training takes 34,000 row tokens in stage1 and 63,000 for each of the twelve methods, 0.8 million in
all; then 550 items are scored fourteen times.

Items: 250 ratings (a score of 50 % has an interval of 44 to 56) and 100 of each probe (40 to 60).
"""

import runpy
from pathlib import Path

from ift_jax.config import default_config
from ift_jax.errors import InputError

_STUDY = runpy.run_path(str(Path(__file__).with_name("study.py")))
_PROBES = ("names", "topic", "question_type")
_METHODS = {
    # Ten times the rate of full tuning (Schulman et al. 2025, LoRA without regret).
    "lora": {"optimizer.peak_lr": 1e-3},
    "qlora": {"peft.method": "lora", "optimizer.peak_lr": 1e-3, "model.quantize": "nf4"},
    "dora": {"optimizer.peak_lr": 1e-3},
    "ia3": {"optimizer.peak_lr": 1e-2},
    # The paper's rank of 256 would, at a width of 576, cost more than training all weights.
    "vera": {"optimizer.peak_lr": 1e-2, "peft.rank": 64},
    "bottleneck": {"optimizer.peak_lr": 1e-3, "peft.rank": 64},
    "bitfit": {"optimizer.peak_lr": 5e-3},
    "norms": {"optimizer.peak_lr": 5e-3},
    "selective": {"optimizer.peak_lr": 1e-4, "peft.targets": ("down_proj",)},
    "prompt": {
        "optimizer.peak_lr": 3e-2,
        "peft.prompt_text": "How many stars does the writer of this review give, from 1 to 5?",
    },
    "prefix": {"optimizer.peak_lr": 1e-2},
}


def get_config(methods=""):
    chosen = [name for name in methods.split(",") if name] or list(_METHODS)
    for name in chosen:
        if name not in _METHODS:
            raise InputError(
                f"--config=methods:{methods}: no method {name!r}; there are {', '.join(_METHODS)}"
            )
    config = _STUDY["get_config"]()
    config.data.tasks = tuple(t for t in config.data.tasks if t.name in ("rating", *_PROBES))
    for task in config.data.tasks:
        if task.name in _PROBES:
            task.train_size = 150
    config.data.max_rejected = default_config().data.max_rejected
    config.train.batch_size = 4
    config.train.eval_every = 0
    config.train.num_samples = 0
    config.optimizer.peak_lr = 1e-4
    config.evaluation.shots = (0,)
    config.study.runs = (
        {"name": "stage1", "tasks": _PROBES},
        {"name": "full", "after": "stage1"},
        *(
            {"name": name, "after": "stage1", "config": {"peft.method": name, **_METHODS[name]}}
            for name in chosen
        ),
    )
    return config
