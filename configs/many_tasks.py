"""Instruction tuning on many tasks at once: 50,000 examples of some forty tasks.

    ift data --config=many_tasks --output=prepared/many_tasks
    ift train --config=many_tasks --config.data.prepared=prepared/many_tasks --workdir=W

The tasks of all sets of configs/data_sets.py (IFT_JAX_DATA, or else ../shared/data), in
proportion to the square root of their size, which is counted up to 10,000. Two hundred steps show
that it runs; set config.train.num_steps=0 for a whole epoch.
"""

import runpy
from pathlib import Path

from ift_jax.config import default_config

_SETS = runpy.run_path(str(Path(__file__).with_name("data_sets.py")))
# Their conversations and passages are longer than the examples here may be.
_LONG = ("xquad", "chat_multiturn")
# Sets with a validation split of their own.
_HELD_OUT = ("ner", "t0_validation")
# Its tasks hold out whole families: their rows show the same few texts behind other templates.
_BY_FAMILY = "t0_p3_templates"


def get_config():
    config = default_config()
    families = [task.name for task in _SETS["tasks"](_BY_FAMILY)]
    tasks = [
        task for name in _SETS["names"]() if name not in _LONG for task in _SETS["tasks"](name)
    ]
    for task in tasks:
        task.train_size = 0
        task.balance_by = ""
        task.validation_size = 20 if task.name in _HELD_OUT else 0
        task.test_size = 0
        if task.weight and task.name not in families:
            task.validation_fraction = 0.003
            task.test_fraction = 0.0 if task.test_source else 0.05
    config.data.tasks = tuple(tasks)
    config.data.max_length = 512
    config.data.row_length = 512
    config.data.on_too_long = "truncate"
    config.data.mixture.temperature = 2.0
    config.data.mixture.cap = 10_000
    config.data.mixture.size = 50_000
    # T0's prompts hold texts of ag_news and of the sets behind flan_cot; bbh is for tests only.
    # Half of a text must be shared: by one run a sixth of flan_cot would go, whose questions of a
    # kind all begin alike.
    config.data.decontaminate = ("bbh", "topic", "reasoning")
    config.data.decontaminate_overlap = 0.5
    config.train.num_steps = 200
    config.train.batch_size = 2
    config.train.save_every = 50
    # Of forty tasks, a look at each is enough.
    config.train.eval_items = 10
    config.train.eval_metrics = ("loss",)
    config.train.num_samples = 0
    config.optimizer.peak_lr = 5e-5
    config.evaluation.max_items = 5
    config.evaluation.shots = (0,)
    return config
