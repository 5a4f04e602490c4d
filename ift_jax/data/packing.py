"""Packing examples into rows of fixed length, planned so that any row is found at once.

A plan fixes the pattern of lengths that share a row; it depends on the multiset of
(length, targets) alone. Each epoch deals the examples anew over that pattern, those of equal
size among themselves, and deals the rows over the steps. So the number of rows is the same
in every epoch, and row r is a pure function of (seed, r).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError

MIN_PREFIX = 8
# A target slot against a token: V * D multiplications against those of all layers. A quarter in
# a model of 135M parameters with 49k tokens, less in larger ones.
TARGET_COST = 0.25
# Rows of so many examples tell which plan is best, almost as well as all.
SAMPLE = 4096
FULL = 0.97  # the share of real tokens that rows should have
# Shares of the longest row that are worth a try. Examples of nearly one length leave much of a
# row free if their number in it is not whole.
SHORTER = tuple(part / 32 for part in range(32, 23, -1))


Pair = tuple[NDArray[np.int32], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokenized examples by number, wherever they are kept.

    Attributes:
        lengths: int64 [n]; tokens per example.
        num_targets: int64 [n]; targets per example. The first token has no position that
            predicts it.
        get: number -> (ids, trained) of an example; trained is True where the token is a target.
    """

    lengths: NDArray[np.int64]
    num_targets: NDArray[np.int64]
    get: Callable[[int], Pair]

    def without(self, prefix: int) -> "Tokens":
        """The same examples with their first `prefix` tokens left out."""

        def rest(number: int) -> Pair:
            ids, trained = self.get(number)
            return ids[prefix:], trained[prefix:]

        return Tokens(self.lengths - prefix, self.num_targets, rest)

    def common_prefix(self) -> NDArray[np.int32]:
        """The tokens that all examples begin with, up to the first target of any.

        A handful is not worth a place of its own, so the result has MIN_PREFIX tokens or none.
        """
        prefix = self.get(0)[0]
        shared, data = len(prefix), prefix.tobytes()
        for number in range(len(self.lengths)):
            ids, trained = self.get(number)
            first_target = int(trained.argmax())
            if not trained[first_target]:
                first_target = len(ids)
            # The last token before a target must stay in the row: it predicts that target.
            shared = max(min(shared, first_target - 1, len(ids) - 1), 0)
            if ids[:shared].tobytes() != data[: ids.itemsize * shared]:
                shared = int(np.flatnonzero(ids[:shared] != prefix[:shared])[0])
            if shared < MIN_PREFIX:
                return prefix[:0]
        return prefix[:shared]


@dataclass(frozen=True)
class Plan:
    """Which sizes share a row.

    Attributes:
        order: int64 [n]; slot number at each place. Best-fit takes the longest first.
        groups: int64 [n]; group number of each place in `order`; slots of one group
            have equal length and number of targets, so they may trade places.
        rows: for each row, the places in `order` that it holds.
        row_length: S.
        row_targets: P, the target positions that any row has room for.
    """

    order: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: tuple[NDArray[np.int64], ...]
    row_length: int
    row_targets: int

    @property
    def num_rows(self) -> int:
        return len(self.rows)


Packing = Literal["best_fit", "first_fit", "none"]
Fit = Callable[[NDArray[np.int64], int, int], tuple[NDArray[np.int64], ...]]


