"""Generated text: stop texts, and pieces that are never taken back."""

import itertools

import numpy as np
import pytest
from conftest import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ift_jax import language_model
from ift_jax.data.chat import Chat
from ift_jax.errors import InputError
from ift_jax.evaluation import generation, texts
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.texts import before_stop, stream_text
from ift_jax.pretrained import load_pretrained

TURNS = [{"role": "user", "content": "Hello, who are you?"}]
OPTIONS = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.5},
    "sampled": {"temperature": 0.9, "top_k": 60, "top_p": 0.95, "seed": 3},
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_pretrained(tiny_llama)


def pieces_of(chat, text, monkeypatch, *, stop=(), every=1, ids=None):
    """What is streamed when the model writes this text, `every` bytes at a time."""
    ids = np.array(chat.tokenizer.encode(text) if ids is None else ids, np.int32)
    ends = [*range(every, len(ids), every), len(ids)]
    drawn = []

    def scripted(*_, **__):
        for end in ends:
            drawn.append(end)
            yield ids[:end]

    monkeypatch.setattr(texts, "generate_one", scripted)
    found = list(stream_text(None, None, chat, None, Sampling(stop=stop), stop_ids=()))
    return found, drawn


TEXT = "naïve: 3 € for 😀, she said"


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_half_characters_wait_for_their_other_bytes(chat, monkeypatch, every):
    found, _ = pieces_of(chat, TEXT, monkeypatch, every=every)
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert all(found)
    if every == 1:
        assert found == list(TEXT)


def test_bytes_that_never_become_a_character_come_at_the_end(chat, monkeypatch):
    ids = chat.tokenizer.encode("a€")[:-1]
    found, _ = pieces_of(chat, "", monkeypatch, ids=ids)
    assert "".join(found) == chat.decode(ids)
    assert found[0] == "a"


