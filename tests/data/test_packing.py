"""Every example stands in exactly one row an epoch, and any row is found without the others."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenized import tokens_of

from ift_jax.data import packing
from ift_jax.data.loader import RowSource
from ift_jax.data.packing import MIN_PREFIX, deal, plan_rows
from ift_jax.data.store import Chosen, Store, stored_tokens
from ift_jax.errors import InputError

properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)
ROW = 32
# (prompt tokens, trained tokens) of each example.
sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=40)


def make_examples(sizes, prefix=()):
    """Examples whose tokens are all different, after a prefix that all share."""
    parts, at = [], 1000
    for prompt, completion in sizes:
        ids = np.concatenate([prefix, np.arange(at, at + prompt + completion)]).astype(np.int32)
        trained = np.arange(len(ids)) >= len(prefix) + prompt
        parts.append((ids, trained))
        at += prompt + completion
    return tokens_of(parts)


def review_sizes(count, seed=0):
    """Lengths as reviews have them: long-tailed, with one or two trained tokens."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(4.3, 0.5, count).astype(int), 20, 240)
    return list(zip(prompts.tolist(), rng.integers(1, 3, count).tolist(), strict=True))


@properties
@given(sizes, st.integers(0, 2**31), st.integers(0, 2**31))
def test_every_example_stands_once_in_an_epoch(sizes, seed, epoch):
    source = RowSource(make_examples(sizes), ROW, seed=seed)
    first = epoch * source.rows_per_epoch
    members = [source.members(first + r).tolist() for r in range(source.rows_per_epoch)]
    assert sorted(m for row in members for m in row) == list(range(len(sizes)))


@pytest.mark.parametrize("packing", ["best_fit", "first_fit"])
@properties
@given(sizes)
def test_no_row_exceeds_its_length_or_its_room_for_targets(packing, sizes):
    examples = make_examples(sizes)
    plan = plan_rows(examples.lengths, examples.num_targets, ROW, packing=packing)
    for row in plan.rows:
        members = plan.order[row]
        assert examples.lengths[members].sum() <= ROW
        assert examples.num_targets[members].sum() <= plan.row_targets
    assert sorted(np.concatenate([plan.order[row] for row in plan.rows])) == list(range(len(sizes)))


@properties
@given(sizes)
def test_first_fit_takes_the_first_row_with_room(sizes):
    examples = make_examples(sizes)
    lengths, targets = examples.lengths, examples.num_targets
    plan = plan_rows(lengths, targets, ROW, packing="first_fit")
    expected: list[list[int]] = []
    for number in range(len(sizes)):
        for row in expected:
            members = [*row, number]
            fits = lengths[members].sum() <= ROW
            if fits and targets[members].sum() <= plan.row_targets:
                row.append(number)
                break
        else:
            expected.append([number])
    assert [plan.order[row].tolist() for row in plan.rows] == expected


@properties
@given(sizes, st.integers(0, 2**31))
def test_first_fit_deals_only_among_examples_of_equal_size(sizes, seed):
    source = RowSource(make_examples(sizes), ROW, seed=seed, packing="first_fit")
    members = [source.members(r).tolist() for r in range(source.rows_per_epoch)]
    assert sorted(m for row in members for m in row) == list(range(len(sizes)))
    assert all(source.examples.lengths[row].sum() <= ROW for row in members)


def test_a_row_stops_at_its_room_for_targets_though_tokens_would_fit():
    lengths = np.array([4] * 8 + [4] * 56)
    targets = np.array([3] * 8 + [1] * 56)
    plan = plan_rows(lengths, targets, 32)
    assert plan.row_targets < 8 * 3  # eight of the first kind would fill a row
    assert max(targets[plan.order[row]].sum() for row in plan.rows) <= plan.row_targets


@properties
@given(sizes, st.integers(0, 1000))
def test_examples_trade_places_only_with_their_equals(sizes, epoch):
    examples = make_examples(sizes)
    plan = plan_rows(examples.lengths, examples.num_targets, ROW)
    dealt, rows = deal(plan, 7, epoch)
    assert (examples.lengths[dealt] == examples.lengths[plan.order]).all()
    assert (examples.num_targets[dealt] == examples.num_targets[plan.order]).all()
    assert sorted(rows.tolist()) == list(range(plan.num_rows))


