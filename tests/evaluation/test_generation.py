"""Generation: one prompt's tokens, whatever else is in the batch and wherever it is cut."""

import dataclasses

import jax
import numpy as np
import pytest

from ift_jax.errors import InputError
from ift_jax.evaluation import batching
from ift_jax.evaluation.generation import Sampling, generate
from ift_jax.language_model import load_pretrained
from ift_jax.models.decoder import Decoder

NEVER = (999,)  # no token of the vocabulary


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_pretrained(tiny_llama)


def prompt(seed, size):
    return np.random.default_rng(seed).integers(2, 258, size).astype(np.int32)


PROMPTS = [prompt(seed, size) for seed, size in enumerate((5, 70, 1, 33, 64, 18))]
BEGINNING = prompt(99, 40)
SHARED = [np.concatenate([BEGINNING, p]) for p in PROMPTS]
GREEDY, SAMPLED = Sampling(max_new_tokens=10), Sampling(max_new_tokens=10, temperature=0.8, seed=7)


def run(model, prompts, sampling=GREEDY, stop_ids=NEVER):
    outputs = generate(model.structure, model.params, prompts, sampling, stop_ids=stop_ids)
    return [output.tolist() for output in outputs]


def by_full_forward(model, ids, count):
    """Greedy tokens without any cache."""
    ids = list(map(int, ids))
    new = []
    for _ in range(count):
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(ids)] = ids
        mask = (np.arange(128) < len(ids))[None]
        new.append(int(np.argmax(model.logits(padded, mask)[0, len(ids) - 1])))
        ids.append(new[-1])
    return new


@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["apart", "shared beginning"])
def test_decoding_with_the_cache_equals_a_forward_pass_per_token(model, prompts):
    found = run(model, prompts)
    for number in (0, 1):
        assert found[number] == by_full_forward(model, prompts[number], 10)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["apart", "shared beginning"])
def test_a_prompt_gives_the_same_beside_other_prompts(model, prompts, sampling):
    together = run(model, prompts, sampling)
    assert len({tuple(row) for row in together}) == len(prompts)
    others = [prompt(50 + i, 3 + 9 * i) for i in range(len(prompts))]
    for number in (0, 5):
        beside_others = [*others[:number], prompts[number], *others[number + 1 :]]
        assert run(model, beside_others, sampling)[number] == together[number]
    assert run(model, prompts[:1], sampling)[0] == together[0]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_neither_batch_size_nor_prefix_sharing_changes_the_tokens(model, sampling, monkeypatch):
    expected = run(model, SHARED, sampling)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 1)  # one row a call
    assert run(model, SHARED, sampling) == expected
    monkeypatch.setattr(batching, "MIN_PREFIX", 10_000)  # nothing is shared
    assert run(model, SHARED, sampling) == expected


def test_the_order_of_prompts_does_not_matter_to_greedy_generation(model):
    assert run(model, PROMPTS[::-1]) == run(model, PROMPTS)[::-1]


def test_sampling_depends_on_the_seed_and_on_the_temperature(model):
    base = run(model, PROMPTS, SAMPLED)
    assert run(model, PROMPTS, SAMPLED) == base
    assert run(model, PROMPTS, dataclasses.replace(SAMPLED, seed=8)) != base
    assert run(model, PROMPTS, dataclasses.replace(SAMPLED, temperature=2.0)) != base
    cold = dataclasses.replace(SAMPLED, temperature=1e-4)
    assert run(model, PROMPTS, cold) == run(model, PROMPTS)


def test_equal_prompts_of_one_call_get_samples_of_their_own(model):
    first, second = run(model, [PROMPTS[0]] * 2, SAMPLED)
    assert first != second


def test_samples_follow_the_distribution_of_the_logits(model):
    count, temperature = 600, 1.5
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    tokens = np.array(run(model, [PROMPTS[0]] * count, sampling))[:, 0]
    logits = np.asarray(model.logits(PROMPTS[0][None])[0, -1], np.float64) / temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    top = int(np.argmax(expected))
    deviation = np.sqrt(expected[top] * (1 - expected[top]) / count)
    assert abs(np.mean(tokens == top) - expected[top]) < 4 * deviation
    assert len(set(tokens)) > 1


def test_every_stop_token_ends_a_row_and_is_left_out(model):
    free = run(model, PROMPTS)
    stops = (free[0][3], free[1][0], free[3][5])
    found = run(model, PROMPTS, stop_ids=stops)
    for whole, cut in zip(free, found, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stops]
        assert cut == whole[: min(ends, default=len(whole))]
    assert found[1] == []


def test_decoding_ends_when_the_last_row_has_ended(model, monkeypatch):
    free = run(model, PROMPTS[:2], Sampling(max_new_tokens=37))
    stops = (free[0][3], free[1][5])
    lengths = [len(row) for row in run(model, PROMPTS[:2], Sampling(max_new_tokens=37), stops)]
    steps, decode = [], Decoder.decode_states

    def counted(self, *args):
        jax.debug.callback(lambda: steps.append(1))
        return decode(self, *args)

    monkeypatch.setattr(Decoder, "decode_states", counted)
    monkeypatch.setattr(batching, "bucket", lambda length: 128)  # both rows in one call
    run(model, PROMPTS[:2], Sampling(max_new_tokens=38), stops)
    jax.effects_barrier()
    assert len(steps) == max(lengths) < 10


def test_no_row_gets_more_than_max_new_tokens(model):
    for count in (1, 4):
        found = run(model, PROMPTS, Sampling(max_new_tokens=count))
        assert [len(row) for row in found] == [count] * len(PROMPTS)
        assert found == [row[:count] for row in run(model, PROMPTS)]


def test_no_prompts_give_no_completions(model):
    assert run(model, []) == []


def test_an_empty_prompt_is_refused_by_its_number(model):
    with pytest.raises(InputError, match="prompt 1 is empty"):
        run(model, [PROMPTS[0], np.zeros(0, np.int32)])


def test_a_prompt_that_leaves_no_room_is_refused_by_its_number(model):
    limit = model.structure.config.max_positions
    assert len(run(model, [prompt(0, limit - 10)])[0]) == 10
    with pytest.raises(InputError, match=rf"prompt 1: {limit - 9} tokens and 10 new ones exceed"):
        run(model, [PROMPTS[0], prompt(0, limit - 9)])


@pytest.mark.parametrize("fields", [{"max_new_tokens": 0}, {"temperature": -0.1}])
def test_impossible_sampling_is_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        Sampling(**fields)
