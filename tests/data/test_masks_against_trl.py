"""Token ids and what of them is trained, against what TRL's SFTTrainer prepares.

Where TRL is right, the ids are the same and so is every trained position. Two things differ by
convention and are compared as such: TRL's ids go on behind the last end of turn as far as the
template prints something there (a newline in ChatML and Zephyr, nothing in Llama 3 and Mistral),
and it trains that too where its mask reaches so far; a model stops at the end of turn, so ours
end there. Where TRL is wrong, ours are held against the definition: the answers with their
ends of turn are trained, and nothing else.
"""

import copy
import random
import re
from itertools import islice
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from conftest import make_tokenizer
from test_chat import bpe_tokenizer
from test_fitting import example_of
from tokenized import tokens_of
from tokenizers import Regex, pre_tokenizers

from ift_jax.data.chat import Chat, Turns
from ift_jax.data.config import DataConfig
from ift_jax.data.fitting import fit_examples
from ift_jax.data.loader import RowSource
from ift_jax.errors import InputError
from ift_jax.pretrained import load_chat


class Format(NamedTuple):
    """A chat template, with what TRL needs to know of it.

    Attributes:
        template: with `{% generation %}` around what TRL's assistant-only mode trains.
        specials: tokens that it prints, the assistant's end of turn last.
        tail: what it prints behind an assistant's end of turn.
        tail_trained: whether `{% generation %}` holds that too.
        end: the end of turn.
    """

    template: str
    specials: tuple[str, ...]
    tail: str
    tail_trained: bool
    end: str


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "INSIDE{% endgeneration %}OUTSIDE{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NEWLINE = "{{ '\n' }}"
LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ '<|begin_of_text|>' }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '</s>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Opens no turn for the assistant: a blank stands between the prompt and the answer.
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Opens no turn either, and its header is text that the model has to write.
NO_PROMPT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ '### assistant: ' + message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ '### ' + message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endif %}{% endfor %}"
)
CHATML = ("<|im_start|>", "<|im_end|>")
FORMATS = {
    "SmolLM2": Format(
        SMOLLM2.replace("INSIDE", "").replace("OUTSIDE", NEWLINE), CHATML, "\n", False, "<|im_end|>"
    ),
    "SmolLM2, newline trained": Format(
        SMOLLM2.replace("INSIDE", NEWLINE).replace("OUTSIDE", ""), CHATML, "\n", True, "<|im_end|>"
    ),
    "Llama 3": Format(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "",
        False,
        "<|eot_id|>",
    ),
    "Zephyr": Format(ZEPHYR, ("</s>",), "\n", False, "</s>"),
    "Mistral": Format(MISTRAL, ("<s>", "</s>"), "", False, "</s>"),
    "no generation prompt": Format(NO_PROMPT, ("</s>",), "", False, "</s>"),
}
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)


def chat_of(*contents, system=None):
    """Turns of a user and an assistant, one after the other."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


CONVERSATIONS = [
    chat_of("What is 2 + 2?", "4"),
    chat_of("Wie heißt «naïve» auf 漢字?", "天真 — 👩‍👩‍👧 é\u0301 ﷽ ok"),
    chat_of("Hi.", "Hello!", "Again?", "Yes, again.", "And now?", "Now too.\n\n- a\n- b"),
    chat_of("a", "a", "a", "a"),
    chat_of("Say <b>it</b>.", "def f(x):\n    return x  # 1,000.50", "So?", "漢字\nи é"),
    chat_of("Who are you?", "A poet.", "Rhyme.", "Thyme.", system="You are a poet."),
]


@pytest.fixture(scope="module")
def real_tokenizer(smollm2):
    return load_chat(smollm2).tokenizer


@pytest.fixture
def tokenizer_of(real_tokenizer):
    """SmolLM2's tokenizer with another template and the special tokens that it prints.

    With Llama 3's template come its words, so that "\\n\\n" is a token whatever follows.
    """

    def make(name, *, own_words=True):
        tokenizer = copy.deepcopy(real_tokenizer)
        tokenizer.chat_template = FORMATS[name].template
        tokenizer.add_special_tokens({"additional_special_tokens": [*FORMATS[name].specials]})
        tokenizer.eos_token = tokenizer.pad_token = FORMATS[name].end
        if name == "Llama 3" and own_words:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ])  # fmt: skip
        return tokenizer

    return make


@pytest.fixture(scope="module")
def trl_prepared(tmp_path_factory):
    """Runs SFTTrainer's own preparation, without the trainer: (ids, trained) of each row."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    datasets.disable_progress_bars()
    folder = str(tmp_path_factory.mktemp("trl"))

    def prepare(tokenizer, rows, mode, **options):
        options = {"max_length": None, "report_to": "none", "use_cpu": True, **options}
        args = trl.SFTConfig(folder, assistant_only_loss=mode == "assistant", **options)
        # What the preparation reads of the trainer.
        trainer = SimpleNamespace(
            _tokenizer=tokenizer, chat_template=None, completion_only_loss=mode == "completion"
        )
        prepared = trl.SFTTrainer._prepare_dataset(
            trainer, datasets.Dataset.from_list(rows), tokenizer, args, False, None, "train"
        )
        return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in prepared]

    return prepare


