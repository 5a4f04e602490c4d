"""Which checkpoint is the best by validation, and when training on is of no use."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ift_jax.checkpoint import Checkpoints
from ift_jax.config import TrainConfig, read_run_config
from ift_jax.evaluation.metrics import METRICS, deciding_key


class Chosen(NamedTuple):
    """The checkpoint that is scored, and why.

    Attributes:
        step: its finished steps.
        by: what chose it: config.train.select_by, or "last step" without a validation score.
        value: its validation score; None without one.
        last_step: the last that was trained.
        why: in words.
    """

    step: int
    by: str
    value: float | None
    last_step: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """The object "chosen" of results.json; without a value if there is none."""
        return {key: value for key, value in self._asdict().items() if value is not None}


def oriented_score(by: str, values: Mapping[str, float]) -> float | None:
    """A validation's score by config.train.select_by, higher is better; None if it has none.

    What is no number is worse than any.

    Example:
        >>> oriented_score("loss", {"validation_loss": 2.5})
        -2.5
        >>> oriented_score("rouge1", {"validation_rouge1": 0.3})
        0.3
    """
    value = values.get(deciding_key(by))
    if value is None:
        return None
    return -math.inf if math.isnan(value) else _sign(by) * value


def choose(settings: TrainConfig, checkpoints: Checkpoints, num_steps: int = 0) -> Chosen:
    """The best checkpoint of a run.

    Args:
        num_steps: of the whole run; 0 where it is not known whether it stopped early.
    """
    step, last = checkpoints.choose("best"), checkpoints.choose("latest")
    score, by = checkpoints.position(step).score, settings.select_by
    if score is None:
        why = "no step that was kept has a validation score, so the last one is taken"
        return Chosen(step, "last step", None, last, why)
    why = f"the best validation {by.replace('_', ' ')}"
    if not settings.eval_every or settings.eval_every >= last:
        why = "the last step, the only one that was validated"
    elif not math.isfinite(score):
        why = "no validation gave a number"
    if last < num_steps:
        why += (
            f"; training stopped at step {last} of {num_steps}, after {settings.patience} "
            "validations that were no better"
        )
    value = _sign(by) * score if math.isfinite(score) else None
    return Chosen(step, by, value, last, why)


def chosen_of(workdir: Path) -> Chosen:
    """What `load_workdir` takes of a run, whether it has ended or not.

    Raises:
        InputError: if it has no checkpoint yet.
    """
    checkpoints = Checkpoints.existing(workdir)
    try:
        return choose(read_run_config(workdir).train, checkpoints)
    finally:
        checkpoints.close()


def is_over(settings: TrainConfig, checkpoints: Checkpoints) -> bool:
    """Whether config.train.patience validations in a row were no better than the best before.

    Told from the checkpoints alone, so that a run that goes on stops where it would have.
    """
    latest = checkpoints.latest()
    if not settings.patience or latest is None:
        return False
    best = checkpoints.best()
    if best is None or checkpoints.position(best).score is None:
        return False
    waited = latest // settings.eval_every - best // settings.eval_every
    return waited >= settings.patience


def _sign(by: str) -> int:
    return 1 if by != "loss" and METRICS[by].higher_is_better else -1
