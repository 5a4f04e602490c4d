"""What is cut from a chat that is too long: what it was asked, never what it said."""

import pytest
from conftest import make_tokenizer
from test_chat import bpe_tokenizer

from ift_jax.data.chat import Chat, Turns
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.fitting import fit_examples
from ift_jax.data.tokenization import Tokenization
from ift_jax.errors import InputError


def example_of(turns: Turns, choices: tuple[str, ...] = ()) -> Example:
    return Example(
        task="t", template="messages", turns=turns, choices=choices, label="", text="", key="",
        group="", content="", exact="", origin="chats.jsonl:1",
    )  # fmt: skip


def fitted(chat, turns, max_length):
    config = DataConfig(max_length=max_length, on_too_long="truncate")
    rejected = []
    return fit_examples([example_of(turns)], config, chat, rejected), rejected


def turn(role, content):
    return {"role": role, "content": content}


LONG = " ".join(f"word{n}" for n in range(100))


@pytest.mark.parametrize("role", ["user", "tool"])
def test_an_earlier_answer_just_before_the_last_one_is_left_whole(chat, role):
    """A call and a remark may follow each other; both are trained."""
    call = "<tool_call>" + "x" * 120 + "</tool_call>"
    turns = Turns((turn(role, LONG), turn("assistant", call)), "Done.", earlier=(1,))
    [one], rejected = fitted(chat, turns, 500)
    assert not rejected
    assert one.truncated
    assert len(one.tokens.ids) <= 500
    assert one.example.messages[1] == turn("assistant", call)
    asked = one.example.messages[0]["content"]
    assert asked.startswith("word0 ")
    assert " ... " in asked
    assert asked.endswith(" word99")
    trained = chat.tokenizer.decode(one.tokens.ids[one.tokens.trained].tolist())
    assert trained == f"{call}<|im_end|>Done.<|im_end|>"


def test_a_tokenizer_that_does_not_end_turns_is_refused():
    chat = Chat.of(make_tokenizer())
    turns = Turns((turn("user", "Name a colour."),), "Red.")
    assert len(fitted(chat, turns, 100)[0]) == 1
    chat.tokenizer.backend_tokenizer.encode_special_tokens = True  # takes "<|im_end|>" as text
    with pytest.raises(InputError, match=r"jsonl:1: the tokenizer does not give '<\|im_end"):
        fitted(chat, turns, 100)


def test_the_longest_turn_is_cut_first(chat):
    short = turn("user", "And what of the rest of it?")
    turns = Turns((turn("user", LONG), turn("assistant", "Ok."), short), "Done.", earlier=(1,))
    [one], rejected = fitted(chat, turns, 400)
    assert not rejected
    assert one.truncated
    assert 370 < len(one.tokens.ids) <= 400
    assert one.example.messages[2] == short
    assert " ... " in one.example.messages[0]["content"]
    assert one.example.completion == "Done."


def test_several_turns_are_cut_where_one_is_not_enough_the_system_last(chat):
    system = turn("system", "Be brief and kind, and answer in French.")
    turns = Turns((system, turn("user", LONG), turn("tool", LONG)), "Done.")
    [one], rejected = fitted(chat, turns, 300)
    assert not rejected
    assert 260 < len(one.tokens.ids) <= 300
    assert one.example.messages[0] == system
    assert all(" ... " in m["content"] for m in one.example.messages[1:])
    long_system = Turns((turn("system", LONG), turn("user", "Why?")), "Done.")
    [one], rejected = fitted(chat, long_system, 300)
    assert " ... " in one.example.messages[0]["content"]
    assert one.example.messages[1]["content"] == "Why?"


def test_a_turn_that_the_template_trims_is_cut_as_well():
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content | trim + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = Chat.of(bpe_tokenizer(template=template))
    [one], rejected = fitted(chat, Turns((turn("user", f"  {LONG} \n"),), "Done."), 300)
    assert not rejected
    assert 270 < len(one.tokens.ids) <= 300
    assert one.tokens.text.startswith("user: word0 ")
    assert "word99</s>assistant: Done.</s>" in one.tokens.text


@pytest.mark.parametrize("on_too_long", ["drop", "truncate", "error"])
def test_what_cannot_fit_by_its_characters_alone_is_not_tokenized(chat, on_too_long, monkeypatch):
    """The longest token, an end of turn, has 12 characters: 100 hold 1,200 at most."""
    assert chat.most_characters(100) == 1200
    tokenized, encode = [], Tokenization.encode
    monkeypatch.setattr(
        Tokenization, "encode", lambda self, all: tokenized.extend(all) or encode(self, all)
    )
    asked = Turns((turn("user", "start " + "word " * 200_000 + "end"),), "Done.")
    answered = Turns((turn("user", "Say it."),), "word " * 200_000)
    config, rejected = DataConfig(max_length=100, on_too_long=on_too_long), []
    examples = [example_of(asked), example_of(answered)]
    if on_too_long == "error":
        with pytest.raises(InputError, match=r"1000014 characters, more than max_length=100 tok"):
            fit_examples(examples, config, chat, rejected)
        return
    kept = fit_examples(examples, config, chat, rejected)
    assert sum(len(layout.text) for layout in tokenized) < 10_000
    assert {one.reason for one in rejected} == {"too_long"}
    assert len(rejected) == (2 if on_too_long == "drop" else 1)
    if on_too_long == "truncate":
        [one] = kept
        assert one.truncated
        assert 80 < len(one.tokens.ids) <= 100
        content = one.example.messages[0]["content"]
        assert content.startswith("start word ")
        assert content.endswith(" word end")
        assert content.count(" ... ") == 1


def test_a_chat_that_is_long_by_its_answers_is_rejected(chat):
    turns = Turns((turn("user", "Go on."), turn("assistant", LONG)), "Done.", earlier=(1,))
    kept, [rejected] = fitted(chat, turns, 500)
    assert not kept
    assert rejected.reason == "too_long"


def test_a_chat_without_a_question_is_rejected(chat):
    kept, [rejected] = fitted(chat, Turns((turn("assistant", LONG),), "Done."), 200)
    assert not kept
    assert rejected.reason == "too_long"


def test_text_that_the_tokenizer_would_drop_is_rejected():
    """As by SmolLM2, which has none for \\x16 and five more. Byte-level, it is \\u0116."""
    tokenizer = bpe_tokenizer(without="\u0116")
    assert tokenizer.decode(tokenizer("a\x16b").input_ids) == "ab"
    chat = Chat.of(tokenizer)
    for messages, answer in (("Why?", "be\x16cause"), ("Why\x16?", "because"), ("Why?", "\x16")):
        kept, [rejected] = fitted(chat, Turns((turn("user", messages),), answer), 200)
        assert not kept
        assert rejected.reason == "no_token"
        assert rejected.detail == "the tokenizer has no token for '\\x16' and would drop it"
    kept, rejected = fitted(chat, Turns((turn("user", " \t漢字\n"),), "é 👩‍👩‍👧 \x15"), 200)
    assert (len(kept), rejected) == (1, [])