def plan_rows(
    lengths: NDArray[np.int64],
    num_targets: NDArray[np.int64],
    row_length: int,
    *,
    packing: Packing = "best_fit",
    shorter: bool = False,
) -> Plan:
    """Bin packing with two capacities: tokens S, and target positions P.

    Rows stop at P, so the gather before the loss cannot overflow. Of a few values for P, from
    what a full row of average examples needs up to four times that, the plan takes the one
    whose rows cost least: a smaller P makes more rows, a larger one more unused slots. Values
    that leave rows less than 97 % full are taken only where all do.

    Args:
        packing: "best_fit" decreasing; "first_fit" in the order given; "none", a row each.
        shorter: rows may be up to a quarter shorter than `row_length` where that fills them
            better, and with "none" they are as long as the longest example.

    Raises:
        InputError: if an example is longer than a row.

    Example:
        >>> plan = plan_rows(np.array([3, 5, 2, 4]), np.array([1, 1, 1, 1]), 8)
        >>> [[int(i) for i in plan.order[row]] for row in plan.rows]
        [[1, 0], [3, 2]]
    """
    if lengths.size and lengths.max() > row_length:
        raise InputError(
            f"an example of {lengths.max()} tokens does not fit a row of {row_length}; "
            "raise config.data.row_length or lower config.data.max_length"
        )
    order = np.lexsort((np.arange(len(lengths)), -num_targets, -lengths))
    groups = _groups(lengths[order], num_targets[order])
    if packing == "first_fit":
        groups = groups[np.argsort(order)]
        order = np.arange(len(lengths))
    if packing == "none":
        targets = int(num_targets.max(initial=1))
        row_length = int(lengths.max()) if shorter and lengths.size else row_length
        return Plan(order, groups, tuple(np.arange(len(order))[:, None]), row_length, targets)
    fit = _best_fit if packing == "best_fit" else _first_fit
    sizes = np.stack([lengths[order], num_targets[order]], axis=1)
    sample = sizes[:: max(1, len(sizes) // SAMPLE)]
    # The largest of all, not of the sample: any example must fit.
    longest, most = int(lengths.max(initial=1)), int(num_targets.max(initial=1))
    if shorter:
        row_length = _fullest(sample, longest, row_length, fit)
    tried = {}
    for row_targets in _cheapest_first(sample, row_length, most, fit):
        rows = fit(sizes, row_length, row_targets)
        tried[_cost(sizes, len(rows), row_length, row_targets)] = (rows, row_targets)
        if not min(tried)[0]:  # full, as the sample was; larger sets leave more empty
            break
    rows, row_targets = tried[min(tried)]
    return Plan(order, groups, rows, row_length, row_targets)


def _fullest(sizes: NDArray[np.int64], least: int, most: int, fit: Fit) -> int:
    """The longest of a few row lengths that gets full, or the one that gets fullest."""
    lengths = [max(int(most * share), least) for share in SHORTER]
    used = {}
    for length in dict.fromkeys(lengths):
        used[length] = sizes[:, 0].sum() / (max(len(fit(sizes, length, length)), 1) * length)
        if used[length] >= FULL:
            return length
    return max(used, key=lambda length: used[length])


def _cost(
    sizes: NDArray[np.int64], num_rows: int, row_length: int, row_targets: int
) -> tuple[bool, float]:
    """(whether the rows are less than full, what they cost): the smaller the better."""
    is_full = sizes[:, 0].sum() >= FULL * num_rows * row_length
    return not is_full, num_rows * (row_length + row_targets * TARGET_COST)


def _cheapest_first(sizes: NDArray[np.int64], row_length: int, least: int, fit: Fit) -> list[int]:
    """Numbers of target slots with which rows get full, or only the cheapest if none do."""
    costs = {
        row_targets: _cost(sizes, len(fit(sizes, row_length, row_targets)), row_length, row_targets)
        for row_targets in _room_for_targets(sizes, row_length, least)
    }
    ranked = sorted(costs, key=lambda row_targets: costs[row_targets])
    return [row_targets for row_targets in ranked if not costs[row_targets][0]] or ranked[:1]


def _groups(lengths: NDArray[np.int64], num_targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the runs of equal (length, targets)."""
    changes = (np.diff(lengths) != 0) | (np.diff(num_targets) != 0)
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int64)[: len(lengths)]


def _room_for_targets(sizes: NDArray[np.int64], row_length: int, least: int) -> list[int]:
    """Values for P that are worth a try, smallest first."""
    length, targets = sizes.sum(axis=0)
    spares = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
    needed = (np.ceil(row_length * targets / max(length, 1) * spare) for spare in spares)
    return list(dict.fromkeys(max(min(int(count), row_length), least) for count in needed))


def _best_fit(
    sizes: NDArray[np.int64], row_length: int, row_targets: int
) -> tuple[NDArray[np.int64], ...]:
    """Puts each size, longest first, into the open row that it fills best."""
    rows: list[list[int]] = []
    targets_left: list[int] = []
    by_space: list[list[int]] = [[] for _ in range(row_length + 1)]  # free tokens -> row numbers
    spaces = 0  # bit s is set where by_space[s] is not empty: skips empty ones at once
    for place, (length, targets) in enumerate(sizes.tolist()):
        untried = spaces >> length << length
        row, space = len(rows), row_length
        while untried:
            smallest = (untried & -untried).bit_length() - 1
            found = _last_with(by_space[smallest], targets_left, targets)
            if found is not None:
                row, space = found, smallest
                break
            untried &= untried - 1
        if row == len(rows):
            rows.append([])
            targets_left.append(row_targets)
        elif not by_space[space]:
            spaces ^= 1 << space
        rows[row].append(place)
        targets_left[row] -= targets
        by_space[space - length].append(row)
        spaces |= 1 << (space - length)
    return tuple(np.array(row, np.int64) for row in rows)


def _last_with(open_rows: list[int], targets_left: list[int], targets: int) -> int | None:
    """Takes out the last of the newest eight rows that has room for so many targets."""
    if targets_left[open_rows[-1]] >= targets:
        return open_rows.pop()
    for place in range(len(open_rows) - 2, max(len(open_rows) - 9, -1), -1):
        if targets_left[open_rows[place]] >= targets:
            return open_rows.pop(place)
    return None


def _first_fit(
    sizes: NDArray[np.int64], row_length: int, row_targets: int
) -> tuple[NDArray[np.int64], ...]:
    """Puts each size, in the order given, into the first row with room.

    A binary tree over the rows holds, for each node, the most free tokens and the most free
    targets of any row below it, so the first row is found without a walk over all.
    """
    width = 1 << max(len(sizes) - 1, 0).bit_length()
    tokens, targets = [row_length] * (2 * width), [row_targets] * (2 * width)
    rows: list[list[int]] = []

    def find(node: int, length: int, count: int) -> int:
        if tokens[node] < length or targets[node] < count:
            return 0
        if node >= width:
            return node
        return find(2 * node, length, count) or find(2 * node + 1, length, count)

    for place, (length, count) in enumerate(sizes.tolist()):
        node = find(1, length, count)
        if node - width == len(rows):
            rows.append([])
        rows[node - width].append(place)
        tokens[node] -= length
        targets[node] -= count
        while node > 1:
            node //= 2
            tokens[node] = max(tokens[2 * node], tokens[2 * node + 1])
            targets[node] = max(targets[2 * node], targets[2 * node + 1])
    return tuple(np.array(row, np.int64) for row in rows)


def deal(plan: Plan, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An epoch's order: (slot in each place of the plan, plan row at each position).

    Shuffled by a generator keyed with (seed, epoch), so nothing before it is computed.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    ties = rng.permutation(len(plan.order))
    dealt = np.empty_like(plan.order)
    dealt[np.argsort(plan.groups, kind="stable")] = plan.order[np.lexsort((ties, plan.groups))]
    return dealt, rng.permutation(plan.num_rows)
