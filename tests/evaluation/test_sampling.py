"""Choosing tokens: filtered logits against transformers' processors, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ift_jax.errors import InputError
from ift_jax.evaluation.sampling import Choice, Sampling, adjusted, choose, most_likely

VOCAB = 97
HELD = np.array([[3, 5, 5, 80, 0], [1, 2, 9, 9, 96], [7, 7, 7, 7, 7]])
LOGITS = (4 * np.random.default_rng(0).normal(size=(3, VOCAB))).astype(np.float32)


def seen():
    found = np.zeros((len(HELD), VOCAB), bool)
    found[np.arange(len(HELD))[:, None], HELD] = True
    return jnp.asarray(found)


def by_transformers(sampling):
    scores, ids = torch.tensor(LOGITS), torch.tensor(HELD)
    steps = []
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.5},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.5, "top_k": 5000},
        {"temperature": 3.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.3},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(options):
    sampling = Sampling(**options)
    found = np.asarray(adjusted(jnp.asarray(LOGITS), Choice.of(sampling), seen()))
    expected = by_transformers(sampling)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.array_equal(found, LOGITS)


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    logits = jnp.array([[1.0, 2.0, 2.0, 0.0, 0.0, -3.0]])
    for options, kept in (({"top_k": 1}, 2), ({"top_k": 4}, 5), ({"top_p": 0.01}, 2)):
        found = adjusted(logits, Choice.of(Sampling(temperature=1.0, **options)), None)
        assert int(jnp.isfinite(found).sum()) == kept, options


def test_the_most_likely_token_is_the_first_of_the_largest():
    logits = np.round(LOGITS)  # many are equal
    np.testing.assert_array_equal(most_likely(jnp.asarray(logits)), logits.argmax(1))
    broken = most_likely(jnp.full((1, 5), jnp.nan))
    assert 0 <= int(broken[0]) < 5


def test_samples_are_drawn_from_what_the_filters_left():
    sampling, count = Sampling(temperature=2.0, top_k=4, top_p=0.9), 2000
    choice = Choice.of(sampling)
    one = jnp.asarray(LOGITS[:1])
    keys = jax.random.split(jax.random.key(1), count)
    tokens = np.asarray(choose(jnp.tile(one, (count, 1)), choice, None, keys))
    expected = np.asarray(jax.nn.softmax(adjusted(one, choice, None)))[0]
    shares = np.bincount(tokens, minlength=VOCAB) / count
    assert 1 < (expected > 0).sum() <= 4
    assert (shares[expected == 0] == 0).all()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / count)


def test_what_is_not_asked_for_is_not_computed():
    assert Choice.of(Sampling()) == Choice(None, None, None, None)
    assert all(
        value is not None
        for value in Choice.of(
            Sampling(temperature=1.0, top_k=2, top_p=0.5, repetition_penalty=1.1)
        )
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: expected a whole number, got 1.5"),
        ({"temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"temperature": -0.1}, "temperature: expected 0 or a number above, got -0.1"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"temperature": float("inf")}, "temperature: expected"),
        ({"temperature": 1.0, "top_k": -1}, "top_k: expected a count"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p: expected a probability .*, got 0\.0"),
        ({"temperature": 1.0, "top_p": 1.1}, r"top_p: expected a probability .*, got 1\.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected a number above 0"),
        ({"seed": -1}, r"seed: expected 0 to 2\*\*32 - 1, got -1"),
        ({"seed": 2**32}, r"seed: expected 0 to 2\*\*32 - 1, got 4294967296"),
        ({"top_k": 5}, "top_k: has no effect at temperature 0"),
        ({"top_p": 0.5}, "top_p: has no effect at temperature 0"),
        ({"stop": ["a", ""]}, r"stop: expected texts that are not empty, got \['a', ''\]"),
        ({"stop": 3}, "stop: expected texts"),
    ],
    ids=str,
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_one_stop_text_needs_no_list():
    assert Sampling(stop="ab").stop == ("ab",)
    assert dataclasses.replace(Sampling(stop=["a", "b"]), seed=1).stop == ("a", "b")
