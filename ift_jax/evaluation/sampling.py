"""How the next token is chosen from its logits: greedy, or sampled from a filtered distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ift_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when a generation ends besides its end tokens.

    What a model's generation_config.json says of these is not applied, so that the same call
    means the same with every model; of that file, only the end tokens count.

    Attributes:
        max_new_tokens: the most that a row gets, its end token included.
        temperature: 0 takes the most likely token; above 0 divides the logits and samples.
        top_k: samples only from this many most likely tokens; 0 for all.
        top_p: samples only from the fewest tokens that together have this probability
            (Holtzman et al. 2020); 1 for all. Applied to what `top_k` left.
        repetition_penalty: divides the logits above 0, and multiplies those below, of every
            token that the prompt or the answer holds (Keskar et al. 2019); 1 for none.
        stop: texts that end a generation; the answer is what stands before the first of them.
        seed: with a prompt's tokens, decides its samples; equal prompts in a call get others.

    Raises:
        InputError: for a value out of range, and for a filter that greedy decoding would ignore.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _texts(self.stop))
        for name in ("max_new_tokens", "top_k", "seed"):
            _check_kind(name, getattr(self, name), Integral, "a whole number")
        for name in ("temperature", "top_p", "repetition_penalty"):
            _check_kind(name, getattr(self, name), Real, "a number")
        for name, right, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or a number above"),
            ("top_k", self.top_k >= 0, "a count, or 0 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0, up to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2**32 - 1"),
        ):
            if not right:
                raise InputError(f"{name}: expected {expected}, got {getattr(self, name)}")
        if not self.temperature:
            for name, unset in (("top_k", 0), ("top_p", 1)):
                if getattr(self, name) != unset:
                    raise InputError(
                        f"{name}: has no effect at temperature 0, which takes the most likely "
                        "token; set temperature above 0"
                    )


def _check_kind(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name}: expected {expected}, got {value!r}")


def _texts(stop: object) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else stop
    if not isinstance(found, Sequence) or not all(isinstance(t, str) and t for t in found):
        raise InputError(f"stop: expected texts that are not empty, got {stop!r}")
    return tuple(found)


class Choice(NamedTuple):
    """The numbers of a `Sampling` as arrays; None where it asks for nothing."""

    temperature: Float[Array, ""] | None
    top_k: Float[Array, ""] | None
    top_p: Float[Array, ""] | None
    repetition_penalty: Float[Array, ""] | None

    @staticmethod
    def of(sampling: Sampling) -> "Choice":
        """Numbers are arrays, so that another temperature compiles nothing new."""

        def number(value: float, unset: float) -> Array | None:
            return None if value == unset else jnp.asarray(value, jnp.float32)

        return Choice(
            number(sampling.temperature, 0),
            number(sampling.top_k, 0),
            number(sampling.top_p, 1),
            number(sampling.repetition_penalty, 1),
        )


def choose(
    logits: Float[Array, "B V"],
    choice: Choice,
    seen: Bool[Array, "B V"] | None,
    keys: Key[Array, "B"],
) -> Int[Array, "B"]:
    """The next token of each row.

    Args:
        seen: the tokens that a repetition penalty is for.
        keys: a random key per row, so that rows do not depend on each other.
    """
    logits = adjusted(logits, choice, seen)
    if choice.temperature is None:
        return most_likely(logits)
    # The highest score with Gumbel noise is a sample of the softmax (Maddison et al. 2014).
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return most_likely(logits + noise)


def adjusted(
    logits: Float[Array, "B V"], choice: Choice, seen: Bool[Array, "B V"] | None
) -> Float[Array, "B V"]:
    """Logits whose softmax is sampled: -inf where a filter leaves a token out."""
    if choice.repetition_penalty is not None and seen is not None:
        penalty = choice.repetition_penalty
        less = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, less, logits)
    if choice.temperature is not None:
        logits = logits / choice.temperature
    if choice.top_k is not None:
        logits = _with_mass(logits, jnp.ones_like(logits), choice.top_k)
    if choice.top_p is not None:
        logits = _with_mass(logits, jax.nn.softmax(logits, axis=-1), choice.top_p)
    return logits


def most_likely(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The first index of the largest logit.

    As two plain reductions, which XLA vectorizes on CPUs; its argmax is several times slower
    and took as long as the output projection.
    """
    size = logits.shape[-1]
    highest = logits == jnp.max(logits, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(highest, jnp.arange(size, dtype=jnp.int32), size), axis=-1)
    return jnp.minimum(first, size - 1)  # where logits are NaN nothing equals the highest


def _with_mass(
    logits: Float[Array, "B V"], mass: Float[Array, "B V"], wanted: Float[Array, ""]
) -> Float[Array, "B V"]:
    """The fewest largest logits, ties included, whose mass reaches `wanted`; -inf elsewhere.

    The smallest of them is found bit by bit, in 32 sums over the vocabulary: sorting it would
    take longer, and could not be cut over a mesh.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ranks = jnp.where(bits >= sign, ~bits, bits | sign)  # integers in the order of the floats

    def lower(step: Array, limit: Array) -> Array:
        higher = limit | (sign >> step.astype(jnp.uint32))
        enough = jnp.sum(jnp.where(ranks >= higher[:, None], mass, 0), axis=-1) >= wanted
        return jnp.where(enough, higher, limit)

    limit = jax.lax.fori_loop(0, 32, lower, jnp.zeros(logits.shape[:1], jnp.uint32))
    return jnp.where(ranks >= limit[:, None], logits, -jnp.inf)