def test_the_order_differs_between_epochs_and_between_seeds():
    examples = make_examples([(5, 1)] * 60)
    plan = plan_rows(examples.lengths, examples.num_targets, 18)
    dealt = {key: deal(plan, *key)[0].tolist() for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    rows = {key: deal(plan, *key)[1].tolist() for key in dealt}
    assert len({tuple(order) for order in dealt.values()}) == 4
    assert len({tuple(order) for order in rows.values()}) == 4


def test_the_order_is_the_same_for_the_same_seed_and_epoch():
    examples = make_examples(review_sizes(50))
    plan = plan_rows(examples.lengths, examples.num_targets, 256)
    for first, second in zip(deal(plan, 3, 9), deal(plan, 3, 9), strict=True):
        assert first.tolist() == second.tolist()


def test_examples_meet_others_in_later_epochs():
    source = RowSource(make_examples([(5, 1)] * 60), 18, seed=0)
    rows = [
        {frozenset(source.members(epoch * source.rows_per_epoch + r).tolist())
         for r in range(source.rows_per_epoch)}
        for epoch in range(2)
    ]  # fmt: skip
    assert len(rows[0] & rows[1]) < len(rows[0]) / 2


@pytest.mark.parametrize("row_length", [256, 512, 1024])
def test_rows_are_nearly_full_of_reviews(row_length):
    source = RowSource(make_examples(review_sizes(2000)), row_length, seed=0)
    assert source.utilisation >= 0.93
    assert source.utilisation == pytest.approx(
        np.mean([
            (source[r].segment_ids > 0).mean() for r in range(source.rows_per_epoch)
        ])
    )  # fmt: skip


def test_rows_may_be_shorter_where_examples_of_one_length_leave_much_of_them_free():
    examples = make_examples([(200 + i % 5, 5) for i in range(500)])
    whole = RowSource(examples, 1000, seed=0)
    shorter = RowSource(examples, 1000, seed=0, shorter=True)
    assert whole.plan.row_length == 1000
    assert whole.utilisation < 0.85
    assert 750 <= shorter.plan.row_length < 1000
    assert shorter.utilisation >= 0.97


def test_rows_that_are_full_keep_their_length():
    examples = make_examples(review_sizes(2000))
    assert RowSource(examples, 512, seed=0, shorter=True).plan.row_length == 512


def test_shorter_rows_hold_the_longest_example():
    examples = make_examples([(900, 5)] + [(200, 5)] * 500)
    source = RowSource(examples, 1000, seed=0, shorter=True)
    assert source.plan.row_length == 905


def test_full_rows_go_before_cheap_ones(monkeypatch):
    """Answers of very unequal length: few target slots a row would leave it part empty."""
    monkeypatch.setattr(packing, "TARGET_COST", 2.0)
    rng = np.random.default_rng(0)
    answers = np.where(rng.random(2000) < 0.3, rng.integers(10, 80, 2000), 3)
    lengths = rng.integers(30, 80, 2000) + answers

    def used():
        return lengths.sum() / (plan_rows(lengths, answers, 620).num_rows * 620)

    assert used() >= 0.97
    monkeypatch.setattr(packing, "FULL", 0.0)
    assert used() < 0.97


def test_rows_have_room_for_targets_that_no_sample_holds():
    """One of 20,000 examples has far more targets than any other."""
    sizes = [(50, 3)] * 20_000
    sizes[12_345] = (2, 46)
    examples = make_examples(sizes)
    plan = plan_rows(examples.lengths, examples.num_targets, 106)
    assert plan.row_targets >= 46
    assert sum(len(row) for row in plan.rows) == 20_000


def test_the_plan_depends_on_sizes_alone():
    examples = make_examples(review_sizes(200))
    shuffled = np.random.default_rng(1).permutation(200)
    first = plan_rows(examples.lengths, examples.num_targets, 256)
    other = plan_rows(examples.lengths[shuffled], examples.num_targets[shuffled], 256)
    assert [row.tolist() for row in first.rows] == [row.tolist() for row in other.rows]


def test_planning_many_examples_takes_seconds():
    sizes = np.array(review_sizes(20_000))
    before = time.perf_counter()
    plan = plan_rows(sizes.sum(1), sizes[:, 1], 1024)
    assert time.perf_counter() - before < 10
    assert sizes.sum() / (plan.num_rows * 1024) > 0.97


def test_without_packing_every_example_has_a_row_of_its_own():
    examples = make_examples([(3, 1), (5, 4), (2, 2)])
    plan = plan_rows(examples.lengths, examples.num_targets, ROW, packing="none")
    assert sorted(plan.order[row].tolist() for row in plan.rows) == [[0], [1], [2]]
    assert plan.row_targets == 4
    assert plan.row_length == ROW


def test_without_packing_rows_need_no_more_than_the_longest_example():
    lengths, targets = np.array([4, 9, 7]), np.array([1, 4, 2])
    plan = plan_rows(lengths, targets, ROW, packing="none", shorter=True)
    assert plan.row_length == 9


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match=r"of 40 tokens does not fit a row of 32; raise config"):
        plan_rows(np.array([4, 40]), np.array([1, 1]), 32)