def turns_of(messages, *, train="all"):
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    last = answers.pop()
    earlier = tuple(answers) if train == "all" else ()
    return Turns(tuple(messages[:last]), messages[last]["content"], earlier)


def ours(chat, messages, *, train="all"):
    [one] = chat.encode_layouts([chat.layout(turns_of(messages, train=train))])
    return one.ids.tolist(), one.trained.tolist()


def stretches(tokenizer, ids, trained):
    """The texts of the runs of trained tokens."""
    edges = np.flatnonzero(np.diff([0, *map(int, trained), 0]))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in pairs]


def rows_of(messages, mode):
    if mode == "assistant":
        return {"messages": messages}
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def assert_same(chat, fmt, messages, theirs, mode):
    """TRL's ids and mask are ours, but for the tail, and for the tail's training."""
    tokenizer = chat.tokenizer
    train = "all" if mode == "assistant" else "last"
    ids, trained = ours(chat, messages, train=train)
    their_ids, their_trained = theirs
    assert their_ids[: len(ids)] == ids
    tail = their_ids[len(ids) :]
    assert tokenizer.decode(tail, skip_special_tokens=False) == fmt.tail
    whole = mode == "completion" or fmt.tail_trained
    assert their_trained[len(ids) :] == [whole] * len(tail)
    if mode == "assistant" and fmt.tail_trained:  # behind earlier turns too
        extra = [a and not b for a, b in zip(their_trained, trained, strict=False)]
        behind = {i - 1 for i, more in enumerate(extra) if more}
        assert {ids[i] for i in behind} <= {tokenizer.convert_tokens_to_ids(fmt.end)}
        num_answers = sum(m["role"] == "assistant" for m in messages)
        assert len(behind) == num_answers - 1
        their_trained = [a and not b for a, b in zip(their_trained, extra, strict=False)]
    assert their_trained[: len(ids)] == trained


def test_the_tagged_template_prints_what_the_model_s_own_does(real_tokenizer, tokenizer_of):
    for messages in CONVERSATIONS:
        for open_turn in (True, False):
            options = {"tokenize": False, "add_generation_prompt": open_turn}
            own = real_tokenizer.apply_chat_template(messages, **options)
            assert own == tokenizer_of("SmolLM2").apply_chat_template(messages, **options)


def test_the_llama_3_template_is_trl_s(tokenizer_of):
    templates = pytest.importorskip("trl.chat_template_utils")
    tokenizer = tokenizer_of("Llama 3")
    plain = re.sub(r"{% (end)?generation %}", "", tokenizer.chat_template)
    original = copy.deepcopy(tokenizer)
    original.chat_template = templates.llama3_chat_template
    original.bos_token = "<|begin_of_text|>"
    tagged = templates.get_training_chat_template(original)
    for messages in CONVERSATIONS:
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        theirs = original.apply_chat_template(messages, chat_template=tagged, **options)
        mine = tokenizer.apply_chat_template(messages, **options)
        assert mine["input_ids"] == theirs["input_ids"]
        assert mine["assistant_masks"] == theirs["assistant_masks"]
        text = tokenizer.apply_chat_template(messages, chat_template=plain, tokenize=False)
        assert text == original.apply_chat_template(messages, tokenize=False)


# Where TRL is right


@EVERY_FORMAT
@pytest.mark.parametrize("mode", ["assistant", "completion"])
def test_ids_and_trained_positions_are_those_of_trl(name, mode, tokenizer_of, trl_prepared):
    tokenizer, fmt = tokenizer_of(name), FORMATS[name]
    prepared = trl_prepared(tokenizer, [rows_of(m, mode) for m in CONVERSATIONS], mode)
    chat = Chat.of(tokenizer)
    for messages, theirs in zip(CONVERSATIONS, prepared, strict=True):
        assert_same(chat, fmt, messages, theirs, mode)


def random_texts(tokenizer, count):
    """Texts of letters, digits, blanks and rare characters for which the tokenizer has tokens."""
    rng = random.Random(0)
    alphabet = "aebc  .,'\"-\n\t019é漢и\u0301\u200d👍🏽👩\x85\u2028\u00a0\ufeffﷺ()#=+"
    found = []
    while len(found) < count:
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 12)))
        if text.strip() and tokenizer.decode(tokenizer(text).input_ids) == text:
            found.append(text)
    return found


