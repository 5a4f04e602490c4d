"""Which shape a record has, and the conversation that becomes of it."""

import json

import pytest

from ift_jax.data.formats import (
    FORMATS,
    Conversation,
    Message,
    alpaca_prompt,
    detect_format,
    superni_prompt,
    to_conversations,
)
from ift_jax.data.sources import Record, Rejected
from ift_jax.errors import InputError

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SUPERNI = {
    "Definition": ["Give the opposite."],
    "Positive Examples": [
        {"input": "hot", "output": "cold", "explanation": "why"},
        {"input": "up", "output": "down"},
        {"input": "in", "output": "out"},
    ],
    "Negative Examples": [{"input": "big", "output": "huge"}],
    "Instances": [{"input": "tall", "output": ["short", "small"]}],
}


def convert(fields, fmt="", **options):
    record = Record(fields, "f.jsonl:7")
    return list(to_conversations(record, fmt or detect_format(fields), **options))


def converted(fields, fmt="", **options) -> Conversation:
    [conversation] = convert(fields, fmt, **options)
    assert isinstance(conversation, Conversation), conversation
    return conversation


def rejected(fields, fmt="") -> Rejected:
    [row] = convert(fields, fmt)
    assert isinstance(row, Rejected), row
    assert "\n" not in row.detail
    return row


def turns(conversation):
    return [(m.role, m.content, m.trained) for m in conversation.messages]


class TestDetection:
    @pytest.mark.parametrize(
        ("fields", "fmt"),
        [
            ({"prompt": "p", "completion": "c"}, "prompt_completion"),
            ({"template": "t", "prompt": "p", "completion": "c"}, "prompt_completion"),
            ({"prompt": "p", "messages": [USER]}, "messages"),
            ({"conversations": [USER]}, "messages"),
            ({"conversations": [{"from": "human", "value": "x"}], "tools": "[]"}, "sharegpt"),
            ({"instruction": "i", "input": "", "output": "o"}, "alpaca"),
            ({"instruction": "i", "input": "", "output": "o", "text": "t"}, "alpaca"),
            ({"id": 1, "instruction": "i", "response": "r"}, "alpaca"),
            (SUPERNI, "superni"),
            ({"text": "t"}, "text"),
        ],
    )
    def test_of_each_format(self, fields, fmt):
        assert detect_format(fields) == fmt

    @pytest.mark.parametrize(
        ("fields", "shown"),
        [
            ({"text": "t", "label": 1}, "give templates for labelled columns (format='columns')"),
            ({}, "the columns (none) are of no known format"),
            (
                {"prompt": "p", "completion": "c", "messages": []},
                "several formats; set format= to one of prompt_completion, messages",
            ),
            ({"canary": "", "examples": [{"input": "x"}]}, "set records_at='examples'"),
            ({"examples": {"1": {"input": "x"}}}, "set records_at='examples.*'"),
            ({"prompt": "p", "chosen": "c", "rejected": "r"}, "of no known format"),
        ],
    )
    def test_that_fails_says_what_to_declare(self, fields, shown):
        with pytest.raises(InputError) as caught:
            detect_format(fields)
        assert shown in str(caught.value)

    def test_unknown_names_are_input_errors_of_the_call(self):
        record = Record({"text": "t"}, "f:1")
        with pytest.raises(InputError, match="did you mean 'alpaca'"):
            to_conversations(record, "alpacca")
        with pytest.raises(InputError, match="labelled columns become examples by templates"):
            to_conversations(record, "columns")
        with pytest.raises(
            InputError, match=r"train_turns='first': unknown; .*all, last, all_text"
        ):
            to_conversations(record, "text", train_turns="first")


class TestPromptCompletion:
    def test_strings_become_one_turn_each(self):
        conversation = converted({"prompt": "2+2=\n", "completion": " 4"})
        assert turns(conversation) == [("user", "2+2=\n", False), ("assistant", " 4", True)]
        assert conversation.references == (" 4",)
        assert conversation.choices is None

    def test_message_lists_train_only_the_completion(self):
        fields = {"prompt": [USER, BOT, USER], "completion": [BOT]}
        assert [m.trained for m in converted(fields).messages] == [False, False, False, True]
        everything = converted(fields, train_turns="all_text")
        assert [m.trained for m in everything.messages] == [True] * 4

    def test_choices_come_along_if_they_hold_the_completion(self):
        fields = {"prompt": "p", "completion": "b", "choices": ["a", "b"]}
        assert converted(fields).choices == ("a", "b")
        assert rejected({**fields, "completion": "c"}).reason == "answer_not_in_choices"
        assert rejected({**fields, "choices": "ab"}).reason == "wrong_shape"

    @pytest.mark.parametrize(
        ("prompt", "completion", "reason", "detail"),
        [
            ("p", " \n", "empty_completion", "completion is empty"),
            (" ", "c", "empty_prompt", "prompt is empty"),
            ("p", 5, "wrong_shape", "completion is a number, not a list of turns"),
            (None, "c", "wrong_shape", "prompt is null, not a list of turns"),
            ([], "c", "empty_conversation", "prompt holds no turns"),
            ("p", [USER], "no_assistant_turn", "no assistant turn to train"),
        ],
    )
    def test_bad_records(self, prompt, completion, reason, detail):
        row = rejected({"prompt": prompt, "completion": completion})
        assert row == Rejected("f.jsonl:7", reason, detail)


