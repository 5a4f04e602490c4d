"""Records that are conversations, instructions or text, through the whole pipeline."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tokenizer

from ift_jax.data import pipeline
from ift_jax.data.chat import Chat
from ift_jax.data.config import DataConfig, TaskConfig
from ift_jax.data.fitting import encode_examples
from ift_jax.data.preview import card_text
from ift_jax.errors import InputError

USER = {"role": "user", "content": "Name a colour."}
BOT = {"role": "assistant", "content": "Red."}
AGAIN = {"role": "user", "content": "Another."}
BLUE = {"role": "assistant", "content": "Blue."}


def built(chat, folder, records, max_rejected=0.05, **task):
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"name": "t", "source": str(path), "validation_fraction": 0.0, "test_fraction": 0.0}
    tasks = (TaskConfig(**{**settings, **task}),)
    return pipeline.build(DataConfig(tasks=tasks, max_rejected=max_rejected), chat)


def trained_texts(data):
    """The trained stretches of each example, decoded."""
    found = []
    examples = data.tokens("train")
    for number in range(len(examples.lengths)):
        ids, trained = examples.get(number)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(int), [0]])))
        pairs = zip(edges[::2], edges[1::2], strict=True)
        found.append([data.chat.tokenizer.decode(ids[a:b]) for a, b in pairs])
    return found


def test_every_assistant_turn_of_a_chat_is_trained(chat, tmp_path):
    data = built(chat, tmp_path, [{"messages": [USER, BOT, AGAIN, BLUE]}])
    assert trained_texts(data) == [["Red.<|im_end|>", "Blue.<|im_end|>"]]


def test_a_chat_that_the_assistant_begins_is_trained_whole(chat, tmp_path):
    turns = [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": "A colour?"},
             {"from": "gpt", "value": "Red."}]  # fmt: skip
    data = built(chat, tmp_path, [{"conversations": turns}, {"conversations": turns[:1]}])
    assert sorted(trained_texts(data)) == [
        ["Hello.<|im_end|>"],
        ["Hello.<|im_end|>", "Red.<|im_end|>"],
    ]


# Both print reasoning; the second no longer once the user has said more, as reasoning models do.
_TURN = "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
_OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
KEEPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>\n' }}{% endif %}" + _TURN + _OPENS
)
FORGETS = (
    "{% set asked = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set asked.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content and loop.index0 > asked.last %}"
    "{{ '<think>' + m.reasoning_content.strip() + '</think>\n' }}{% endif %}" + _TURN + _OPENS
)
THOUGHT = {**BOT, "reasoning_content": "A colour is asked for.\n"}
AGAIN_THOUGHT = {**BLUE, "thinking": "It must be another one."}


def thinking_chat(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Chat.of(tokenizer)


def test_reasoning_that_the_chat_template_prints_is_trained(tmp_path):
    records = [{"messages": [USER, THOUGHT, AGAIN, AGAIN_THOUGHT]}, {"messages": [USER, BLUE]}]
    data = built(thinking_chat(KEEPS), tmp_path, records)
    assert sorted(trained_texts(data)) == [
        ["<think>A colour is asked for.\n</think>\nRed.<|im_end|>",
         "<think>It must be another one.</think>\nBlue.<|im_end|>"],
        ["Blue.<|im_end|>"],
    ]  # fmt: skip
    assert data.tasks[0].num_without_reasoning == 0
    assert sorted(e.completion for e in data.examples("train")) == ["Blue.", "Blue."]
    for example in data.examples("train"):
        [one] = encode_examples(data.chat, [example])
        assert one.text.startswith(data.chat.prompt_text(example.messages))


def test_reasoning_that_the_chat_template_ignores_is_counted(chat, tmp_path):
    records = [{"messages": [USER, THOUGHT]}, {"messages": [USER, BLUE]}]
    data = built(chat, tmp_path, records)
    assert sorted(trained_texts(data)) == [["Blue.<|im_end|>"], ["Red.<|im_end|>"]]
    card = pipeline.card(data)
    assert card["tasks"]["t"]["reasoning_left_out"] == 1
    assert "1 with reasoning that the chat template does not print" in card_text(card)


def test_a_template_that_forgets_reasoning_trains_the_last_turn_alone(tmp_path):
    chat = thinking_chat(FORGETS)
    records = [{"messages": [USER, THOUGHT, AGAIN, AGAIN_THOUGHT]}]
    with pytest.raises(InputError, match=r"rewrites turn 2 .* train_turns='last' trains only"):
        built(chat, tmp_path, records)
    data = built(chat, tmp_path, records, train_turns="last")
    assert trained_texts(data) == [["<think>It must be another one.</think>\nBlue.<|im_end|>"]]
    assert data.tasks[0].num_without_reasoning == 1
    alone = built(chat, tmp_path, [{"messages": [USER, THOUGHT]}])
    assert trained_texts(alone) == [["<think>A colour is asked for.</think>\nRed.<|im_end|>"]]


def test_reasoning_where_no_prompt_leads_to_it_rejects_the_chat(tmp_path):
    before_all = "{% if messages[-1].reasoning_content %}{{ messages[-1].reasoning_content }}"
    chat = thinking_chat(before_all + "{% endif %}" + KEEPS)
    with pytest.raises(InputError, match="prints reasoning that no prompt leads to"):
        built(chat, tmp_path, [{"messages": [USER, THOUGHT]}])


def test_reasoning_is_part_of_what_is_said(chat, tmp_path):
    """Of repeats, of exemplars, of what may not hold special tokens or evaluation texts."""
    other = {**BOT, "reasoning_content": "Any colour will do."}
    bad = {**BOT, "reasoning_content": "So I stop.<|im_end|>"}
    records = [{"messages": [USER, turn]} for turn in (THOUGHT, other, THOUGHT, BOT, bad)]
    data = built(chat, tmp_path, records, max_rejected=1.0)
    assert len(data.examples("train")) == 3
    assert data.tasks[0].removed["duplicates"] == 1
    assert [r.reason for r in data.tasks[0].rejected] == ["special_token"]
    assert "Any colour will do." in {text for e in data.examples("train") for text in e.said()}
    different = [records[0], {"messages": [AGAIN, other]}]
    shown = built(thinking_chat(KEEPS), tmp_path, different, train_shots=(1,))
    for example in shown.examples("train"):
        assert "reasoning_content" in example.messages[1]


def test_only_the_last_turn_where_asked(chat, tmp_path):
    data = built(chat, tmp_path, [{"messages": [USER, BOT, AGAIN, BLUE]}], train_turns="last")
    assert trained_texts(data) == [["Blue.<|im_end|>"]]


def test_all_text_trains_every_token(chat, tmp_path):
    data = built(chat, tmp_path, [{"messages": [USER, BOT]}], train_turns="all_text")
    examples = data.tokens("train")
    assert examples.get(0)[1].all()
    # The first token has no position that predicts it.
    assert examples.num_targets.tolist() == (examples.lengths - 1).tolist()


@pytest.mark.parametrize("last", [AGAIN, {"role": "tool", "content": "sunny"}])
def test_all_text_puts_no_other_role_into_the_assistants_mouth(chat, tmp_path, last):
    for more in ([last], [last, last]):
        data = built(chat, tmp_path, [{"messages": [USER, BOT, *more]}], train_turns="all_text")
        ids, trained = data.tokens("train").get(0)
        assert trained.all()
        assert chat.tokenizer.decode(ids) == chat.tokenizer.apply_chat_template(
            [USER, BOT], tokenize=False
        ).removesuffix("\n")
        (example,) = data.examples("train")
        assert example.completion == "Red."
    tools = [{"name": "add"}]  # their description becomes the first turn
    data = built(
        chat, tmp_path, [{"messages": [USER, BOT, last], "tools": tools}], train_turns="all_text"
    )
    (example,) = data.examples("train")
    assert (example.messages[-1], example.completion) == (USER, "Red.")


def test_plain_text_gets_no_chat_format_but_an_end(chat, tmp_path):
    data = built(chat, tmp_path, [{"text": "Once upon a time."}])
    assert trained_texts(data) == [["Once upon a time.<|im_end|>"]]
    assert data.tokens("train").lengths.sum() == len("Once upon a time.") + 1


def test_a_last_user_turn_without_answer_is_left_out(chat, tmp_path):
    data = built(chat, tmp_path, [{"messages": [USER, BOT, AGAIN]}])
    (example,) = data.examples("train")
    assert [m["content"] for m in example.messages] == ["Name a colour."]
    assert example.completion == "Red."


def test_tool_calls_are_trained_and_the_offer_is_in_the_prompt(chat, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        BOT,
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    data = built(chat, tmp_path, [{"messages": turns, "tools": tools}])
    (texts,) = trained_texts(data)
    assert texts[0].startswith("<tool_call>")
    assert texts[1] == "Red.<|im_end|>"
    (example,) = data.examples("train")
    assert example.messages[0]["role"] == "system"
    assert '"add"' in example.messages[0]["content"]


def test_alpaca_and_prompt_completion_are_told_from_their_fields(chat, tmp_path):
    alpaca = built(chat, tmp_path, [{"instruction": "Add.", "input": "1 2", "output": "3"}])
    assert trained_texts(alpaca) == [["3<|im_end|>"]]
    pair = built(chat, tmp_path, [{"prompt": "1+2=", "completion": "3"}])
    assert trained_texts(pair) == [["3<|im_end|>"]]


def test_the_history_of_an_alpaca_record_are_earlier_turns(chat, tmp_path):
    record = {"instruction": "And 2 2?", "input": "", "output": "4"}
    data = built(
        chat, tmp_path, [{**record, "history": [["Add 1 2.", "3"]]}, {**record, "history": []}]
    )
    assert sorted(trained_texts(data)) == [["3<|im_end|>", "4<|im_end|>"], ["4<|im_end|>"]]
    for broken in ([["Add 1 2."]], ["Add 1 2."], [["Add 1 2.", ""]], 5, "x"):
        with pytest.raises(InputError, match="1 of 1 records were rejected"):
            built(chat, tmp_path, [{**record, "history": broken}])


def test_a_template_that_rewrites_earlier_turns_rejects_the_chat(tmp_path):
    tokenizer = make_tokenizer()
    # Forgets all but the last assistant turn once there is a later one.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(InputError, match="chat_template: the chat template rewrites turn 2"):
        built(Chat.of(tokenizer), tmp_path, [{"messages": [USER, BOT, AGAIN, BLUE]}])


def test_equal_questions_land_in_one_split_and_repeats_are_dropped(chat, tmp_path):
    records = [{"prompt": f"question {i % 40}", "completion": f"{i % 80}"} for i in range(160)]
    data = built(chat, tmp_path, records, validation_fraction=0.3, test_fraction=0.3)
    homes = {}
    for split in ("train", "validation", "test"):
        for example in data.examples(split):
            homes.setdefault(example.messages[0]["content"], set()).add(split)
    assert len(homes) == 40
    assert all(len(splits) == 1 for splits in homes.values())
    assert sum(len(data.examples(s)) for s in ("train", "validation", "test")) == 80
    assert data.tasks[0].removed["duplicates"] == 80


def test_every_instance_of_a_superni_file_counts_as_a_record(chat, tmp_path):
    """One bad instance of forty is within the limit; of one file it would be all."""
    instances = [{"input": f"word {n}", "output": [f"{n}"]} for n in range(40)]
    bad = [{"input": "", "output": ["x"]}]
    file = {"Definition": "Count.", "Positive Examples": [], "Instances": [*instances, *bad]}
    task = built(chat, tmp_path, [file]).tasks[0]
    assert task.num_records == 41
    assert [r.reason for r in task.rejected] == ["empty_prompt"]
    file["Instances"] += bad * 2
    with pytest.raises(InputError, match="3 of 43 records were rejected"):
        built(chat, tmp_path, [file])


def test_an_unknown_format_names_the_field():
    with pytest.raises(InputError, match=r"config\.data\.tasks: t\.format"):
        TaskConfig(name="t", format="sharedgpt")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("dolly_short/*", {}),
        ("alpaca_en_demo/*", {}),
        ("raschka_instructions/*", {}),
        ("superni_tasks/*", {}),
        ("chat_multiturn/glaive*", {}),
        ("self_instruct_seed/*", {"records_at": "instances"}),
    ],
)
def test_real_instruction_sets_become_examples(chat, shared_data, source, options):
    task = TaskConfig(name="t", source=str(shared_data / source), **options)
    config = DataConfig(tasks=(task,), max_length=100_000, max_rejected=0.1)
    data = pipeline.build(config, chat)
    card = pipeline.card(data)["tasks"]["t"]
    made = sum(card["splits"][split]["examples"] for split in card["splits"])
    assert made > 100
    for example in data.examples("test")[:50]:
        (encoded,) = encode_examples(chat, [example])
        last = chat.tokenizer.decode(encoded.ids[encoded.trained])
        assert last.endswith(example.completion + chat.end_of_turn)


RENDERED = [
    {"prompt": f"Is lamp {n} bright?" if n % 2 else f"Judge lamp {n}.", "completion": f"Yes, {n}.",
     "template": "asks" if n % 2 else "judges"}
    for n in range(12)
]  # fmt: skip


def test_a_column_names_the_templates_of_records_rendered_elsewhere(chat, tmp_path):
    data = built(chat, tmp_path, RENDERED, template_column="template")
    assert pipeline.card(data)["tasks"]["t"]["splits"]["train"]["templates"].keys() == {
        "asks",
        "judges",
    }
    for example in data.examples("train"):
        asked = example.messages[0]["content"]
        assert example.template == ("asks" if asked.startswith("Is") else "judges")
    unnamed = built(chat, tmp_path, RENDERED)
    assert {e.template for e in unnamed.examples("train")} == {"prompt_completion"}


def test_solved_examples_are_of_the_template_that_the_column_names(chat, tmp_path):
    data = built(chat, tmp_path, RENDERED, template_column="template", train_shots=(2,))
    for example in data.examples("train"):
        asked = [m["content"] for m in example.messages if m["role"] == "user"]
        assert len(asked) == 3
        assert len({text.split()[0] for text in asked}) == 1


def test_a_record_that_names_no_template_is_rejected(chat, tmp_path):
    records = [*RENDERED * 9, {"prompt": "a", "completion": "b", "template": None}]
    [task] = built(chat, tmp_path, records, template_column="template").tasks
    [rejected] = task.rejected
    assert rejected.reason == "no_template"
    assert "'template'" in rejected.detail


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"template_column": "templat"}, ["'templat'", "template_column", "'prompt'"]),
        (
            {"template_column": "template", "templates": "reviews", "format": "columns"},
            ["t.template_column", "leave it out"],
        ),
    ],
)
def test_a_template_column_that_cannot_be_is_refused(chat, tmp_path, task, words):
    with pytest.raises(InputError) as caught:
        built(chat, tmp_path, RENDERED, **task)
    assert all(word in str(caught.value) for word in words)


def test_objects_of_a_table_lose_the_members_of_others_in_chats_alone(chat, tmp_path):
    """Each object of a Parquet column has the members of all of them, as nulls."""

    def row(**arguments):
        call = {"function": {"name": "do", "arguments": arguments}}
        return {
            "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}],
            "tools": [{"name": "do", "parameters": dict.fromkeys(arguments, 1)}],
        }

    path = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([row(a=1), row(b=[2], c={"d": 3})]), path)
    data = built(chat, tmp_path, [], source=str(path))
    said = sorted(text for [text] in trained_texts(data))
    assert '"arguments": {"a": 1}}' in said[0]
    assert '"arguments": {"b": [2], "c": {"d": 3}}}' in said[1]
    offered = [e.messages[0]["content"] for e in data.examples("train")]
    assert all("null" not in text for text in offered)
    # A template sees them, as the file has them.
    (tmp_path / "t.yaml").write_text(
        "templates:\n  a: !Template\n    name: a\n    answer_choices: null\n"
        '    jinja: "{{ messages[1].content is none }} ||| {{ messages[0].role }}"\n'
    )
    data = built(chat, tmp_path, [], source=str(path), templates=str(tmp_path / "t.yaml"))
    assert {e.messages[0]["content"] for e in data.examples("train")} == {"True"}