@EVERY_FORMAT
@pytest.mark.parametrize("mode", ["assistant", "completion"])
def test_any_text_is_trained_as_trl_trains_it(name, mode, tokenizer_of, trl_prepared):
    tokenizer = tokenizer_of(name)
    contents = iter(random_texts(tokenizer, 240))
    conversations = [chat_of(*islice(contents, 2 + 2 * (n % 3))) for n in range(60)]
    prepared = trl_prepared(tokenizer, [rows_of(m, mode) for m in conversations], mode)
    chat = Chat.of(tokenizer)
    early = 0
    for messages, theirs in zip(conversations, prepared, strict=True):
        ids, trained = ours(chat, messages, train="all" if mode == "assistant" else "last")
        if theirs[1].index(True) < trained.index(True):
            # See test_a_prompt_token_that_the_answer_changes_is_no_answer.
            assert mode == "completion"
            prompt = chat.prompt_ids(messages[:-1]).tolist()
            assert prompt != ids[: len(prompt)]
            early += 1
        else:
            assert_same(chat, FORMATS[name], messages, theirs, mode)
    assert early <= 6, early


@EVERY_FORMAT
def test_every_answer_is_trained_with_its_end_of_turn(name, tokenizer_of):
    """The definition, with which the comparison above would be empty if both were wrong."""
    tokenizer, fmt = tokenizer_of(name), FORMATS[name]
    chat = Chat.of(tokenizer)
    opening = {"Mistral": " ", "no generation prompt": "### assistant: "}.get(name, "")
    for messages in CONVERSATIONS:
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        wanted = [opening + answer + fmt.end for answer in answers]
        assert stretches(tokenizer, *ours(chat, messages)) == wanted
        assert stretches(tokenizer, *ours(chat, messages, train="last")) == wanted[-1:]


@pytest.mark.parametrize("name", ["SmolLM2", "Llama 3"])
def test_blanks_around_a_content_go_where_the_template_drops_them(name, tokenizer_of, trl_prepared):
    tokenizer, fmt = tokenizer_of(name), FORMATS[name]
    messages = chat_of(" Hi.\n", "  Hello! \n", "\tAgain?", " Yes.\n\n")
    [theirs] = trl_prepared(tokenizer, [rows_of(messages, "assistant")], "assistant")
    chat = Chat.of(tokenizer)
    assert_same(chat, fmt, messages, theirs, "assistant")
    says = ["Hello!", "Yes."] if name == "Llama 3" else ["  Hello! \n", " Yes.\n\n"]
    trained = stretches(tokenizer, *ours(chat, messages))
    # A newline before blanks may be of one token with them, which is trained.
    assert [text.removeprefix("\n") for text in trained] == [text + fmt.end for text in says]


def test_a_token_across_the_boundary_is_trained_by_both(trl_prepared):
    template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    tokenizer = bpe_tokenizer([("=", "4")], template)
    messages = chat_of("2+2=", "42")
    [theirs] = trl_prepared(tokenizer, [rows_of(messages, "completion")], "completion")
    assert ours(Chat.of(tokenizer), messages) == theirs
    assert stretches(tokenizer, *theirs) == ["=42</s>"]


