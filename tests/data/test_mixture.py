"""Counts are exact in every epoch, and what an epoch holds is found without the others."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import make_examples

from ift_jax.data.loader import RowSource
from ift_jax.data.mixture import MixtureConfig, Slots, epoch_counts, make_slots
from ift_jax.errors import InputError

properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)
sizes_lists = st.lists(st.integers(1, 5000), min_size=1, max_size=12)


# Counts


@properties
@given(
    sizes_lists,
    st.floats(1.0, 10.0),
    st.sampled_from([0, 50, 700]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([0, 1000, 12345]),
)
def test_counts_follow_the_formula_and_add_up(sizes, temperature, cap, scale, size):
    config = MixtureConfig(temperature=temperature, cap=cap, scale=scale, size=size)
    rates = np.array([min(n * scale, cap or np.inf) ** (1 / temperature) for n in sizes])
    total = size or (round(rates.sum()) if temperature == 1 else sum(sizes))
    if not total:
        with pytest.raises(InputError, match="an epoch would hold no example"):
            epoch_counts(sizes, config)
        return
    counts = epoch_counts(sizes, config)
    assert sum(counts) == total
    exact = rates / rates.sum() * total
    assert np.abs(np.array(counts) - exact).max() < 1 + 1e-6


def test_each_example_once_an_epoch_unless_asked_otherwise():
    assert epoch_counts([7, 19, 1], MixtureConfig()) == [7, 19, 1]


def test_a_weight_is_how_often_the_examples_are_seen():
    assert epoch_counts([10, 20], MixtureConfig(), weights=[3.0, 0.5]) == [30, 10]


def test_explicit_weights_do_not_look_at_sizes():
    config = MixtureConfig(rates="weights", size=100)
    assert epoch_counts([10, 90_000], config, weights=[3.0, 1.0]) == [75, 25]


def test_a_high_temperature_makes_shares_equal_and_a_cap_bounds_them():
    assert epoch_counts([10, 1000], MixtureConfig(temperature=1e9, size=100)) == [50, 50]
    assert epoch_counts([10, 1000], MixtureConfig(cap=40)) == [10, 40]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("size", [0, 4000])
def test_replay_has_its_share_and_the_task_the_rest(share, size):
    config = MixtureConfig(replay_share=share, size=size)
    main, first, second = epoch_counts([1000, 300, 700], config, replay=[False, True, True])
    total = main + first + second
    assert (first + second) / total == pytest.approx(share, abs=1e-3)
    assert first / (first + second) == pytest.approx(0.3, abs=0.01)
    assert total == size if size else main == 1000


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(InputError, match="no task with a weight has examples"):
        epoch_counts([0], MixtureConfig())
    with pytest.raises(InputError, match="need each other"):
        epoch_counts([5, 5], MixtureConfig(replay_share=0.1))
    with pytest.raises(InputError, match="need each other"):
        epoch_counts([5, 5], MixtureConfig(), replay=[False, True])
    with pytest.raises(InputError, match="an epoch would hold no example"):
        epoch_counts([40], MixtureConfig(scale=0.001))
    for wrong in (
        {"rates": "x"}, {"temperature": 0.0}, {"cap": -1}, {"replay_share": 1.0},
        {"rates": "weights", "cap": 3},
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"config\.data\.mixture"):
            MixtureConfig(**wrong)


# Slots


@properties
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 70)), min_size=1, max_size=5),
       st.integers(0, 2**31))  # fmt: skip
def test_every_epoch_holds_the_counts_and_no_more_than_its_slots(tasks, seed):
    sizes, counts = [size for size, _ in tasks], [count for _, count in tasks]
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, sum(sizes))
    targets = rng.integers(1, 5, sum(sizes))
    slots = make_slots(lengths, targets, sizes, counts, seed)
    every = np.arange(sum(counts))
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in (0, 1, 10**9):
        held = slots.at(every, epoch)
        assert np.bincount(task_of[held], minlength=len(sizes)).tolist() == counts
        assert (lengths[held] <= slots.largest(lengths)).all()
        assert (targets[held] <= slots.largest(targets)).all()


def test_what_is_left_over_takes_turns_until_all_were_seen_equally():
    size, count = 12, 4
    slots = make_slots(np.arange(12), np.ones(12, int), [size], [count], 0)
    seen = Counter(m for e in range(6) for m in slots.at(np.arange(count), e).tolist())
    assert set(seen.values()) == {2}
    assert len(seen) == size


def test_strata_are_of_nearly_equal_length():
    lengths = np.random.default_rng(0).integers(10, 400, 10_000)
    slots = make_slots(lengths, np.ones(10_000, int), [10_000], [500], 0)
    wasted = slots.largest(lengths) - lengths[slots.at(np.arange(500), 3)]
    assert wasted.mean() < 0.01 * lengths.mean()


def test_rows_of_a_mixture_have_exact_counts_each_epoch_and_one_pattern():
    examples = make_examples([(n % 40 + 3, n % 3 + 1) for n in range(90)])
    sizes, counts = [60, 30], [45, 75]
    slots = make_slots(examples.lengths, examples.num_targets, sizes, counts, 3)
    source = RowSource(examples, 96, seed=3, slots=slots)
    per_epoch = source.rows_per_epoch
    for epoch in (0, 1, 7):
        rows = [source.members(epoch * per_epoch + r) for r in range(per_epoch)]
        held = np.concatenate(rows)
        assert [(held < 60).sum(), (held >= 60).sum()] == counts
        for number, members in enumerate(rows):
            row = source[epoch * per_epoch + number]
            assert row.segment_ids.max() == len(members)
            assert (row.weights > 0).sum() == examples.num_targets[members].sum()


def test_without_a_mixture_every_example_is_its_own_slot():
    slots = make_slots(np.arange(5), np.arange(5), [2, 3], [2, 3], 9)
    plain = Slots.all_of(5)
    for epoch in (0, 4):
        assert slots.at(np.arange(5), epoch).tolist() == plain.at(np.arange(5), epoch).tolist()