class TestMessages:
    def test_only_assistant_turns_are_trained(self):
        fields = {"messages": [{"role": "developer", "content": "be brief"}, USER, BOT, USER, BOT]}
        conversation = converted(fields)
        assert turns(conversation) == [
            ("system", "be brief", False),
            ("user", "hi", False),
            ("assistant", "hello", True),
            ("user", "hi", False),
            ("assistant", "hello", True),
        ]
        assert conversation.references == ("hello",)

    @pytest.mark.parametrize(
        ("train_turns", "trained"),
        [
            ("all", [False, True, False, True, False]),
            ("last", [False, False, False, True, False]),
            ("all_text", [True] * 5),
        ],
    )
    def test_train_turns_says_which(self, train_turns, trained):
        fields = {"messages": [USER, BOT, USER, BOT, USER]}
        conversation = converted(fields, train_turns=train_turns)
        assert [m.trained for m in conversation.messages] == trained

    def test_weight_zero_is_read_and_not_trained(self):
        last = {"role": "assistant", "content": "yes", "weight": 1}
        fields = {"messages": [USER, {**BOT, "weight": 0}, USER, last]}
        assert [m.trained for m in converted(fields).messages] == [False, False, False, True]
        fields = {"messages": [USER, {**BOT, "weight": 0.5}]}
        assert rejected(fields).detail == "messages.2: weight is 0.5, and may be 0 or 1"

    def test_tool_calls_are_trained_and_results_are_not(self):
        call = {"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
        tools = [{"type": "function", "function": {"name": "add"}}]
        fields = {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "", "name": "add", "tool_call_id": "1"},
                BOT,
            ],
            "tools": tools,
        }
        conversation = converted(fields)
        parsed = {"name": "add", "arguments": {"a": 1}}
        assert conversation.messages[1] == Message("assistant", "", True, (parsed,))
        assert conversation.messages[2] == Message("tool", "", False)
        assert conversation.tools == tuple(tools)

    def test_function_calls_of_older_files(self):
        old = {"role": "assistant", "function_call": {"name": "add", "arguments": ""}}
        conversation = converted({"messages": [USER, old]})
        assert conversation.messages[1].tool_calls == ({"name": "add", "arguments": {}},)
        assert conversation.references == (conversation.messages[1].text(),)

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
    def test_reasoning_goes_by_several_names(self, name):
        conversation = converted({"messages": [USER, {**BOT, name: "A greeting."}]})
        assert [m.reasoning for m in conversation.messages] == ["", "A greeting."]
        assert conversation.references == ("hello",)

    def test_a_system_column_stands_first_unless_a_system_turn_does(self):
        asked = {"messages": [USER, BOT], "system": "Be brief."}
        assert turns(converted(asked))[0] == ("system", "Be brief.", False)
        own = {"role": "system", "content": "Be long."}
        assert [turn[1] for turn in turns(converted(asked | {"messages": [own, USER, BOT]}))] == [
            "Be long.", "hi", "hello"
        ]  # fmt: skip

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        conversation = converted({"messages": [{"role": "user", "content": parts}, BOT]})
        assert conversation.messages[0].content == "ab"

    def test_columns_that_parquet_fills_with_nulls_are_absent(self):
        nulls = {"tool_calls": None, "weight": None, "name": None, "reasoning_content": None}
        conversation = converted({"messages": [USER | nulls, BOT | nulls], "tools": None})
        assert turns(conversation) == [("user", "hi", False), ("assistant", "hello", True)]

    @pytest.mark.parametrize(
        ("messages", "reason", "detail"),
        [
            ([], "empty_conversation", "messages holds no turns"),
            ("hi", "wrong_shape", "messages is text, not a list of turns"),
            ([USER, "x"], "wrong_shape", "messages.2 is text, not an object"),
            ([{"content": "x"}], "wrong_shape", "messages.1: no 'role', only content"),
            ([{**USER, "role": "bot"}], "unknown_role", "messages.1: role is 'bot'; known: system"),
            ([{**USER, "role": ["user"]}], "unknown_role", "role is ['user']"),
            ([USER], "no_assistant_turn", "no assistant turn to train"),
            ([USER, {**BOT, "content": " "}], "empty_completion", "messages.2: the assistant says"),
            ([{**USER, "content": ""}, BOT], "empty_message", "messages.1: the user says nothing"),
            ([{**USER, "content": 3}, BOT], "wrong_shape", "messages.1: the content is a number"),
            (
                [{**USER, "content": [{"type": "image_url"}]}, BOT],
                "unsupported_content",
                "messages.1: a part of type 'image_url', not text",
            ),
            ([USER, {**BOT, "thinking": ["x"]}], "wrong_shape", "thinking is a list, not text"),
            ([{**USER, "reasoning": "x"}, BOT], "wrong_shape", "an assistant's, not a user's"),
            ([{**USER, "tool_calls": [{}]}, BOT], "broken_tool_call", "an assistant's list"),
            ([USER, {**BOT, "tool_calls": [{}]}], "broken_tool_call", "a tool call without a name"),
            (
                [USER, {**BOT, "tool_calls": [{"name": "f", "arguments": "{"}]}],
                "broken_tool_call",
                "messages.2: the call is not JSON: '{'",
            ),
        ],
    )
    def test_bad_records(self, messages, reason, detail):
        row = rejected({"messages": messages})
        assert (row.origin, row.reason) == ("f.jsonl:7", reason)
        assert detail in row.detail

    def test_bad_tools(self):
        assert rejected({"messages": [USER, BOT], "tools": ["x"]}).reason == "wrong_shape"
        assert rejected({"messages": [USER, BOT], "tools": "{"}).reason == "broken_tool_call"