def test_a_trainer_and_its_collator_keep_the_end_of_turn_that_is_padding_too(tiny_llama, tmp_path):
    """The whole way of both: TRL's batch and our row train the same tokens at the same places."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    datasets.disable_progress_bars()
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    conversations = [
        chat_of("1+1=", "2"),
        chat_of("Name a colour.", "Red, 漢字."),
        chat_of("a", "b"),
    ]
    args = trl.SFTConfig(
        str(tmp_path), max_length=None, report_to="none", use_cpu=True, completion_only_loss=True,
        shuffle_dataset=False,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([rows_of(m, "completion") for m in conversations])
    trainer = trl.SFTTrainer(str(tiny_llama), args, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    labels = batch["labels"].numpy()
    assert (labels == tokenizer.pad_token_id).sum() == len(conversations)  # the ends, no padding
    chat = Chat.of(tokenizer)
    encoded = [ours(chat, messages) for messages in conversations]
    parts = [(np.array(ids, np.int32), np.array(trained)) for ids, trained in encoded]
    source = RowSource(tokens_of(parts), 512, seed=0, packing="none", shuffle=False)
    rows = [source[number] for number in range(len(parts))]
    mine = {tuple(row.targets[row.weights > 0].tolist()) for row in rows}
    [newline] = tokenizer("\n").input_ids
    theirs = {tuple(row[row != -100].tolist()) for row in labels}
    assert theirs == {(*targets, newline) for targets in mine}  # the tail, by convention
    assert all(targets[-1] == tokenizer.pad_token_id for targets in mine)


# Where TRL, or what is used with it, is wrong


def test_a_collator_that_masks_padding_by_its_id_never_trains_the_end_of_turn():
    """TRL's own collator does not; transformers', which SFTTrainer takes as well, does."""
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer()
    messages = chat_of("a", "b")
    ids, trained = ours(Chat.of(tokenizer), messages)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    labels = collate([{"input_ids": ids}])["labels"][0].tolist()
    assert labels[-1] == -100
    assert ids[-1] == tokenizer.eos_token_id
    assert trained[-1]
    row = RowSource(
        tokens_of([(np.array(ids, np.int32), np.array(trained))]), 64, seed=0
    )[0]  # fmt: skip
    assert row.targets[row.weights > 0].tolist() == ids[-2:]


def test_a_prompt_token_that_the_answer_changes_is_no_answer(tokenizer_of, trl_prepared):
    """TRL trains from where prompt and whole text diverge, which may lie before the answer.

    Most byte-level tokenizers join two newlines only where no letter follows.
    """
    tokenizer = tokenizer_of("Llama 3", own_words=False)
    messages = chat_of("A colour?", "red")
    [theirs] = trl_prepared(tokenizer, [rows_of(messages, "completion")], "completion")
    ids, trained = ours(Chat.of(tokenizer), messages)
    assert theirs[0] == ids
    assert stretches(tokenizer, *theirs) == ["\n\nred<|eot_id|>"]
    assert stretches(tokenizer, ids, trained) == ["red<|eot_id|>"]


def test_a_user_s_turn_inside_a_completion_is_not_trained(tokenizer_of, trl_prepared):
    tokenizer = tokenizer_of("SmolLM2")
    messages = chat_of("Hi.", "Hello!", "Again?", "Yes.")
    row = {"prompt": messages[:1], "completion": messages[1:]}
    [(ids, trained)] = trl_prepared(tokenizer, [row], "completion")
    [text] = stretches(tokenizer, ids, trained)
    assert "Again?" in text
    assert stretches(tokenizer, *ours(Chat.of(tokenizer), messages)) == [
        "Hello!<|im_end|>",
        "Yes.<|im_end|>",
    ]


OPEN_ENDED = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{{ END }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def test_an_end_of_turn_outside_the_tags_is_trained(tokenizer_of, trl_prepared):
    """TRL warns and leaves it out; with transformers before 5.24 also half of a last character."""
    tokenizer = tokenizer_of("Zephyr")
    tokenizer.chat_template = OPEN_ENDED.replace("END", "'</s>\n'")
    messages = chat_of("Hi.", "Hello!", "A sign?", "Here: \U00012345")
    [(ids, trained)] = trl_prepared(tokenizer, [rows_of(messages, "assistant")], "assistant")
    first, last = stretches(tokenizer, ids, trained)
    assert first == "Hello!"
    assert last in ("Here: \U00012345", "Here: \ufffd")
    assert stretches(tokenizer, *ours(Chat.of(tokenizer), messages)) == [
        "Hello!</s>", "Here: \U00012345</s>",
    ]  # fmt: skip


def test_a_template_without_an_end_of_turn_is_refused(tokenizer_of, trl_prepared):
    """TRL trains the answers alone, and the model never learns to stop."""
    tokenizer = tokenizer_of("Zephyr")
    tokenizer.chat_template = OPEN_ENDED.replace("END", "'\n'")
    messages = chat_of("Hi.", "Hello!")
    [(ids, trained)] = trl_prepared(tokenizer, [rows_of(messages, "assistant")], "assistant")
    assert stretches(tokenizer, ids, trained) == ["Hello!"]
    with pytest.raises(InputError, match="no special token behind an assistant's turn"):
        Chat.of(tokenizer)


def test_truncation_cuts_the_prompt_and_not_the_answer(tokenizer_of, trl_prepared):
    """TRL cuts the end: of this example it keeps half of the answer, and never its end."""
    tokenizer = tokenizer_of("SmolLM2")
    chat = Chat.of(tokenizer)
    answer = "one two three four five six seven eight nine ten"
    messages = chat_of("Count. " * 60, answer)
    whole, trained = ours(chat, messages)
    room = len(whole) - sum(trained) // 2
    row = rows_of(messages, "completion")
    [(ids, kept)] = trl_prepared(tokenizer, [row], "completion", max_length=room)
    [text] = stretches(tokenizer, ids, kept)
    assert answer.startswith(text)
    assert text != answer
    config = DataConfig(max_length=room, on_too_long="truncate")
    [cut] = fit_examples([example_of(turns_of(messages))], config, chat, [])
    assert cut.truncated
    assert len(cut.tokens.ids) <= room
    assert stretches(tokenizer, cut.tokens.ids.tolist(), cut.tokens.trained.tolist()) == [
        answer + "<|im_end|>"
    ]
