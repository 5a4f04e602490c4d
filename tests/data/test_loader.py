"""Rows and batches by number, and what they hold."""

import time

import numpy as np
import pytest
from test_packing import make_examples, review_sizes
from tokenized import tokens_of

from ift_jax.batch import Batch
from ift_jax.data.loader import Batches, RowSource
from ift_jax.errors import InputError


def assert_equal(first, second):
    for name in Batch._fields:
        left, right = getattr(first, name), getattr(second, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, name)


def targets_of(batches, steps):
    return sorted(
        int(t)
        for step in steps
        for t in batches[step].targets[batches[step].weights > 0].tolist()
    )  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return RowSource(make_examples(review_sizes(300)), 256, seed=5)


# A row


def test_a_row_is_what_the_docstring_of_batch_shows():
    a, b, arrow, x, dot, c, y = range(1, 8)
    first = np.array([a, b, arrow, x, dot], np.int32), np.array([0, 0, 0, 1, 1], bool)
    second = np.array([c, arrow, y, dot], np.int32), np.array([0, 0, 1, 1], bool)
    row = RowSource(tokens_of([first, second]), 10, seed=0, shuffle=False)[0]
    room = len(row.targets)
    assert room >= 5
    expected = Batch._make([
        [a, b, arrow, x, dot, c, arrow, y, dot, 0],
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 0],
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 0],
        [2, 3, 6, 7] + [0] * (room - 4),
        [x, dot, y, dot] + [0] * (room - 4),
        [1, 1, 1, 1] + [0] * (room - 4),
    ])  # fmt: skip
    for name in Batch._fields:
        assert getattr(row, name).tolist() == getattr(expected, name), name


def test_rows_hold_their_examples(source):
    examples = source.examples
    for r in range(source.rows_per_epoch):
        row, members = source[r], source.members(r)
        assert row.segment_ids.max() == len(members)
        for segment, member in enumerate(members.tolist(), 1):
            inside = row.segment_ids == segment
            ids, _ = examples.get(member)
            assert row.tokens[inside].tolist() == ids.tolist()
            assert row.positions[inside].tolist() == list(range(len(ids)))
        outside = row.segment_ids == 0
        assert not row.tokens[outside].any()
        assert not row.positions[outside].any()


def test_every_target_is_the_token_after_its_position_in_the_same_example(source):
    for r in range(source.rows_per_epoch):
        row = source[r]
        used = row.weights > 0
        at = row.target_positions[used]
        assert (row.tokens[at + 1] == row.targets[used]).all()
        assert (row.segment_ids[at + 1] == row.segment_ids[at]).all()
        assert (row.segment_ids[at] > 0).all()
        assert set(row.weights.tolist()) <= {0.0, 1.0}
        # Unused places come last and point at position 0.
        assert not used[used.sum() :].any()
        assert not row.target_positions[~used].any()
        assert not row.targets[~used].any()


def test_an_example_whose_every_token_is_trained_has_all_but_the_first_as_targets():
    ids = np.arange(10, 15, dtype=np.int32)
    row = RowSource(tokens_of([(ids, np.ones(5, bool))]), 8, seed=0)[0]
    assert row.targets[row.weights > 0].tolist() == [11, 12, 13, 14]
    assert row.target_positions[row.weights > 0].tolist() == [0, 1, 2, 3]


def test_positions_count_on_from_a_shared_prefix():
    examples = make_examples([(4, 2), (6, 1)], prefix=np.arange(12))
    with_prefix = RowSource(examples, 32, seed=0, prefix=12)
    row = with_prefix[0]
    assert row.tokens[row.segment_ids == 1].tolist() not in ([], list(range(12)))
    for segment in (1, 2):
        positions = row.positions[row.segment_ids == segment].tolist()
        assert positions == list(range(12, 12 + len(positions)))
    whole = RowSource(examples, 64, seed=0)
    targets = [s[0].targets[s[0].weights > 0] for s in (whole, with_prefix)]
    assert sorted(targets[0].tolist()) == sorted(targets[1].tolist())


# Rows and batches by number


def test_a_row_computed_alone_equals_the_row_of_a_walk(source):
    examples = make_examples(review_sizes(300))
    count = 3 * source.rows_per_epoch
    for r in np.random.default_rng(0).permutation(count).tolist()[:40]:
        assert_equal(RowSource(examples, 256, seed=5)[r], source[r])


def test_all_epochs_have_the_same_number_of_rows_and_other_orders(source):
    n = source.rows_per_epoch
    epochs = [[source.members(e * n + r).tolist() for r in range(n)] for e in range(4)]
    for members in epochs:
        assert sorted(m for row in members for m in row) == list(range(300))
    assert len({str(members) for members in epochs}) == 4


