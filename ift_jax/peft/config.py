"""The config's section `peft`."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ift_jax.errors import InputError

Method = Literal["none", "lora"]
Init = Literal["b_zero", "a_zero", "pissa"]

# Which fields each method reads; any other field must be left at its default.
_READS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "lora": frozenset(
        {"rank", "alpha", "dropout", "targets", "layers", "rank_scaling", "init", "b_lr_ratio"}
    ),
}


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What is trained beside the frozen weights of the base model.

    Attributes:
        method: "none" trains all weights; else the method by which a small tree is trained.
        rank: of the two matrices A [in, rank] and B [rank, out] of LoRA.
        alpha: the product AB is scaled by alpha / rank, or see `rank_scaling`.
        dropout: the share of a layer's inputs that A does not see in a training step.
        targets: linear layers, by name ("q_proj", "self_attn.q_proj"), or by a regular
            expression that matches the whole name ("model.layers.\\d+.mlp.*"); (): all.
        layers: numbers of the layers to adapt; (): all.
        rank_scaling: "linear" divides alpha by the rank, "sqrt" by its root, which keeps
            high ranks learning (rsLoRA, Kalajdzievski 2023).
        init: "b_zero" or "a_zero" start that matrix at 0 and the other at random; "pissa"
            starts with the strongest singular directions of the weight and takes them out of
            the frozen part (Meng et al. 2024).
        b_lr_ratio: how many times A's learning rate B gets (LoRA+, Hayou et al. 2024).
    """

    method: Method = "none"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    rank_scaling: Literal["linear", "sqrt"] = "linear"
    init: Init = "b_zero"
    b_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", get_args(Method)),
            ("rank_scaling", ("linear", "sqrt")),
            ("init", get_args(Init)),
        ):
            if getattr(self, name) not in choices:
                raise _wrong(name, f"one of {', '.join(choices)}", getattr(self, name))
        if self.rank < 1:
            raise _wrong("rank", "1 or more", self.rank)
        for name in ("alpha", "b_lr_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise _wrong(name, "a positive number", getattr(self, name))
        if not 0 <= self.dropout < 1:
            raise _wrong("dropout", "0 or more and less than 1", self.dropout)
        if any(number < 0 for number in self.layers) or len({*self.layers}) < len(self.layers):
            raise _wrong("layers", "different numbers of 0 or more", self.layers)
        for field in fields(self):
            unread = field.name != "method" and field.name not in _READS[self.method]
            if unread and getattr(self, field.name) != field.default:
                raise InputError(
                    f"config.peft.{field.name}={getattr(self, field.name)!r} has no effect with "
                    f"method={self.method!r}; leave it at {field.default!r}"
                )

    @property
    def scaling(self) -> float:
        """What the product AB is multiplied by."""
        return self.alpha / (self.rank if self.rank_scaling == "linear" else math.sqrt(self.rank))


def _wrong(field: str, expected: str, value: Any) -> InputError:
    return InputError(f"config.peft.{field}: expected {expected}, got {value!r}")
