"""The optimizer, as an optax chain."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from ift_jax.errors import InputError

NAMES = ("adamw", "adafactor", "sgd")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The config's section `optimizer`.

    Attributes:
        name: "adamw", "adafactor" (a fraction of AdamW's memory) or "sgd" (with momentum b1).
        peak_lr: the learning rate after warmup.
        warmup_steps: optimizer steps of linear warmup from 0.
        schedule: what follows: "cosine" or "linear" decay to `final_share` of the peak, or
            "constant".
        final_share: of peak_lr; the learning rate that one more step would have.
        weight_decay: decoupled: a step takes the learning rate times this of each weight, whatever
            the rule; matrices only, never norms.
        clip_norm: the largest global gradient norm; 0 does not clip.
        b1, b2, epsilon: AdamW's moments (Loshchilov and Hutter 2019).
    """

    name: Literal["adamw", "adafactor", "sgd"] = "adamw"
    peak_lr: float = 5e-5
    warmup_steps: int = 10
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(f"config.optimizer.name: expected one of {NAMES}, got {self.name!r}")
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"config.optimizer.schedule: expected one of {SCHEDULES}, got {self.schedule!r}"
            )
        for field in ("peak_lr", "warmup_steps", "weight_decay", "clip_norm", "final_share"):
            if not 0 <= getattr(self, field) < math.inf:
                raise InputError(
                    f"config.optimizer.{field}: expected 0 or more, got {getattr(self, field)}"
                )
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(
                    f"config.optimizer.{field}: expected 0 to below 1, got {getattr(self, field)}"
                )
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"config.optimizer.epsilon: expected above 0, got {self.epsilon}")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: warmup, then the schedule, which ends one step behind the last.

    The first step is not wasted: warmup over w steps starts at peak / w.
    """
    warmup = min(config.warmup_steps, num_steps)
    rest = max(num_steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(config.peak_lr, rest, alpha=config.final_share),
        "linear": optax.linear_schedule(config.peak_lr, config.peak_lr * config.final_share, rest),
        "constant": optax.constant_schedule(config.peak_lr),
    }[config.schedule]
    if not warmup:
        return after
    rise = optax.linear_schedule(config.peak_lr / warmup, config.peak_lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, num_steps: int, b_lr_ratio: float = 1.0
) -> optax.GradientTransformation:
    """Clipping, the update rule, weight decay and the schedule.

    Args:
        b_lr_ratio: how many times the learning rate LoRA's matrices B get (LoRA+), and scales and
            shifts.
    """
    schedule = make_schedule(config, num_steps)
    rule = {
        "adamw": lambda: optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
        # optax's own decay would not be times the learning rate; its update has its sign already.
        "adafactor": lambda: optax.chain(
            optax.adafactor(None, multiply_by_parameter_scale=False),
            optax.add_decayed_weights(-config.weight_decay, mask=is_matrix),
            optax.scale_by_learning_rate(schedule, flip_sign=False),
        ),
        "sgd": lambda: optax.chain(
            optax.trace(config.b1) if config.b1 else optax.identity(),
            optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
            optax.scale_by_learning_rate(schedule),
        ),
    }[config.name]()
    stages = [rule]
    if config.clip_norm:
        stages.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if b_lr_ratio != 1.0:
        stages.append(optax.stateless(lambda updates, _: _faster_b(updates, b_lr_ratio)))
    return optax.chain(*stages) if len(stages) > 1 else rule


def _faster_b(updates: Any, ratio: float) -> Any:
    """The updates, those of every B, and as in peft of scales and shifts, times the ratio."""

    def faster(path: Any, update: Any, matrix: bool) -> Any:
        return update * ratio if path[-1].key == "b" or not matrix else update

    return jax.tree_util.tree_map_with_path(faster, updates, is_matrix(updates))


# Arrays of an adapter that scale or shift, told by their names; norms have theirs from the model.
_VECTORS = ("scale", "scale_b", "d", "bias", "down_bias", "up_bias", "magnitude")


def is_matrix(params: Any) -> Any:
    """True for what weight decay applies to: all but scales and shifts, told by their names."""

    def decays(path: Any, _: Any) -> bool:
        name = str(path[-1].key)
        return "norm" not in name and name not in _VECTORS

    return jax.tree_util.tree_map_with_path(decays, params)
