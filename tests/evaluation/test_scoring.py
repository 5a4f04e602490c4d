"""Ranking by log-likelihood, against transformers scoring every full text on its own."""

import tracemalloc
from itertools import pairwise

import jax
import numpy as np
import pytest
import torch
from torch_reference import save_variant, torch_model

from ift_jax.errors import InputError
from ift_jax.evaluation import batching, scoring
from ift_jax.evaluation.scoring import (
    Question,
    choice_log_likelihoods,
    choice_turns,
    encode_questions,
)
from ift_jax.pretrained import load_pretrained

INSTRUCTION = "Say whether the review is good. "  # longer than batching.MIN_PREFIX bytes
CHOICES = [("yes", "no"), ("terrible", "so-so", "really quite good"), ("1", "22"), ("ja",)]
TEXTS = [f"{'long ' * (i * 3)}review number {i}?" for i in range(6)]
ASKED = [
    ([{"role": "user", "content": INSTRUCTION + text}], CHOICES[i % len(CHOICES)])
    for i, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_variant(tmp_path_factory.mktemp("scoring") / "model", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def questions(model):
    return encode_questions(model.chat, [choice_turns(*asked) for asked in ASKED])


def scores(model, questions):
    return choice_log_likelihoods(model.structure, model.params, questions)


@pytest.fixture(scope="module")
def expected(folder, model):
    """Each text alone through transformers: log-probabilities behind the prompt, summed."""
    reference, tokenizer = torch_model(folder), model.tokenizer
    found = []
    for messages, choices in ASKED:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(prompt).input_ids)
        sums = []
        for choice in choices:
            ids = torch.tensor([tokenizer(prompt + choice + "<|im_end|>").input_ids])
            with torch.no_grad():
                logits = reference(ids).logits[0].double()
            steps = torch.log_softmax(logits, -1)[:-1].gather(1, ids[0, 1:, None])
            sums.append(float(steps[start - 1 :].sum()))
        found.append(np.array(sums))
    return found


def close(a, b, atol=1e-3):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


def test_scores_equal_those_of_each_text_alone_in_transformers(model, questions, expected):
    found = scores(model, questions)
    assert [len(row) for row in found] == [len(choices) for _, choices in ASKED]
    [whole] = batching.beginnings([q.prompt for q in questions], batching.BATCH_TOKENS)
    assert whole.shared > batching.MIN_PREFIX
    close(found, expected)


def test_the_end_of_turn_counts(model, questions):
    without = [Question(q.prompt, tuple(c[:-1] for c in q.choices)) for q in questions]
    assert all(c[-1] == model.chat.end_of_turn_id for q in questions for c in q.choices)
    for with_end, shorter in zip(scores(model, questions), scores(model, without), strict=True):
        assert (with_end < shorter - 1e-3).all()


@pytest.mark.parametrize("tokens", [40, 300, 100_000])
def test_the_batch_size_does_not_matter(model, questions, expected, monkeypatch, tokens):
    monkeypatch.setattr(batching, "BATCH_TOKENS", tokens)
    close(scores(model, questions), expected)


def test_sharing_the_beginning_does_not_matter(model, questions, monkeypatch):
    shared = scores(model, questions)
    monkeypatch.setattr(batching, "MIN_PREFIX", 10_000)
    close(scores(model, questions), shared, atol=1e-4)


def test_neither_the_order_of_questions_nor_of_choices_matters(model, questions, expected):
    close(scores(model, questions[::-1]), expected[::-1])
    turned = [Question(q.prompt, q.choices[::-1]) for q in questions]
    close(scores(model, turned), [row[::-1] for row in expected])


def test_a_question_alone_scores_as_among_others(model, questions, expected):
    for number in (0, 5):
        close(scores(model, questions[number : number + 1]), expected[number : number + 1])


def test_choices_do_not_see_each_other(model, questions, expected):
    """The last choice of three scores as it does when the other two are replaced."""
    question = questions[1]
    noise = tuple(np.full(len(c), 77, np.int32) for c in question.choices[:2])
    changed = scores(model, [Question(question.prompt, (*noise, question.choices[2]))])[0]
    np.testing.assert_allclose(changed[2], expected[1][2], atol=1e-3)
    assert (np.abs(changed[:2] - expected[1][:2]) > 1e-2).all()


def test_choices_beyond_a_batch_take_several_rows(model, questions, monkeypatch):
    """As many requests with one context, or none, are one question for lm_eval."""
    made, empty = [], scoring._Rows.empty
    monkeypatch.setattr(
        scoring._Rows, "empty", staticmethod(lambda *shape: made.append(shape) or empty(*shape))
    )
    choices = [np.full(1 + n % 5, 40 + n % 7, np.int32) for n in range(60)]
    choices.append(np.arange(90, dtype=np.int32) + 40)
    prompt = np.array([40], np.int32)
    [whole] = scores(model, [Question(prompt, tuple(choices))])
    monkeypatch.setattr(batching, "BATCH_TOKENS", 60)
    made.clear()
    found, other = scores(model, [Question(prompt, tuple(choices)), questions[1]])
    assert {length for _, length, _ in made} == {64, 128}  # not 1 + 180 + 90
    np.testing.assert_allclose(found, whole, atol=1e-3)
    close([other], scores(model, [questions[1]]), atol=1e-4)


def test_logits_of_a_long_row_are_made_piece_by_piece(model, questions, expected, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_TARGETS", 4)
    scoring._target_nll.clear_cache()
    close(scores(model, questions), expected)
    scoring._target_nll.clear_cache()


@pytest.mark.parametrize(
    ("own", "most", "width"),
    [
        (3, 3, 3),
        (2, 5, 2),
        (1, 8, 1),
        (9, 16, 16),
        (8, 16, 8),
        (1000, 1500, 2048),
        (700, 1500, 750),
    ],
)
def test_rows_have_room_for_their_own_targets_and_few_widths(own, most, width):
    assert scoring._width(own, most) == width


def test_no_questions_give_no_scores(model):
    assert scores(model, []) == []


def test_an_empty_prompt_is_refused_by_its_number(model, questions):
    empty = Question(np.zeros(0, np.int32), questions[0].choices)
    with pytest.raises(InputError, match="question 1: the prompt has no tokens"):
        scores(model, [questions[0], empty])


def test_questions_are_tokenized_as_training_tokenizes_them(model, questions):
    for (messages, choices), question in zip(ASKED, questions, strict=True):
        for choice, ids in zip(choices, question.choices, strict=True):
            (encoded,) = model.chat.encode([(messages, choice)])
            np.testing.assert_array_equal(np.concatenate([question.prompt, ids]), encoded.ids)
            np.testing.assert_array_equal(ids, encoded.ids[encoded.trained])


def test_questions_are_the_same_however_many_are_tokenized_together(model, monkeypatch):
    turns = [choice_turns(messages, choices) for messages, choices in ASKED]
    whole = encode_questions(model.chat, turns)
    for limit in (0, 300):
        monkeypatch.setattr(scoring, "CHARACTERS_AT_ONCE", limit)
        found = encode_questions(model.chat, turns)
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one.prompt, other.prompt)
            for mine, theirs in zip(one.choices, other.choices, strict=True):
                np.testing.assert_array_equal(mine, theirs)
    assert encode_questions(model.chat, []) == []


def test_many_choices_do_not_multiply_the_memory_of_their_prompt(chat, monkeypatch):
    """A text holds the whole prompt once for each choice; a question holds it once."""
    monkeypatch.setattr(scoring, "CHARACTERS_AT_ONCE", 2**16)
    asked = [
        choice_turns([{"role": "user", "content": f"{n} " + "word " * 400}], map(str, range(40)))
        for n in range(40)
    ]
    encode_questions(chat, asked)
    peaks = []
    for count in (4, 40):
        tracemalloc.start()
        try:
            found = encode_questions(chat, asked[:count])
            peaks.append(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
        assert len(found) == count
    (_, few), (kept, many) = peaks
    # 2,030 tokens a prompt, of which 40 would be 13 MB for all items.
    assert kept < 40 * (2_100 * 4 + 40 * 300)
    assert many - few < 1e6


def test_a_choice_that_merges_with_the_prompt_starts_where_all_texts_still_agree():
    """Where "x" + "y" is one token, that token belongs to the choice, for all choices alike."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ift_jax.data.chat import Chat

    vocab = {t: i for i, t in enumerate(["<end>", "x", "y", "z", "xy"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("x", "y")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    choices = choice_turns([{"role": "user", "content": "zx"}], ("y", "z"))
    (question,) = encode_questions(Chat.of(tokenizer), [choices])
    assert question.prompt.tolist() == [3]
    assert [c.tolist() for c in question.choices] == [[4, 0], [1, 3, 0]]


def test_rows_are_grouped_by_padded_length_and_every_row_once():
    lengths = [5, 900, 64, 65, 70, 3, 2000, 64]
    found = list(batching.groups(dict(enumerate(lengths)), shards=2))
    assert sorted(i for group in found for i in group.members) == list(range(len(lengths)))
    for group in found:
        assert len(group.members) <= group.rows
        assert group.rows % 2 == 0
        assert {batching.bucket(lengths[i]) for i in group.members} == {group.length}
    assert [g.length for g in found] == sorted((g.length for g in found), reverse=True)


def test_a_few_rows_do_not_cost_a_whole_batch(monkeypatch):
    monkeypatch.setattr(batching, "BATCH_TOKENS", 40 * batching.bucket(10))

    def rows(count, shards=1):
        return [group.rows for group in batching.groups(dict.fromkeys(range(count), 10), shards)]

    assert [rows(n) for n in (1, 2, 4, 5, 17, 40)] == [[1], [4], [4], [16], [40], [40]]
    assert rows(43) == [40, 4]
    assert rows(3, shards=8) == [8]
    assert rows(9, shards=8) == [32]


def test_a_common_beginning_leaves_each_row_a_token():
    row = np.arange(30, dtype=np.int32)

    def shared(*rows):
        [part] = batching.beginnings(rows, 1000)
        assert part.members == list(range(len(rows)))
        return part.shared

    assert shared(row, row) == 29
    assert shared(row, row[:20]) == 19
    assert shared(row, np.where(row == 18, 99, row)) == 18
    assert shared(row, row, row[: batching.MIN_PREFIX]) == 0  # too short to pay
    assert shared(row) == 0
    assert batching.beginnings([], 1000) == []


def saved(rows, parts, cost):
    """What is not computed twice, less what parts cost."""
    assert sorted(i for part in parts for i in part.members) == list(range(len(rows)))
    for part in parts:
        first = rows[part.members[0]][: part.shared]
        for i in part.members:
            assert len(rows[i]) > part.shared
            assert (rows[i][: part.shared] == first).all()
    return sum(p.shared * (len(p.members) - 1) - cost for p in parts)


def all_cuts(order):
    """Every way to cut a list into parts that stand side by side."""
    for where in range(2 ** (len(order) - 1)):
        cuts = [i + 1 for i in range(len(order) - 1) if where >> i & 1]
        yield [order[a:b] for a, b in pairwise([0, *cuts, len(order)])]


@pytest.mark.parametrize("cost", [0, 20, 60, 1000])
def test_beginnings_are_cut_where_that_saves_the_most(monkeypatch, cost):
    """Against all cuts of sorted rows: in words that a few letters make, beginnings branch."""
    monkeypatch.setattr(batching, "MIN_PREFIX", 2)
    random = np.random.default_rng(cost)
    for _ in range(20):
        kinds = [random.integers(0, 2, 12, np.int32) for _ in range(3)]
        rows = [
            np.append(kinds[random.integers(3)][: random.integers(1, 13)], random.integers(0, 2, 3))
            for _ in range(9)
        ]
        rows = [row.astype(np.int32) for row in rows]
        found = saved(rows, batching.beginnings(rows, cost), cost)
        best = -np.inf
        for parts in all_cuts(sorted(range(9), key=lambda i: rows[i].tolist())):
            shared = [common(rows, part) for part in parts]
            tried = [batching.Beginning(*each) for each in zip(parts, shared, strict=True)]
            best = max(best, saved(rows, tried, cost))
        assert found == best


def common(rows, part):
    """Leading tokens that all rows of a part share, each keeping one."""
    shared = min(len(rows[i]) for i in part) - 1
    while len({rows[i][:shared].tobytes() for i in part}) > 1:
        shared -= 1
    return shared if len(part) > 1 and shared >= batching.MIN_PREFIX else 0


def test_prompts_of_several_kinds_share_their_own_beginnings(model, questions, monkeypatch):
    """Two kinds of long instructions, mixed: each is computed once, and scores are the same."""
    random = np.random.default_rng(0)
    kinds = [random.integers(5, 60, 400, np.int32) for _ in range(2)]
    mixed = [
        Question(np.concatenate([kinds[i % 2], q.prompt]), q.choices)
        for i, q in enumerate([*questions, *questions])
    ]
    computed, inner = [], batching._prefix_cache

    def watched(structure, params, tokens):
        computed.append(tokens.shape)
        return inner(structure, params, tokens)

    monkeypatch.setattr(batching, "_prefix_cache", watched)
    found = scores(model, mixed)
    assert len(computed) == 2
    close(found, [scores(model, [question])[0] for question in mixed])


def test_device_memory_does_not_grow_with_the_number_of_questions(model, questions, monkeypatch):
    monkeypatch.setattr(batching, "BATCH_TOKENS", 1)  # one question a call
    calls, inner = [], scoring._target_nll

    def watched(*args):
        taken = {id(leaf) for leaf in jax.tree.leaves(args)}
        calls.append(sum(x.nbytes for x in jax.live_arrays() if id(x) not in taken))
        return inner(*args)

    monkeypatch.setattr(scoring, "_target_nll", watched)
    peaks = []
    for times in (2, 8):
        calls.clear()
        scores(model, questions * times)
        peaks.append(max(calls))
        assert len(calls) > times
    assert peaks[1] <= peaks[0]
