"""Training examples behind solved ones: from the same split and template, as many as fit."""

import pytest
from conftest import CHAT_TEMPLATE, make_tokenizer
from test_pipeline import Folder, reviews

from ift_jax.data import pipeline
from ift_jax.data.chat import Chat
from ift_jax.data.shots import solved

ALL_TRAIN = {"validation_fraction": 0.0, "test_fraction": 0.0}


@pytest.fixture
def folder(tmp_path, chat):
    return Folder(tmp_path, chat)


def question(example):
    return example.messages[-1]["content"]


def test_shots_are_solved_examples_of_the_same_split_and_template(folder):
    task = {"train_shots": (3,), "template_names": (), "template_choice": "all"}
    data = folder.build(reviews(80), task=task, max_length=2048)
    train = data.tasks[0].splits["train"]
    solved = {(question(e), e.completion, e.template) for e in train}
    held_out = {
        (question(e), e.completion) for s in ("validation", "test") for e in data.examples(s)
    }
    for example in train:
        assert example.shots == 3
        assert [m["role"] for m in example.messages] == ["user", "assistant"] * 3 + ["user"]
        turns = [m["content"] for m in example.messages]
        for asked, answered in zip(turns[0:-1:2], turns[1::2], strict=True):
            assert (asked, answered, example.template) in solved
            assert (asked, answered) not in held_out
            assert (asked, answered) != (turns[-1], example.completion)
    assert all(e.shots == 0 for s in ("validation", "test") for e in data.examples(s))


@pytest.mark.parametrize("split_by", ["text", "number"])
def test_no_shot_asks_the_question_of_its_example(folder, split_by):
    """The key tells it, or what the prompt shows; the most that others can give is drawn."""
    records = [{**one, "stars": 1 + n, "number": f"{n} of {i}"}
               for i, one in enumerate(reviews(3)) for n in range(5)]  # fmt: skip
    task = {**ALL_TRAIN, "train_shots": (9,), "split_by": (split_by,)}
    train = folder.build(records, task=task, max_length=4096).examples("train")
    assert [e.shots for e in train] == [9] * 15
    for example in train:
        assert question(example) not in [m["content"] for m in example.messages[:-1]]


def test_no_shot_has_the_key_of_its_example(folder):
    """Which may be less than what the prompt shows, such as a question without its choices."""
    task = {**ALL_TRAIN, "train_shots": (6,), "split_by": ("title",)}
    train = folder.build(reviews(21), task=task, max_length=4096).examples("train")
    key_of = {question(e): e.key for e in train}
    assert [e.shots for e in train] == [6] * 21
    for example in train:
        assert example.key not in [key_of[m["content"]] for m in example.messages[:-1:2]]


def test_only_the_answer_to_the_last_question_is_trained(folder, chat):
    data = folder.build(reviews(10), task={**ALL_TRAIN, "train_shots": (2,)}, max_length=2048)
    tokens = data.tokens("train")
    for number, example in enumerate(data.examples("train")):
        ids, trained = tokens.get(number)
        said = chat.tokenizer.decode(ids[trained].tolist())
        assert said == example.completion + "<|im_end|>"


def test_each_example_draws_one_of_the_numbers_by_its_content(folder):
    task = {**ALL_TRAIN, "train_shots": (0, 2)}
    data = folder.build(reviews(200), task=task, max_length=2048)
    shots = {question(e): e.shots for e in data.examples("train")}
    assert set(shots.values()) == {0, 2}
    assert 60 < sum(count == 2 for count in shots.values()) < 140
    again = folder.build(reviews(200)[::-1], task=task, max_length=2048)
    assert {question(e): [m["content"] for m in e.messages] for e in again.examples("train")} == {
        question(e): [m["content"] for m in e.messages] for e in data.examples("train")
    }


def test_what_does_not_fit_is_left_out_and_reported(folder):
    room = 2 + 2 * max(
        folder.build(reviews(20), task=ALL_TRAIN, max_length=2048).tokens("train").lengths
    )
    data = folder.build(reviews(20), task={**ALL_TRAIN, "train_shots": (6,)}, max_length=int(room))
    tokens = data.tokens("train")
    assert tokens.lengths.max() <= room
    assert {e.shots for e in data.examples("train")} <= {1, 2}
    card = pipeline.card(data)["tasks"]["rating"]
    assert sum(card["missing_shots"].values()) == 20
    assert set(card["missing_shots"]) <= {"4", "5"}
    assert sum(int(k) * n for k, n in card["splits"]["train"]["shots"].items()) == sum(
        e.shots for e in data.examples("train")
    )


def test_a_split_with_too_few_examples_reports_it_too(folder):
    data = folder.build(reviews(3), task={**ALL_TRAIN, "train_shots": (5,)}, max_length=2048)
    assert [e.shots for e in data.examples("train")] == [2, 2, 2]
    assert data.tasks[0].missing_shots == {3: 3}


# Chats with system turns

CHATS = {"templates": "", "template_names": (), "split_by": (), **ALL_TRAIN, "train_shots": (2,)}
ROLES = ("user", "assistant")
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)
ALTERNATING = (
    "{% set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)
ONE_EXCHANGE = (
    "{% if messages | length > 3 %}{{ raise_exception('too many turns') }}{% endif %}"
    + CHAT_TEMPLATE
)


def turn(role, content):
    return {"role": role, "content": content}


def chats(count, exchanges=1):
    def said(i):
        return [turn(role, f"{role} {i} {n}") for n in range(exchanges) for role in ROLES]

    return [{"messages": [turn("system", f"You are bot {i}."), *said(i)]} for i in range(count)]


def chat_with(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Chat.of(tokenizer)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SYSTEM_FIRST, ALTERNATING])
def test_shots_come_without_system_turns_and_the_examples_own_stays_first(tmp_path, template):
    folder = Folder(tmp_path, chat_with(template))
    data = folder.build(chats(8, exchanges=2), task=CHATS, max_length=4096)
    tokens = data.tokens("train")
    for number, example in enumerate(data.examples("train")):
        own = example.completion.split()[1]
        roles = [m["role"] for m in example.messages]
        assert roles == ["system", *["user", "assistant"] * 5, "user"]
        assert example.messages[0]["content"] == f"You are bot {own}."
        assert [m["content"] for m in solved([example])] == [
            f"{role} {own} {n}" for n in (0, 1) for role in ROLES
        ]
        ids, trained = tokens.get(number)
        said = folder.chat.tokenizer.decode(ids[trained].tolist())
        assert said == f"assistant {own} 0<|im_end|>assistant {own} 1<|im_end|>"


def test_what_the_chat_template_refuses_behind_shots_is_said_with_task_and_field(tmp_path):
    folder = Folder(tmp_path, chat_with(ONE_EXCHANGE))
    refusal = folder.refusal(chats(8), task=CHATS, max_length=4096)
    assert "config.data.tasks: rating.train_shots: " in refusal
    assert "rating.jsonl:" in refusal
    assert "too many turns" in refusal
    folder.build(chats(8), task={**CHATS, "train_shots": (0,)}, max_length=4096)


def test_a_system_turn_that_is_all_that_is_asked_neither_is_a_shot_nor_takes_some(folder):
    bare = [
        {"messages": [turn("system", f"Say {i}."), turn("assistant", str(i))]} for i in range(9)
    ]
    data = folder.build([*chats(3), *bare], task=CHATS, max_length=4096)
    for example in data.examples("train"):
        asks = [m["role"] for m in example.messages].count("user")
        assert example.shots == (2 if asks else 0)
        assert asks in (0, 3)
    assert data.tasks[0].missing_shots == {0: 3, 2: 9}
