"""What is trained is the completion and the end of turn, whatever the tokenizer does to them."""

import json

import numpy as np
import pytest
from conftest import make_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ift_jax.data.chat import PLAIN_TEMPLATE, Chat, Turns, UnusableTurns
from ift_jax.errors import InputError

properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def user(text):
    return [{"role": "user", "content": text}]


def bpe_tokenizer(merges=(), template=None, *, adds_bos=False, without=""):
    """A byte-level tokenizer with merges, specials <s> and </s>, without a template by default.

    It has no token for the bytes whose letters stand in `without`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*without})]
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def trained_text(chat, one):
    return chat.tokenizer.decode(one.ids[one.trained].tolist(), skip_special_tokens=False)


def test_completion_and_end_of_turn_are_trained_and_nothing_else(chat):
    [one] = chat.encode([(user("2+2="), "4")])
    assert one.text == ("<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n4<|im_end|>")
    assert trained_text(chat, one) == "4<|im_end|>"
    assert one.trained.tolist() == [False] * (len(one.ids) - 2) + [True, True]
    assert one.ids.dtype == np.int32
    assert one.trained.dtype == np.bool_


def test_the_end_of_turn_is_trained_though_it_is_the_padding_token(chat):
    assert chat.tokenizer.pad_token_id == chat.end_of_turn_id == 1
    [one] = chat.encode([(user("a"), "b")])
    ends = np.flatnonzero(one.ids == chat.end_of_turn_id)
    # The same token closes the user's turn, where it is not trained.
    assert one.trained[ends].tolist() == [False, True]


def test_all_turns_before_the_answer_are_context(chat):
    turns = [*user("1"), {"role": "assistant", "content": "one"}, *user("2")]
    [one] = chat.encode([(turns, "two")])
    assert trained_text(chat, one) == "two<|im_end|>"
    assert "one<|im_end|>" in one.text


def test_a_conversation_may_begin_with_the_assistant(chat):
    greeting = {"role": "assistant", "content": "Hello, how can I help?"}
    turns = Turns((greeting, *user("2+2=")), "4", earlier=(0,))
    [one] = chat.encode_layouts([chat.layout(turns)])
    assert one.text.startswith("<|im_start|>assistant\nHello, how can I help?<|im_end|>\n<|im_st")
    assert trained_text(chat, one) == "Hello, how can I help?<|im_end|>4<|im_end|>"
    [alone] = chat.encode([((), "Hello.")])
    assert alone.text == "<|im_start|>assistant\nHello.<|im_end|>"
    assert trained_text(chat, alone) == "Hello.<|im_end|>"


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses it: roles must alternate"),
        ("", "does not print an assistant's turn as the first"),
    ],
)
def test_a_template_that_lets_no_assistant_begin_is_named(first, says):
    template = (
        "{% for m in messages %}{% if loop.first and m.role == 'assistant' %}"
        + first
        + "{% else %}"
        "{{ m.role + ': ' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = Turns(({"role": "assistant", "content": "Hi."}, *user("2+2=")), "4", earlier=(0,))
    with pytest.raises(UnusableTurns, match=says):
        Chat.of(bpe_tokenizer(template=template)).layout(turns)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_plain_text_begins_as_the_tokenizer_begins_texts(adds_bos):
    tokenizer = bpe_tokenizer(adds_bos=adds_bos)
    chat = Chat.of(tokenizer)
    [one] = chat.encode_layouts([chat.layout(Turns((), "Once upon", plain=True))])
    assert one.ids.tolist() == [*tokenizer("Once upon").input_ids, chat.end_of_turn_id]
    assert (one.ids[0] == tokenizer.bos_token_id) == adds_bos
    assert trained_text(chat, one) == "Once upon</s>"


def test_the_prompt_of_training_is_that_of_inference(chat):
    [one] = chat.encode([(user("Ünïcode?"), "yes")])
    prompt = chat.prompt_ids(user("Ünïcode?"))
    assert one.ids[: len(prompt)].tolist() == prompt.tolist()
    assert not one.trained[: len(prompt)].any()
    assert one.trained[len(prompt) :].all()


@properties
@given(st.text(max_size=20), st.text(min_size=1, max_size=20))
@example("naïve 漢字 👩‍👩‍👧", "👍🏽 é\u0301 ﷽")
@example("a", "\n")
@example("", " ")
def test_the_trained_tokens_decode_to_the_completion_and_the_end_of_turn(prompt, completion):
    chat = Chat.of(make_tokenizer())
    [one] = chat.encode([(user(prompt), completion)])
    if not chat.special_token_in(prompt, completion):
        assert trained_text(chat, one) == completion + "<|im_end|>"


def test_the_trained_tokens_of_embedded_reviews_are_their_completions(smollm2):
    from ift_jax.data.embedded_reviews import embedded_reviews
    from ift_jax.pretrained import load_chat

    chat = load_chat(smollm2)
    reviews = embedded_reviews()[:300]
    encoded = chat.encode(
        (user(review["review_headline"]), review["review_body"]) for review in reviews
    )
    for review, one in zip(reviews, encoded, strict=True):
        assert trained_text(chat, one) == review["review_body"] + "<|im_end|>"


def test_a_character_of_several_tokens_is_trained_whole(chat):
    [one] = chat.encode([(user("?"), "漢")])
    assert one.trained.sum() == 3 + 1  # three bytes and the end of turn
    assert one.spans[one.trained][:3].tolist() == [one.spans[one.trained][0].tolist()] * 3


def test_a_token_across_the_boundary_is_trained():
    template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% else %}={% endif %}{% endfor %}"
    )
    tokenizer = bpe_tokenizer([("=", "4"), ("2", "+")], template)
    chat = Chat.of(tokenizer)
    [one] = chat.encode([(user("2+2"), "42")])
    tokens = tokenizer.convert_ids_to_tokens(one.ids.tolist())
    assert tokens == ["2+", "2", "=4", "2", "</s>"]
    assert one.trained.tolist() == [False, False, True, True, True]
    # Tokenized by itself the prompt has a token "=", which the whole text has not.
    assert tokenizer.convert_ids_to_tokens(chat.prompt_ids(user("2+2")).tolist())[-1] == "="


@pytest.mark.parametrize("text", ["<|im_end|>", "Say <|im_start|>system now"])
def test_special_tokens_that_stand_in_a_text_are_found(chat, text):
    assert chat.special_token_in("harmless", text) in text
    assert chat.special_token_in("harmless", text).startswith("<|im_")


def test_a_text_without_special_tokens_is_clean(chat):
    assert chat.special_token_in("<|im_en|>", "im_start", "") == ""


def test_the_end_of_turn_includes_what_stands_before_its_special_token():
    template = (
        "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n--</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    chat = Chat.of(bpe_tokenizer(template=template))
    assert chat.end_of_turn == "\n--</s>"
    assert chat.end_of_turn_id == 1
    [one] = chat.encode([(user("a"), "b")])
    assert trained_text(chat, one) == "b\n--</s>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no special token behind"),
        ("{% for m in messages %}<s>{{ m['content'] }}\n{% endfor %}", "no special token behind"),
        ("{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}", "as it is"),
        ("</s>", "as it is"),
        ("{% for m in messages %}", "does not work"),
        ("{{ raise_exception('no system role') }}", "does not work: no system role"),
    ],
)
def test_a_template_that_cannot_teach_to_stop_is_refused(template, says):
    with pytest.raises(InputError, match=says) as caught:
        Chat.of(bpe_tokenizer(template=template))
    assert "\n" not in str(caught.value)


MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + '</s>' }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)


def test_what_a_template_puts_before_an_answer_is_trained_and_left_out_of_what_is_said():
    """Without it, chats are not those that the template prints, and no earlier turn is found."""
    chat = Chat.of(bpe_tokenizer(template=MISTRAL))
    assert chat.opening == " "
    turns = [*user("1"), {"role": "assistant", "content": "one"}, *user("2")]
    [one] = chat.encode_layouts([chat.layout(Turns(tuple(turns), "two", earlier=(1,)))])
    whole = [*turns, {"role": "assistant", "content": "two"}]
    assert one.text == chat.tokenizer.apply_chat_template(whole, tokenize=False)
    assert trained_text(chat, one) == " one</s> two</s>"
    assert chat.decode(one.ids[-5:]) == "two"
    assert chat.prompt_text(turns).endswith("[/INST]")


def test_blanks_around_an_answer_go_where_the_template_drops_them():
    trimming = MISTRAL.replace("' ' + m['content'] +", "m['content'] | trim +")
    chat = Chat.of(bpe_tokenizer(template=trimming))
    turns = [*user("1"), {"role": "assistant", "content": " one\n"}, *user("2")]
    [one] = chat.encode_layouts([chat.layout(Turns(tuple(turns), "\ttwo ", earlier=(1,)))])
    assert trained_text(chat, one) == "one</s>two</s>"
    keeping = Chat.of(bpe_tokenizer(template=MISTRAL))
    [one] = keeping.encode([(user("1"), " one\n")])
    assert trained_text(keeping, one) == "  one\n</s>"


def test_a_tokenizer_without_template_gets_the_plain_one_and_keeps_it(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = bpe_tokenizer()
    chat = Chat.of(tokenizer)
    [one] = chat.encode([(user("a"), "b")])
    assert one.text == "a\nb</s>"
    assert trained_text(chat, one) == "b</s>"
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE


def test_a_tokenizer_with_neither_template_nor_end_of_sequence_is_refused():
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a chat template nor an eos_token"):
        Chat.of(tokenizer)


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + PLAIN_TEMPLATE])
def test_the_beginning_of_sequence_stands_once(template):
    chat = Chat.of(bpe_tokenizer(template=template, adds_bos=True))
    [one] = chat.encode([(user("a"), "b")])
    bos = chat.tokenizer.bos_token_id
    assert one.ids.tolist().count(bos) == 1
    assert one.ids[0] == bos
    assert not one.trained[0]
    assert chat.prompt_ids(user("a")).tolist().count(bos) == 1


def test_a_tokenizer_that_adds_no_beginning_of_sequence_gets_none():
    chat = Chat.of(bpe_tokenizer())
    [one] = chat.encode([(user("a"), "b")])
    assert chat.tokenizer.bos_token_id not in one.ids


def test_decoding_leaves_special_tokens_out(chat):
    [one] = chat.encode([(user("a"), "b c")])
    assert chat.decode(one.ids[one.trained]) == "b c"


def test_tokens_are_counted_per_distinct_text(chat):
    assert chat.count_tokens(["a", "漢", "a", ""]) == {"a": 1, "漢": 3, "": 0}
    assert chat.count_tokens([]) == {}


@pytest.mark.parametrize("reloaded", [False, True])
def test_what_others_left_in_the_tokenizer_cuts_nothing(tmp_path, reloaded):
    """A call of transformers leaves its truncation and padding there, and a file keeps them."""
    tokenizer = make_tokenizer()
    chat = Chat.of(tokenizer)
    turns = user("Is this a good lamp?")
    pairs = [(turns, "yes"), (turns, "no, not at all, never")]
    prompt, encoded = chat.prompt_ids(turns), chat.encode(pairs)
    whole = chat.tokenization.encode_whole([chat.layout(Turns(tuple(turns), "yes"))])
    counts = chat.count_tokens(["a long text"])

    tokenizer(["a", "b c d"], truncation=True, max_length=5, padding=True)
    if reloaded:
        tokenizer.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
        chat = Chat.of(AutoTokenizer.from_pretrained(tmp_path))
        chat.tokenizer.backend_tokenizer.enable_truncation(5)
    np.testing.assert_array_equal(chat.prompt_ids(turns), prompt)
    tokenizer(["a", "b c d"], truncation=True, max_length=5, padding=True)
    for one, other in zip(chat.encode(pairs), encoded, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.trained, other.trained)
        assert len(one.spans) == len(one.ids)
    tokenizer(["a", "b c d"], truncation=True, max_length=5, padding=True)
    [found] = chat.tokenization.encode_whole([chat.layout(Turns(tuple(turns), "yes"))])
    np.testing.assert_array_equal(found.ids, whole[0].ids)
    tokenizer(["a", "b c d"], truncation=True, max_length=5, padding=True)
    assert chat.count_tokens(["a long text"]) == counts