class TestShareGpt:
    CALL = '{"name": "add", "arguments": {"a": 1}}'

    def test_speakers_become_roles(self):
        fields = {
            "system": "be kind",
            "conversations": [
                {"from": "human", "value": "add"},
                {"from": "function_call", "value": self.CALL},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "one"},
            ],
            "tools": '[{"name": "add"}]',
        }
        conversation = converted(fields)
        assert turns(conversation) == [
            ("system", "be kind", False),
            ("user", "add", False),
            ("assistant", "", True),
            ("tool", "1", False),
            ("assistant", "one", True),
        ]
        assert conversation.messages[2].tool_calls == (json.loads(self.CALL),)
        assert conversation.tools == ({"name": "add"},)

    def test_several_calls_in_one_turn(self):
        turn = {"from": "function_call", "value": f"[{self.CALL}, {self.CALL}]"}
        conversation = converted({"conversations": [{"from": "human", "value": "x"}, turn]})
        assert len(conversation.messages[1].tool_calls) == 2

    @pytest.mark.parametrize(
        ("turn", "reason", "detail"),
        [
            ({"from": "alien", "value": "x"}, "unknown_role", "conversations.2: from is 'alien'"),
            ({"from": "gpt"}, "empty_completion", "conversations.2: the assistant says nothing"),
            (
                {"from": "function_call", "value": "add(1)"},
                "broken_tool_call",
                "not JSON: 'add(1)'",
            ),
            ({"from": "function_call", "value": "7"}, "broken_tool_call", "without a name"),
            ({"value": "x"}, "wrong_shape", "no 'from', only value"),
        ],
    )
    def test_bad_records(self, turn, reason, detail):
        row = rejected({"conversations": [{"from": "human", "value": "x"}, turn]})
        assert row.reason == reason
        assert detail in row.detail


class TestToolCallsAsText:
    MESSAGE = Message("assistant", "Wait.", True, ({"name": "add", "arguments": {"ä": 1}},))

    def test_calls_are_written_behind_the_content(self):
        assert self.MESSAGE.text() == (
            'Wait.\n<tool_call>\n{"name": "add", "arguments": {"ä": 1}}\n</tool_call>'
        )
        assert Message("user", "hi", False).text() == "hi"


