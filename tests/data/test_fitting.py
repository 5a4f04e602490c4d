"""What is cut from a chat that is too long: what it was asked, never what it said."""

import pytest
from test_chat import bpe_tokenizer

from ift_jax.data.chat import Chat, Turns
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.fitting import fit_examples


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
