"""How much of each task an epoch holds, in exact numbers of examples, and which ones.

An epoch is a fixed list of slots. Whole passes over a task are slots of one example each. Of
what is left over (a task of 1,000 examples drawn 2,300 times leaves 300), each slot stands for a
stratum of examples of nearly equal size, and takes another of them every epoch. So all epochs
have the same counts, the same slot sizes and therefore the same packed rows, every example of a
task is used equally often in the long run, and what epoch e holds is known without the epochs
before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The config's section `data.mixture`: what share of an epoch each task gets.

    A task with n training examples gets a share proportional to its weight times

        min(n * scale, cap) ^ (1 / temperature)        rates "examples"
        1                                              rates "weights"

    (Raffel et al. 2020, section 3.5.2, for rates by examples.) As it stands, every example
    is seen once an epoch, and a task's weight is how often its examples are.

    Attributes:
        rates: "examples" or "weights".
        temperature: above 1 lifts small tasks; 1 leaves the proportions.
        cap: the most examples that a task counts for; 0 for no cap.
        scale: what a task's number of examples is multiplied by before the cap.
        size: examples of an epoch; 0 takes the sum of weight * min(n * scale, cap) at
            temperature 1, and the number of all examples elsewhere.
        replay_share: the share of an epoch that comes from the tasks with `replay` set, from 0
            to below 1; they are drawn in proportion to their rates, and added to the others.
    """

    rates: Literal["examples", "weights"] = "examples"
    temperature: float = 1.0
    cap: int = 0
    scale: float = 1.0
    size: int = 0
    replay_share: float = 0.0

    def __post_init__(self) -> None:
        if self.rates not in ("examples", "weights"):
            raise InputError(
                f"config.data.mixture.rates: expected examples or weights, got {self.rates!r}"
            )
        if self.temperature <= 0 or self.scale <= 0:
            raise InputError("config.data.mixture: temperature and scale must be above 0")
        if self.cap < 0 or self.size < 0:
            raise InputError("config.data.mixture: cap and size must not be negative")
        if not 0 <= self.replay_share < 1:
            raise InputError(
                f"config.data.mixture.replay_share: expected 0 to below 1, got {self.replay_share}"
            )
        if self.rates == "weights" and (self.temperature, self.cap, self.scale) != (1.0, 0, 1.0):
            raise InputError(
                "config.data.mixture: temperature, cap and scale apply to rates='examples' only"
            )


def epoch_counts(
    sizes: Sequence[int],
    config: MixtureConfig,
    *,
    weights: Sequence[float] | None = None,
    replay: Sequence[bool] | None = None,
) -> list[int]:
    """How many examples of each task an epoch holds; whole numbers that add up exactly.

    Args:
        sizes: training examples of each task.
        weights: of each task; default 1.
        replay: which tasks `replay_share` is for; default none.

    Raises:
        InputError: if nothing is left to train on, an epoch would hold no example, a task with a
            weight has no examples, or replay is asked for without a task to replay or the other
            way round.

    Example:
        >>> epoch_counts([100, 900], MixtureConfig())
        [100, 900]
        >>> epoch_counts([100, 900], MixtureConfig(temperature=2.0))
        [250, 750]
        >>> epoch_counts([100, 900], MixtureConfig(replay_share=0.2), replay=[False, True])
        [100, 25]
    """
    rows = np.asarray(sizes, np.float64)
    weight = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    is_replay = np.zeros(len(rows), bool) if replay is None else np.asarray(replay, bool)
    _check_tasks(rows, weight, is_replay, config)
    if config.rates == "weights":
        rate = weight.copy()
    else:
        capped = rows * config.scale
        capped = np.minimum(capped, config.cap) if config.cap else capped
        rate = weight * capped ** (1 / config.temperature)
    own, again = np.where(is_replay, 0.0, rate), np.where(is_replay, rate, 0.0)
    total = config.size or round(
        own.sum()
        if config.rates == "examples" and config.temperature == 1
        else rows[(own > 0)].sum()
    )
    if total < 1:
        raise InputError(
            "config.data.mixture: an epoch would hold no example, as small as weights, scale or "
            "cap are; raise them, or set config.data.mixture.size"
        )
    if not again.any():
        return _apportion(own, total)
    if config.size:
        num_replayed = round(total * config.replay_share)
        total -= num_replayed
    else:
        num_replayed = round(total * config.replay_share / (1 - config.replay_share))
    pairs = zip(_apportion(own, total), _apportion(again, num_replayed), strict=True)
    return [first + second for first, second in pairs]


