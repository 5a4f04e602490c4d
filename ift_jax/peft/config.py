"""The config's section `peft`."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ift_jax.errors import InputError

Method = Literal[
    "none", "lora", "dora", "vera", "ia3", "bottleneck", "bitfit", "norms", "selective",
    "prompt", "prefix",
]  # fmt: skip
Init = Literal["b_zero", "a_zero", "pissa"]

# Which fields each method reads; any other field must be left at its default.
_PLACES = {"targets", "layers"}
_LORA = {
    *("rank", "alpha", "dropout", "rank_scaling", "init", "b_lr_ratio", "modules_to_save"),
    "token_rows",
}
_VIRTUAL = {"num_virtual_tokens", "prompt_text"}
READS: dict[str, set[str]] = {
    "none": set(),
    "lora": _PLACES | _LORA,
    "dora": _PLACES | _LORA,
    "vera": _PLACES | {"rank", "dropout", "modules_to_save"},
    "ia3": _PLACES | {"modules_to_save"},
    "bottleneck": _PLACES | {"rank", "modules_to_save"},
    "bitfit": _PLACES | {"modules_to_save"},
    "norms": {"layers"},
    "selective": _PLACES,
    "prompt": _VIRTUAL,
    "prefix": _VIRTUAL,
}


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What is trained beside the frozen weights of the base model.

    Attributes:
        method: "none" trains all weights. "lora", "dora", "vera", "ia3", "bottleneck" and
            "bitfit" add small arrays to linear layers; "prompt" and "prefix" put trained
            tokens or keys and values in front; "norms" trains all norm scales, "selective"
            the weights that `targets` name.
        rank: of LoRA's, DoRA's and VeRA's two matrices A [in, rank] and B [rank, out]; the
            inner width of "bottleneck".
        alpha: the product AB is scaled by alpha / rank, or see `rank_scaling`.
        dropout: the share of a layer's inputs that A does not see in a training step.
        targets: linear layers (with "selective", any weights), by name ("q_proj",
            "self_attn.q_proj") or by a regular expression that matches the whole name
            ("model.layers.\\d+.mlp.*"); (): all linear layers, or those that the method
            is meant for ("ia3": keys, values and the MLP's last layer; "bottleneck": what
            writes to the residual stream).
        layers: numbers of the layers to adapt; (): all.
        rank_scaling: "linear" divides alpha by the rank, "sqrt" by its root, which keeps
            high ranks learning (rsLoRA, Kalajdzievski 2023).
        init: "b_zero" or "a_zero" start that matrix at 0 and the other at random; "pissa"
            starts with the strongest singular directions of the weight and takes them out of
            the frozen part (Meng et al. 2024).
        b_lr_ratio: how many times A's learning rate B gets (LoRA+, Hayou et al. 2024), and as in
            peft magnitudes, and norms trained beside it.
        modules_to_save: weights that are trained whole beside the adapter, named as targets
            are: "embed_tokens", "lm_head", "norm".
        token_rows: tokens of which the rows of embedding and output matrix are trained beside
            the adapter, and no other rows: those of a chat template that the base never saw.
        num_virtual_tokens: how many trained positions "prompt" and "prefix" put in front.
        prompt_text: their start: its tokens' embeddings, or keys and values, repeated or cut
            to length; "": random tokens' embeddings, or small random keys and values.
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
    modules_to_save: tuple[str, ...] = ()
    token_rows: tuple[str, ...] = ()
    num_virtual_tokens: int = 20
    prompt_text: str = ""

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", get_args(Method)),
            ("rank_scaling", ("linear", "sqrt")),
            ("init", get_args(Init)),
        ):
            if getattr(self, name) not in choices:
                raise _wrong(name, f"one of {', '.join(choices)}", getattr(self, name))
        for name in ("rank", "num_virtual_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise _wrong(name, "a whole number of 1 or more", value)
        for name in ("alpha", "b_lr_ratio"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise _wrong(name, "a positive number", value)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise _wrong("dropout", "0 or more and less than 1", self.dropout)
        for name, kind, expected in (
            ("targets", str, "a tuple of names"),
            ("layers", int, "a tuple of numbers"),
            ("modules_to_save", str, "a tuple of names"),
            ("token_rows", str, "a tuple of tokens"),
        ):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or any(type(one) is not kind for one in value):
                raise _wrong(name, expected, value)
            object.__setattr__(self, name, tuple(value))  # a list could not be hashed
        if any(number < 0 for number in self.layers) or len({*self.layers}) < len(self.layers):
            raise _wrong("layers", "different numbers of 0 or more", self.layers)
        if self.method == "selective" and not self.targets:
            raise _wrong("targets", "the names of the weights to train", self.targets)
        if self.method == "dora" and self.init == "pissa":
            raise _wrong("init", "b_zero or a_zero with dora", self.init)
        for field in fields(self):
            unread = field.name != "method" and field.name not in READS[self.method]
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