def test_a_run_of_byte_tokens_waits_for_its_end(monkeypatch):
    """Llama 2 has tokens of single bytes: unless a run of them is a text, each is a mark alone."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: n for n, token in enumerate(["<s>", "</s>", *bytes_, "a", "b"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False
    )
    byte_chat = Chat.of(tokenizer)
    ids = tokenizer.encode("a你b")
    assert len(ids) == 5
    found, _ = pieces_of(byte_chat, "", monkeypatch, ids=ids)
    assert found == ["a", "你b"]
    for cut in range(1, len(tokenizer.encode("a你好"))):
        ids = tokenizer.encode("a你好")[:cut]
        found, _ = pieces_of(byte_chat, "", monkeypatch, ids=ids)
        assert "".join(found) == byte_chat.decode(ids)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one tw three", ("two",), "one tw three"),
        ("one tw", ("two",), "one tw"),
        ("aab aaab", ("aaab",), "aab "),
        ("two", ("two",), ""),
        ("x abcd", ("bc", "abcd"), "x a"),  # "bc" is complete first
        ("x abc", ("bc", "abc"), "x "),  # both at once: the longer one
        ("né €!", ("€",), "né "),
    ],
)
def test_text_ends_before_a_stop_text_whatever_tokens_it_has(
    chat, monkeypatch, text, stop, expected, every
):
    found, drawn = pieces_of(chat, text + " and more", monkeypatch, stop=stop, every=every)
    whole = before_stop(text + " and more", stop)
    assert "".join(found) == whole
    if whole == expected:  # it was there before the rest
        assert drawn[-1] < len(chat.tokenizer.encode(text + " and more"))
    found, _ = pieces_of(chat, text, monkeypatch, stop=stop, every=every)
    assert "".join(found) == before_stop(text, stop) == expected


def test_the_opening_of_a_turn_is_no_part_of_any_piece(chat, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "")
    opening = Chat.of(tokenizer)
    assert opening.opening == "assistant\n"
    found, _ = pieces_of(opening, "assistant\nassist me", monkeypatch)
    assert found == list("assist me")
    found, _ = pieces_of(opening, "assi", monkeypatch)
    assert "".join(found) == opening.decode(tokenizer.encode("assi")) == "assi"


@pytest.mark.parametrize("name", OPTIONS)
def test_pieces_are_those_of_the_reply(model, name):
    options = {"max_new_tokens": 21, **OPTIONS[name]}
    reply = model.reply(TURNS, **options)
    pieces = list(model.stream(TURNS, **options))
    assert len(pieces) > 3
    assert "".join(pieces) == reply


def test_a_reply_is_cut_at_a_stop_text(model, monkeypatch):
    monkeypatch.setattr(generation, "CHECK_EVERY", 3)
    free = model.reply(TURNS, max_new_tokens=40)
    pairs = [a + b for a, b in itertools.pairwise(free) if "\ufffd" not in a + b]
    for stop in (pairs[0], pairs[len(pairs) // 2], [pairs[2], pairs[5]]):
        stops = [stop] if isinstance(stop, str) else stop
        expected = before_stop(free, stops)
        assert expected != free
        options = {"max_new_tokens": 40, "stop": stop}
        assert model.reply(TURNS, **options) == expected
        assert "".join(model.stream(TURNS, **options)) == expected
        other, mine = model.generate(["Something else", TURNS[0]["content"]], **options)
        assert mine == expected
        assert other == before_stop(model.generate(["Something else"], max_new_tokens=40)[0], stops)


def test_a_special_token_as_stop_text_ends_an_answer_at_that_token(model, monkeypatch):
    """No text shows it, so that it could not be found there."""
    asked = []

    def generated(structure, params, prompts, sampling, *, stop_ids, **_):
        asked.append(stop_ids)
        return [np.zeros(0, np.int32)] * len(prompts)

    monkeypatch.setattr(texts, "generate", generated)
    monkeypatch.setattr(texts, "generate_one", lambda *a, **more: iter(generated(*a, **more)))
    start, end = model.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert model.stop_ids == (end,)
    for stop in ("<|im_start|>", ["a", "<|im_start|>user"]):
        model.reply(TURNS, stop=stop)
        list(model.stream(TURNS, stop=stop))
    assert asked == [sorted([start, end])] * 4
    for call in (model.reply, lambda *a, **more: next(model.stream(*a, **more))):
        with pytest.raises(
            InputError, match=r"holds the special token '<\|im_end\|>' behind other"
        ):
            call(TURNS, stop="a<|im_end|>")


def test_nothing_is_made_behind_a_stop_text_for_long(model, monkeypatch):
    monkeypatch.setattr(generation, "CHECK_EVERY", 4)
    free = model.reply(TURNS, max_new_tokens=60)
    steps = []
    decode = generation._decode
    monkeypatch.setattr(generation, "_decode", lambda *a: steps.append(a[-1]) or decode(*a))
    model.reply(TURNS, max_new_tokens=60, stop=free[2:4])
    assert steps[-1] <= 13


def test_what_a_prompt_makes_impossible_is_said_before_the_first_piece(model):
    with pytest.raises(InputError, match="top_p: has no effect"):
        model.stream(TURNS, top_p=0.5)
    with pytest.raises(InputError, match=r"beams: no option of generation; there are max_new"):
        model.reply(TURNS, beams=3)
    with pytest.raises(InputError, match="exceed the context of 1024"):
        next(model.stream(TURNS, max_new_tokens=1020))


def test_answers_in_parts_are_those_of_one_call(model, monkeypatch):
    """Equal prompts get other samples, also where they are of different parts."""
    prompts = ["Hello", "Who are you?", "Hello", "And you, who are you?", "Hello"]
    options = {"max_new_tokens": 6, "temperature": 1.0}
    whole = model.generate(prompts, **options)
    assert len({whole[0], whole[2], whole[4]}) == 3
    monkeypatch.setattr(language_model, "PROMPTS_AT_ONCE", 2)
    parts = list(model.generate_in_parts(prompts, **options))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [text for part in parts for text in part] == model.generate(prompts, **options) == whole
    with pytest.raises(InputError, match=r"prompt 4: .* exceed the context"):
        model.generate_in_parts([*prompts[:4], "b" * 1100])
    assert model.generate([]) == []