class TestAlpaca:
    def test_input_stands_below_the_instruction(self):
        conversation = converted({"instruction": "Sum up. ", "input": "Long.\n", "output": "S"})
        assert turns(conversation) == [
            ("user", "Sum up.\n\nInput:\nLong.", False),
            ("assistant", "S", True),
        ]

    @pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}, {"input": "  "}])
    def test_without_input_the_instruction_stands_alone(self, given):
        conversation = converted({"instruction": "Go", "output": "o", **given})
        assert conversation.messages[0].content == "Go" == alpaca_prompt("Go")

    def test_names_of_dolly_and_a_system_column(self):
        fields = {"instruction": "i", "context": "c", "response": "r", "system": "s"}
        assert turns(converted(fields)) == [
            ("system", "s", False),
            ("user", "i\n\nInput:\nc", False),
            ("assistant", "r", True),
        ]

    @pytest.mark.parametrize(
        ("changed", "reason", "detail"),
        [
            ({"output": ""}, "empty_completion", "output is empty"),
            ({"output": None}, "wrong_shape", "output is missing"),
            ({"output": 3}, "wrong_shape", "output is a number, not text"),
            ({"instruction": " "}, "empty_prompt", "instruction is empty"),
            ({"input": ["x"]}, "wrong_shape", "input is a list, not text"),
        ],
    )
    def test_bad_records(self, changed, reason, detail):
        fields = {"instruction": "i", "input": "", "output": "o", **changed}
        assert rejected(fields) == Rejected("f.jsonl:7", reason, detail)


class TestSuperNaturalInstructions:
    def test_prompt_has_the_definition_two_examples_and_the_input(self):
        conversation = converted(SUPERNI)
        assert conversation.messages[0].content == (
            "Give the opposite.\n\n"
            "Example 1\nInput: hot\nOutput: cold\n\n"
            "Example 2\nInput: up\nOutput: down\n\n"
            "Now complete the following example.\nInput: tall\nOutput:"
        )

    def test_every_output_is_a_reference_and_the_first_is_trained(self):
        conversation = converted(SUPERNI)
        assert conversation.references == ("short", "small")
        assert turns(conversation)[1] == ("assistant", "short", True)

    def test_definition_as_a_bare_string_and_no_examples(self):
        fields = {"Definition": "Give the opposite.", "Instances": SUPERNI["Instances"]}
        prompt = superni_prompt("Give the opposite.", [], "tall")
        assert converted(fields).messages[0].content == prompt

    def test_an_example_that_is_the_instance_itself_is_not_shown(self):
        fields = {**SUPERNI, "Instances": [{"input": "hot ", "output": "cold"}]}
        prompt = converted(fields).messages[0].content
        assert "cold" not in prompt
        assert "Output: out" in prompt

    def test_one_file_expands_to_its_instances_and_bad_ones_are_rejected(self):
        instances = [
            {"input": "a", "output": ["b"]},
            {"input": " ", "output": ["b"]},
            {"input": "a", "output": [" "]},
            {"input": "a", "output": [1]},
            "a",
            {"input": "c", "output": ["", "d"]},
        ]
        rows = convert({**SUPERNI, "Instances": instances})
        assert [getattr(row, "reason", "") for row in rows] == [
            "",
            "empty_prompt",
            "empty_completion",
            "wrong_shape",
            "wrong_shape",
            "",
        ]
        assert rows[1].origin == "f.jsonl:7.Instances.2"
        assert rows[5].references == ("d",)

    @pytest.mark.parametrize(
        ("changed", "reason", "detail"),
        [
            ({"Definition": 3}, "wrong_shape", "Definition is not text"),
            ({"Definition": [" "]}, "empty_prompt", "Definition is empty"),
            ({"Instances": []}, "wrong_shape", "Instances is not a list with instances"),
            ({"Positive Examples": "x"}, "wrong_shape", "Positive Examples is not a list"),
            ({"Positive Examples": [{}]}, "wrong_shape", "Positive Examples.1: no input and"),
        ],
    )
    def test_bad_records(self, changed, reason, detail):
        row = rejected({**SUPERNI, **changed}, "superni")
        assert row.reason == reason
        assert detail in row.detail


class TestText:
    def test_everything_is_trained_and_no_template_goes_around_it(self):
        conversation = converted({"text": "Once\n"})
        assert turns(conversation) == [("assistant", "Once\n", True)]
        assert conversation.plain
        assert conversation.references == ()

    def test_bad_records(self):
        assert rejected({"text": "\n"}).reason == "empty_completion"
        assert rejected({"text": None}).detail == "text is missing"


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt != "columns"])
def test_a_record_of_another_shape_is_rejected_not_an_exception(fmt):
    for fields in ({}, {"messages": 1, "conversations": {}, "prompt": {}, "Instances": 2}):
        assert rejected(fields, fmt).origin == "f.jsonl:7"
