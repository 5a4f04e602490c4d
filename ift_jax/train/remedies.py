"""Remedies against forgetting, as terms of the loss that hold a model near its base.

Replay, the other remedy while training, is a mixture of tasks (`data.mixture`); weight
interpolation comes after it (`ift_jax.interpolation`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ift_jax.errors import InputError
from ift_jax.models.decoder import Params


@dataclass(frozen=True, kw_only=True)
class RemediesConfig:
    """The config's section `remedies`. A weight of 0 leaves a remedy out.

    The loss is the mean cross-entropy of the targets, in nats, plus each weight times its term.
    All but the KL terms act on the weights themselves, so they exclude adapters and weight decay.

    Attributes:
        kl_weight: of KL(base || model) over the vocabulary, averaged over the targets of the
            batch (learning without forgetting, Li and Hoiem 2016, on the task's own text).
        text_kl_weight: of the same on `text_rows` rows of neutral text a step, see `neutral`.
        text_rows: packed rows of neutral text a step.
        l2sp_weight: of half the squared distance from the base, |w - w0|^2 / 2 (L2-SP, Xuhong
            Li et al. 2018).
        ewc_weight: of the same with each weight's square times its Fisher information, sum of
            F (w - w0)^2 / 2 (elastic weight consolidation, Kirkpatrick et al. 2017).
        fisher_tasks: names of tasks whose training examples estimate F.
        fisher_examples: of them, shared evenly among the tasks.
        fisher_labels: "sampled" draws every target from the base model itself, behind the text
            before it, which estimates the Fisher information; "given" takes the examples' own
            tokens (the empirical Fisher).
    """

    kl_weight: float = 0.0
    text_kl_weight: float = 0.0
    text_rows: int = 8
    l2sp_weight: float = 0.0
    ewc_weight: float = 0.0
    fisher_tasks: tuple[str, ...] = ()
    fisher_examples: int = 200
    fisher_labels: Literal["sampled", "given"] = "sampled"

    def __post_init__(self) -> None:
        for name in ("kl_weight", "text_kl_weight", "l2sp_weight", "ewc_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"config.remedies.{name}: expected 0 or more, got {getattr(self, name)}"
                )
        for name in ("text_rows", "fisher_examples"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.remedies.{name}: expected 1 or more, got {getattr(self, name)}"
                )
        if self.fisher_labels not in ("sampled", "given"):
            raise InputError(
                "config.remedies.fisher_labels: expected sampled or given, "
                f"got {self.fisher_labels!r}"
            )
        if bool(self.ewc_weight) != bool(self.fisher_tasks):
            raise InputError(
                "config.remedies: ewc_weight needs fisher_tasks, the names of tasks whose examples "
                f"say which weights matter, and they need it; got {self.ewc_weight} and "
                f"{self.fisher_tasks}"
            )

    @property
    def holds_weights(self) -> bool:
        """Whether a term acts on the weights themselves."""
        return bool(self.l2sp_weight or self.ewc_weight)

    @property
    def needs_base(self) -> bool:
        """Whether the step reads the base's weights."""
        return bool(self.kl_weight or self.text_kl_weight or self.holds_weights)


def weight_penalty(
    config: RemediesConfig, params: Params, anchor: Params, fisher: Params
) -> tuple[dict[str, Float[Array, ""]], Params]:
    """The values of L2-SP and EWC, times their weights, and the gradient of their sum in float32.

    Args:
        anchor: the base's weights w0.
        fisher: F, or {} without EWC.
    """
    moved = jax.tree.map(
        lambda w, w0: w.astype(jnp.float32) - w0.astype(jnp.float32), params, anchor
    )
    values: dict[str, Array] = {}
    gradient = jax.tree.map(jnp.zeros_like, moved)
    if config.l2sp_weight:
        values["l2sp"] = 0.5 * config.l2sp_weight * _total(jax.tree.map(jnp.square, moved))
        gradient = jax.tree.map(lambda g, d: g + config.l2sp_weight * d, gradient, moved)
    if config.ewc_weight:
        terms = jax.tree.map(lambda f, d: f * d * d, fisher, moved)
        values["ewc"] = 0.5 * config.ewc_weight * _total(terms)
        gradient = jax.tree.map(
            lambda g, f, d: g + config.ewc_weight * f * d, gradient, fisher, moved
        )
    return values, gradient


def _total(tree: Params) -> Float[Array, ""]:
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))