def _check_tasks(
    rows: NDArray[np.float64],
    weight: NDArray[np.float64],
    is_replay: NDArray[np.bool_],
    config: MixtureConfig,
) -> None:
    used = weight > 0
    if not (used & ~is_replay & (rows > 0)).any():
        raise InputError("config.data.tasks: no task with a weight has examples to train on")
    if bool(config.replay_share) != bool((used & is_replay).any()):
        raise InputError(
            "config.data.mixture.replay_share and a task with replay=True need each other; "
            f"replay_share is {config.replay_share} and {int(is_replay.sum())} tasks have replay"
        )


def _apportion(rates: NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers that add up to `total`, in proportion: the largest remainders round up."""
    if not rates.any():
        return [0] * len(rates)
    exact = rates / rates.sum() * total
    counts = np.floor(exact + 1e-9).astype(int)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts.tolist()


class Slots(NamedTuple):
    """What an epoch holds.

    Attributes:
        members: int64 [m]; numbers of examples, stratum after stratum.
        starts: int64 [n + 1]; slot k draws from members[starts[k]:starts[k + 1]].
        offsets: int64 [n]; where in its stratum slot k begins at epoch 0.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @staticmethod
    def all_of(count: int) -> "Slots":
        """Every example once."""
        return Slots(np.arange(count), np.arange(count + 1), np.zeros(count, np.int64))

    def at(self, slots: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The examples that these slots hold in an epoch."""
        begin = self.starts[slots]
        size = self.starts[slots + 1] - begin
        return self.members[begin + (epoch + self.offsets[slots]) % size]

    def largest(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each slot's largest value, of values given per example."""
        if not len(self.members):
            return np.zeros(0, np.int64)
        return np.maximum.reduceat(values[self.members], self.starts[:-1])


def make_slots(
    lengths: NDArray[np.int64],
    num_targets: NDArray[np.int64],
    sizes: Sequence[int],
    counts: Sequence[int],
    seed: int,
) -> Slots:
    """Slots of an epoch with `counts` examples of each task.

    Args:
        lengths, num_targets: int [n]; of all tasks' examples, one task behind the other.
        sizes: how many examples each task has.
        counts: how many of them an epoch holds.
        seed: of what stratum takes which example when.

    Example: of three examples, seven a turn: two whole passes, and a slot that takes turns.

        >>> slots = make_slots(np.array([5, 5, 6]), np.array([1, 1, 1]), [3], [7], 0)
        >>> [sorted(slots.at(np.arange(7), epoch).tolist()) for epoch in range(2)]
        [[0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2]]
    """
    members, num_members = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    first = 0
    for task, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        passes, rest = divmod(count, size) if size else (0, 0)
        members.append(np.tile(np.arange(first, first + size), passes))
        num_members.append(np.ones(passes * size, np.int64))
        if rest:
            rng = np.random.Generator(np.random.Philox(key=[seed, task]))
            own = slice(first, first + size)
            by_size = first + np.lexsort((rng.random(size), -num_targets[own], -lengths[own]))
            strata = [rng.permutation(stratum) for stratum in np.array_split(by_size, rest)]
            members += strata
            num_members.append(np.array([len(stratum) for stratum in strata]))
        first += size
    counted = np.concatenate(num_members)
    rng = np.random.Generator(np.random.Philox(key=[seed, len(sizes)]))
    offsets = np.floor(rng.random(len(counted)) * counted).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counted)])
    return Slots(np.concatenate(members), starts, offsets)