def test_no_example_at_all_is_refused():
    with pytest.raises(InputError, match="no example is left"):
        stored_tokens([Chosen(Store(), np.zeros(0, np.int64))])


# What all examples begin with


@properties
@given(sizes, st.integers(0, 30))
def test_the_prefix_and_the_rest_give_back_every_example(sizes, length):
    whole = make_examples(sizes, prefix=np.arange(length))
    prefix = whole.common_prefix()
    rest = whole.without(len(prefix))
    assert len(rest.lengths) == len(sizes)
    for i in range(len(sizes)):
        (old, old_trained), (new, new_trained) = whole.get(i), rest.get(i)
        assert [*prefix, *new] == old.tolist()
        assert [*[False] * len(prefix), *new_trained] == old_trained.tolist()
        assert rest.lengths[i] == len(new)
    assert rest.num_targets.tolist() == whole.num_targets.tolist()


def test_the_prefix_is_what_all_examples_begin_with():
    prefix = np.arange(20)
    examples = make_examples([(3, 1), (4, 2), (5, 1)], prefix=prefix)
    assert examples.common_prefix().tolist() == prefix.tolist()


def test_the_prefix_ends_where_any_example_differs():
    parts = []
    for differs_at in (30, 17, 25):
        ids = np.arange(40, dtype=np.int32)
        ids[differs_at] = 99
        parts.append((ids, np.arange(40) >= 38))
    assert tokens_of(parts).common_prefix().tolist() == list(range(17))


@pytest.mark.parametrize("first_trained", [9, 12, 20])
def test_the_prefix_leaves_the_token_that_predicts_the_first_target(first_trained):
    ids = np.arange(20, dtype=np.int32)
    same = tokens_of([(ids, np.arange(20) >= first_trained)] * 3)
    prefix = same.common_prefix()
    assert len(prefix) == first_trained - 1
    rest = same.without(len(prefix))
    assert rest.lengths.min() >= 1
    assert rest.num_targets.tolist() == same.num_targets.tolist()
    assert not any(rest.get(i)[1][0] for i in range(3))


def test_the_prefix_never_holds_a_whole_example():
    short, long = np.arange(10, dtype=np.int32), np.arange(30, dtype=np.int32)
    examples = tokens_of([(short, np.zeros(10, bool)), (long, np.arange(30) >= 29)])
    assert len(examples.common_prefix()) == 9
    assert examples.without(9).lengths.tolist() == [1, 21]


def test_a_handful_of_common_tokens_is_no_prefix():
    for length, expected in ((MIN_PREFIX - 1, 0), (MIN_PREFIX, MIN_PREFIX)):
        examples = make_examples([(4, 1)] * 3, prefix=np.arange(length))
        assert len(examples.common_prefix()) == expected


def test_examples_that_begin_with_a_target_share_no_prefix():
    ids = np.arange(20, dtype=np.int32)
    examples = tokens_of([(ids, np.ones(20, bool))] * 2)
    assert len(examples.common_prefix()) == 0


def test_a_single_example_shares_its_prompt_with_itself():
    examples = make_examples([(20, 2)])
    assert examples.common_prefix().tolist() == examples.get(0)[0][:19].tolist()
