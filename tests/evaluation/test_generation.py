"""Generation: one prompt's tokens, whatever else is in the batch and wherever it is cut."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from torch_reference import torch_model

from ift_jax.errors import InputError
from ift_jax.evaluation import batching, generation
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.models.decoder import Decoder
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained

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


PENALIZED = Sampling(max_new_tokens=10, repetition_penalty=1.6)
FILTERED = dataclasses.replace(
    SAMPLED, temperature=1.5, top_k=50, top_p=0.9, repetition_penalty=1.3
)
WAYS = {"greedy": GREEDY, "with every option": FILTERED}


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


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["apart", "shared beginning"])
def test_a_prompt_gives_the_same_beside_other_prompts(model, prompts, sampling):
    together = run(model, prompts, sampling)
    assert len({tuple(row) for row in together}) == len(prompts)
    others = [prompt(50 + i, 3 + 9 * i) for i in range(len(prompts))]
    for number in (0, 5):
        beside_others = [*others[:number], prompts[number], *others[number + 1 :]]
        assert run(model, beside_others, sampling)[number] == together[number]
    assert run(model, prompts[:1], sampling)[0] == together[0]
    assert run(model, [others[0], *prompts[::-1]], sampling)[:0:-1] == together


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_neither_batch_size_nor_prefix_sharing_changes_the_tokens(model, sampling, monkeypatch):
    expected = run(model, SHARED, sampling)
    monkeypatch.setattr(batching, "DECODE_ROWS", 1)
    assert run(model, SHARED, sampling) == expected
    monkeypatch.setattr(batching, "MIN_PREFIX", 10_000)  # nothing is shared
    assert run(model, SHARED, sampling) == expected


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_prompts_of_several_kinds_share_their_own_beginnings(model, sampling, monkeypatch):
    mixed = [prompts[i] for i in range(4) for prompts in (SHARED, PROMPTS)]
    expected = run(model, mixed, sampling)
    cut, found = batching.beginnings, []

    def at_no_cost(rows, _):
        found.extend(cut(rows, 8))
        return found

    monkeypatch.setattr(generation, "beginnings", at_no_cost)
    assert run(model, mixed, sampling) == expected
    assert [0, 2, 4, 6] in [part.members for part in found if part.shared]


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
    monkeypatch.setattr(generation, "ROOM_STEP", 41)  # a shape that is not compiled yet
    run(model, PROMPTS[:2], Sampling(max_new_tokens=37), stops)
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


def test_the_repetition_penalty_is_that_of_transformers(model, tiny_llama):
    """Over prompt and answer; theirs one prompt a call, as it would count padding."""
    reference = torch_model(tiny_llama)
    prompts = SHARED[:3]
    found = run(model, prompts, PENALIZED)
    assert found != run(model, prompts)
    for ids, tokens in zip(prompts, found, strict=True):
        out = reference.generate(
            torch.tensor(ids[None], dtype=torch.long), do_sample=False, max_new_tokens=10,
            min_new_tokens=10, repetition_penalty=1.6, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert tokens == out[0, len(ids) :].tolist()


def test_room_for_new_tokens_grows_without_a_trace(model, monkeypatch):
    sampling = FILTERED
    expected = run(model, PROMPTS, sampling)
    monkeypatch.setattr(generation, "ROOM_STEP", 3)
    monkeypatch.setattr(generation, "MAX_ROOM", 3)
    assert run(model, PROMPTS, sampling) == expected


def test_one_prompts_tokens_come_a_few_at_a_time(model):
    whole = run(model, PROMPTS[:1])[0]
    for stop_ids in (NEVER, (whole[6],)):
        expected = run(model, PROMPTS[:1], stop_ids=stop_ids)[0]
        parts = [
            tokens.tolist()
            for tokens in generation.generate_one(
                model.structure, model.params, PROMPTS[0], GREEDY, stop_ids=stop_ids
            )
        ]
        assert [len(part) for part in parts][:2] == [1, 5]
        assert parts[-1] == expected
        assert all(expected[: len(part)] == part for part in parts)


def test_rows_that_need_no_more_end_the_call(model, monkeypatch):
    monkeypatch.setattr(generation, "CHECK_EVERY", 2)
    outputs = generate(
        model.structure, model.params, PROMPTS, GREEDY, stop_ids=NEVER,
        ended=lambda tokens: len(tokens) >= 4,
    )  # fmt: skip
    assert [output.tolist() for output in outputs] == [row[:5] for row in run(model, PROMPTS)]


def test_device_memory_does_not_grow_with_the_number_of_prompts(model, monkeypatch):
    monkeypatch.setattr(batching, "DECODE_ROWS", 4)
    calls, inner = [], generation._decode

    def watched(*args):
        taken = {id(leaf) for leaf in jax.tree.leaves(args)}
        calls.append(sum(x.nbytes for x in jax.live_arrays() if id(x) not in taken))
        return inner(*args)

    monkeypatch.setattr(generation, "_decode", watched)
    peaks = []
    for times in (2, 8):
        calls.clear()
        run(model, PROMPTS * times)
        peaks.append(max(calls))
    assert len(calls) == 12
    assert peaks[1] <= peaks[0]


ROWS = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("storage", "peft"),
    [
        ({}, {}),
        ({}, {"method": "lora", "rank": 4}),
        ({}, {"method": "lora", "rank": 4, "token_rows": ROWS}),
        ({"quantize": "nf4", "quantize_group": 16}, {"method": "lora", "rank": 4, "init": "pissa"}),
    ],
    ids=["base", "lora", "token rows", "nf4 and pissa"],
)
def test_bfloat16_generates_as_a_forward_pass_does(tiny_llama, storage, peft):
    """XLA on CPUs refuses some bfloat16 products of attention behind a shared beginning."""
    model = load_pretrained(tiny_llama, dtype="bfloat16", **storage).adapt(PeftConfig(**peft))
    prompts = [np.concatenate([BEGINNING, prompt(seed, 9)]) for seed in (1, 2)]
    for ids, new in zip(prompts, run(model, prompts), strict=True):
        scores = model.logits(np.concatenate([ids, new[:-1]])[None].astype(np.int32))[
            0, len(ids) - 1 :
        ]
        # Greedy, up to what bfloat16 rounds.
        lost = scores.max(axis=-1) - scores[np.arange(len(new)), np.array(new)]
        assert float(lost.max()) < 0.05 * float(scores.std())