def test_without_shuffling_every_epoch_is_the_same():
    source = RowSource(make_examples(review_sizes(60)), 256, seed=5, shuffle=False)
    for r in range(source.rows_per_epoch):
        assert_equal(source[r], source[r + 7 * source.rows_per_epoch])


def test_a_batch_far_along_costs_what_the_first_costs():
    examples = make_examples(review_sizes(3000))

    def seconds(step):
        times = []
        for attempt in range(5):
            batches = Batches(RowSource(examples, 512, seed=attempt), 8, 0)
            before = time.perf_counter()
            _ = batches[step]
            times.append(time.perf_counter() - before)
        return sorted(times)[2]

    assert seconds(1_000_000) < 10 * seconds(1)


@pytest.mark.parametrize("start", [0, 1, 17, 1_000_003])
def test_batches_from_a_step_are_those_computed_one_by_one(source, start):
    batches = Batches(source, 4, 0)
    for offset, batch in zip(range(25), batches.from_step(start), strict=False):
        assert_equal(batch, batches[start + offset])


def test_a_batch_is_its_rows(source):
    batch = Batches(source, 4, 0)[3]
    assert batch.tokens.shape == (4, 256)
    for b in range(4):
        assert_equal(Batch._make(field[b] for field in batch), source[12 + b])


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("start", [0, 9, 1_000_003])
def test_the_rows_of_all_hosts_are_the_batch_of_one(source, hosts, start):
    whole = Batches(source, 8, 0)
    parts = [Batches(source, 8, 0, (host, hosts)).from_step(start) for host in range(hosts)]
    for offset, batches in zip(range(12), zip(*parts, strict=True), strict=False):
        joined = Batch._make(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        assert_equal(joined, whole[start + offset])


def test_a_batch_that_does_not_divide_over_the_hosts_is_refused(source):
    with pytest.raises(InputError, match="does not divide over 3 hosts"):
        Batches(source, 8, 0, (0, 3)).from_step(0)


@pytest.mark.parametrize(("batch_size", "num_epochs"), [(8, 1), (8, 3), (5, 2), (64, 1)])
def test_a_run_trains_every_target_once_an_epoch(batch_size, num_epochs):
    examples = make_examples(review_sizes(100))
    batches = Batches(RowSource(examples, 256, seed=1), batch_size, num_epochs)
    trained = np.concatenate([ids[is_trained] for ids, is_trained in map(examples.get, range(100))])
    expected = np.sort(np.repeat(trained, num_epochs)).tolist()
    assert targets_of(batches, range(batches.num_steps)) == expected
    # One step fewer would have left something out, one more adds nothing.
    assert targets_of(batches, range(batches.num_steps - 1)) != expected
    assert targets_of(batches, [batches.num_steps]) == []


def test_the_last_batch_is_filled_with_empty_rows():
    source = RowSource(make_examples(review_sizes(100)), 256, seed=1)
    batch_size = source.rows_per_epoch - 1
    batches = Batches(source, batch_size, 1)
    assert batches.num_steps == 2
    last = batches[1]
    assert last.tokens.shape == (batch_size, 256)
    assert last.segment_ids[0].any()
    for name in Batch._fields:
        assert not getattr(last, name)[1:].any(), name


@pytest.mark.parametrize(("num_epochs", "rows"), [(0.5, 0.5), (1.5, 1.5), (1e-9, 0)])
def test_a_part_of_an_epoch_is_that_part_of_its_rows_and_never_nothing(num_epochs, rows):
    source = RowSource(make_examples(review_sizes(100)), 256, seed=1)
    batches = Batches(source, 4, num_epochs)
    assert batches.num_rows == max(1, round(rows * source.rows_per_epoch))


def test_zero_epochs_are_without_end(source):
    assert Batches(source, 4, 0).num_steps > 10**15


def test_an_error_in_the_loader_reaches_the_loop(source):
    """Not: the data seem to have run out, and training ends as if it were done."""

    class Broken(RowSource):
        def __getitem__(self, index):
            if index == 9:
                raise OSError("disk gone")
            return super().__getitem__(index)

    batches = Batches(Broken(source.examples, 256, seed=0), 4, 0)
    with pytest.raises(Exception, match="disk gone"):
        list(zip(range(10), batches.from_step(0), strict=False))


def test_the_summary_counts_examples_and_rows(source):
    assert source.summary() == (
        f"300 examples in {source.rows_per_epoch} rows of 256 tokens, {source.utilisation:.1%} used"
    )
