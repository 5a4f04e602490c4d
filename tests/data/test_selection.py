"""What is kept and where it goes: own splits, groups, repeats, near-repeats, leaks, strata."""

import json
import math
from collections import Counter

import pytest
from test_pipeline import TEMPLATES, Folder, by_split, prompts, reviews

from ift_jax.data import collect, pipeline
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.splits import assign_split
from ift_jax.errors import InputError

LONG = (
    "I have had this lamp on my desk for three weeks now and it still gives a warm and even "
    "light, the switch feels solid, and my cat has not yet managed to push it over."
)


@pytest.fixture
def folder(tmp_path, chat):
    return Folder(tmp_path, chat)


def review(text, stars=3, title="Lamp"):
    return {"text": text, "stars": stars, "title": title}


def counts(data, task=0):
    return data.tasks[task].removed


def several(folder, tasks, **data):
    """A data set of tasks given as {name: (records, fields of the task)}."""
    configs = tuple(
        folder.config(records, name=name, task=fields).tasks[0]
        for name, (records, fields) in tasks.items()
    )
    return pipeline.build(DataConfig(tasks=configs, **data), folder.chat)


# Splits


def test_a_record_goes_where_the_digest_of_its_text_says(folder):
    data = folder.build(reviews(200))
    for task in data.tasks:
        for split in SPLITS:
            assert task.splits[split]
            for example in task.splits[split]:
                assert assign_split(example.key, task.config.fractions) == split


def test_chunks_are_no_boundary(folder, monkeypatch):
    records = [*reviews(120), *reviews(20), "no json"]
    whole = folder.build(records)
    monkeypatch.setattr(collect, "CHUNK", 7)
    chunked = folder.build(records)
    for split in SPLITS:
        assert prompts(chunked, split) == prompts(whole, split)
    assert counts(chunked) == counts(whole) == {**counts(whole), "duplicates": 20}
    assert pipeline.card(chunked) == pipeline.card(whole)


def test_a_chunk_is_cut_short_where_records_are_long(folder, monkeypatch):
    records = [
        *reviews(30),
        {**review("x" * 900), "nested": [{"y": ["z" * 900]}]},
        *reviews(30, 90),
    ]
    whole = folder.build(records, max_rejected=1.0)
    monkeypatch.setattr(collect, "CHUNK_CHARACTERS", 1500)
    chunked = folder.build(records, max_rejected=1.0)
    assert pipeline.card(chunked) == pipeline.card(whole)
    rows = [record for record, _ in zip(collect.read_task(
        folder.config(records).tasks[0], folder.config(records).tasks[0].source, ""), range(61),
        strict=True)]  # fmt: skip
    stream, sizes = iter(rows), []
    while taken := collect._chunk(stream):
        sizes.append(len(taken))
    assert sum(sizes) == 61
    assert sizes[0] == 31  # up to the long one


def test_a_sets_own_splits_are_kept_and_training_gives_up_what_they_hold(folder):
    shared = reviews(60)
    validation = folder.config([*shared[40:45], *reviews(5, 900)], name="validation")
    test = folder.config([*shared[:10], *shared[43:45]], name="test")
    data = folder.build(
        shared,
        task={
            "validation_source": validation.tasks[0].source,
            "test_source": test.tasks[0].source,
        },
    )
    found = {split: set(prompts(data, split)) for split in SPLITS}
    assert len(found["test"]) == 12
    assert len(found["validation"]) == 8  # two of its ten stand in test
    assert len(found["train"]) == 60 - 15
    assert not found["train"] & (found["test"] | found["validation"])
    assert counts(data)["in_other_split"] == 15 + 2
    assert data.tasks[0].num_records == 60 + 10 + 12


def test_a_group_is_never_parted_and_its_text_leaks_nowhere(folder):
    records = [review(f"Text {n % 50} of all.", title=f"Lamp {n % 23}") for n in range(300)]
    data = folder.build(records, task={"group_by": ("title",), "split_by": ("text",)})
    titles = {
        split: {records[int(e.origin.rsplit(":", 1)[1]) - 1]["title"] for e in data.examples(split)}
        for split in SPLITS
    }
    assert all(titles.values())
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not titles[a] & titles[b]
    texts = by_split(data)
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["validation"] & texts["test"]


def test_text_held_out_by_one_task_is_not_trained_by_another(folder):
    records = reviews(100)
    data = several(
        folder,
        {
            "a": (records, {"test_fraction": 1.0, "validation_fraction": 0.0, "weight": 0.0}),
            "b": ([*records[:30], *reviews(50, 500)],
                  {"test_fraction": 0.0, "validation_fraction": 0.0}),
        },
    )  # fmt: skip
    assert len(data.tasks[1].splits["train"]) == 50
    assert counts(data, 1)["in_other_split"] == 30


def rows_of(data, split, task=0):
    return {int(e.origin.rpartition(":")[2]) for e in data.tasks[task].splits[split]}


ALL_TRAIN = {"validation_fraction": 0.0, "test_fraction": 0.0}
ALL_TEST = {"validation_fraction": 0.0, "test_fraction": 1.0}
THIRDS = {"validation_fraction": 0.0, "test_fraction": 0.3}
SPREAD = {"validation_fraction": 0.2, "test_fraction": 0.2}
RECORD_FORMAT = {"templates": "", "template_names": (), "split_by": ()}


def test_a_group_in_a_sets_own_test_file_is_not_trained(folder):
    records = [review(f"Text {n} of all.", title=f"Lamp {n % 5}") for n in range(50)]
    tested = [review(f"Other text {n}.", title=f"Lamp {n % 3}") for n in range(20)]
    test = folder.config(tested, name="test").tasks[0].source
    task = {"group_by": ("title",), "test_source": test, "validation_fraction": 0.0}
    data = folder.build(records, task=task)
    assert {n % 5 for n in rows_of(data, "train")} == {4, 0}  # counted from 1: lamps 3 and 4
    assert len(data.tasks[0].splits["test"]) == 20
    assert counts(data)["in_other_split"] == 30
    # Another task's groups may go by the same names.
    other = several(folder, {"a": (tested, {**ALL_TEST, "group_by": ("title",)}),
                             "b": (records, {**ALL_TRAIN, "group_by": ("title",)})})  # fmt: skip
    assert len(other.tasks[1].splits["train"]) == 50


def test_records_without_a_group_are_no_group(folder):
    records = [review(f"Text {n}.", title=None if n % 2 else "") for n in range(100)]
    data = folder.build(records, task={"group_by": ("title",)})
    records = [review(f"Text {n}.", title=math.nan) for n in range(100)]  # a gap, as pandas has it
    gaps = folder.build(records, task={"group_by": ("title",)})
    assert by_split(gaps) == by_split(data)
    assert all(len(data.tasks[0].splits[split]) > 1 for split in SPLITS)


def test_records_without_a_value_to_split_by_are_told_by_what_they_ask(folder):
    train = [{**review(f"Text {n}"), "doc": None if n % 2 else f"doc {n}"} for n in range(100)]
    test = folder.path / "test.jsonl"
    test.write_text(json.dumps({**review("A text of its own"), "doc": None}))
    task = {"split_by": ("doc",), "test_source": str(test), "validation_fraction": 0.0}
    data = folder.build(train, task=task)
    assert len(data.examples("train")) == 100
    assert len(data.examples("test")) == 1
    test.write_text(json.dumps({**review("Text 3"), "doc": None}))
    assert counts(folder.build(train, task=task))["in_other_split"] == 1


def test_a_held_out_text_is_not_trained_as_another_tasks_answer(folder):
    asked = [review(f"The text of review number {n}.") for n in range(100)]
    answered = [
        {"prompt": f"Write review {n}", "completion": f"The text of review number {n}!"}
        for n in range(100)
    ]
    tasks = {"a": (asked, THIRDS), "b": (answered, {**ALL_TRAIN, **RECORD_FORMAT})}
    data = several(folder, tasks)
    held_out = rows_of(data, "test")
    assert 15 < len(held_out) < 45
    assert rows_of(data, "train", 1) == set(range(1, 101)) - held_out
    assert counts(data, 1)["in_other_split"] == len(held_out)


def test_a_record_held_out_by_one_task_is_not_trained_by_another_with_other_columns(folder):
    """Also where its texts are too short to tell records apart by them."""
    (folder.path / "templates.yaml").write_text(
        TEMPLATES.replace("{{ title }}. ||| {{ text }}", "{{ title }}. ||| {{ stars }}")
    )
    records = [review(f"Text {n}", title=f"Lamp {n}") for n in range(100)]
    write = {"template_names": ("Write",), "split_by": ()}
    data = several(folder, {"a": (records, THIRDS), "b": (records, {**THIRDS, **write})})
    for one, other in ((0, 1), (1, 0)):
        assert rows_of(data, "test", one)
        assert not rows_of(data, "train", one) & rows_of(data, "test", other)


def test_a_text_of_several_is_held_out_where_only_its_record_has_it(folder):
    """The question of a passage, but not the passage that other questions share."""
    (folder.path / "pairs.yaml").write_text(
        TEMPLATES.replace("Review: {{ text }}", "Review: {{ passage }} {{ text }}")
    )
    passage = "A passage of six words here."
    pairs = [{"passage": passage, "text": f"Is this question number {n}?", "stars": 1}
             for n in range(10)]  # fmt: skip
    alone = [review(pairs[3]["text"]), review(passage), review("Something else.")]
    task = {"templates": str(folder.path / "pairs.yaml"), "split_by": ()}
    data = several(folder, {"a": (pairs, {**ALL_TEST, **task}), "b": (alone, ALL_TRAIN)})
    assert rows_of(data, "train", 1) == {2, 3}
    # In one task the passage may stand in two splits: whoever minds names it in group_by.
    whole = several(folder, {"a": (pairs, {**THIRDS, **task})})
    assert rows_of(whole, "train") | rows_of(whole, "test") == set(range(1, 11))


def test_a_conversation_and_its_continuation_are_not_in_two_splits(folder):
    def said(n, turns):
        pairs = [(f"Question {n}?", f"Answer {n}."), ("And then?", "Nothing."), ("No?", "No.")]
        return [
            {"role": role, "content": text}
            for pair in pairs[:turns]
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]

    chats = [{"messages": said(n // 3, 1 + n % 3)} for n in range(180)]
    task = {**RECORD_FORMAT, "validation_fraction": 0.2, "test_fraction": 0.2}
    data = folder.build(chats, task=task)
    homes = {}
    for split in SPLITS:
        for n in rows_of(data, split):
            homes.setdefault((n - 1) // 3, set()).add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert {split for splits in homes.values() for split in splits} == {*SPLITS}
    assert counts(data)["in_other_split"] == 180 - sum(len(data.examples(s)) for s in SPLITS) > 0
    # Two that only begin alike have nothing in common but the beginning.
    end = {"role": "assistant", "content": "Yes."}
    forks = [
        {"messages": [*said(0, 1), {"role": "user", "content": f"Fork {n}?"}, end]}
        for n in range(40)
    ]
    assert counts(folder.build(forks, task=task))["in_other_split"] == 0


def test_a_question_is_held_out_also_where_something_else_decides_the_split(folder):
    """But not what several records of the task show."""
    (folder.path / "pairs.yaml").write_text(
        TEMPLATES.replace("Review: {{ text }}", "Review: {{ passage }} {{ text }}")
    )
    passage, other = "A passage of six words here.", "Quite another passage, of seven words."
    asked = [f"Is this question number {n}?" for n in range(10)]
    pairs = [{"passage": passage, "text": text, "stars": 1, "title": "Lamp"} for text in asked]
    pairs += [{**pairs[7], "stars": 2}, {**pairs[0], "passage": other, "text": "And now?"}]
    alone = [{"prompt": text, "completion": "Yes."}
             for text in (asked[3], passage, asked[7], other, "Something else.")]  # fmt: skip
    task = {"templates": str(folder.path / "pairs.yaml"), "split_by": ("title",)}
    tasks = {"a": (pairs, {**ALL_TEST, **task}), "b": (alone, {**ALL_TRAIN, **RECORD_FORMAT})}
    assert rows_of(several(folder, tasks), "train", 1) == {2, 5}
    # Within the task what decides the split goes on deciding alone, whatever prompts share.
    one = [{**pair, "text": "Is this what all of them ask?", "title": f"Lamp {n}"}
           for n, pair in enumerate(pairs)]  # fmt: skip
    whole = several(folder, {"a": (one, {**THIRDS, **task, "repeats": "keep"})})
    assert rows_of(whole, "train") | rows_of(whole, "test") == set(range(1, 13))
    # In conversations these are the turns that are not the assistant's.
    chats = [{"prompt": text, "completion": "Yes.", "id": f"{n}"} for n, text in enumerate(asked)]
    by_id = {**ALL_TEST, **RECORD_FORMAT, "format": "prompt_completion", "split_by": ("id",)}
    data = several(folder, {"a": (chats, by_id), "b": tasks["b"]})
    assert rows_of(data, "train", 1) == {2, 4, 5}


# Repeats and leaks


def test_only_what_is_equal_character_by_character_is_a_repeat_unless_asked(folder):
    pairs = [
        {"prompt": "Spell the other way: apple", "completion": "Apple"},
        {"prompt": "Spell the other way: Apple", "completion": "apple"},
        {"prompt": "def f():\n  x = 1\n  y = 2", "completion": "a"},
        {"prompt": "def f():\n  x = 1\ny = 2", "completion": "a"},
        {"prompt": "def f():\n  x = 1\ny = 2", "completion": "a"},
    ]
    task = {**RECORD_FORMAT, **ALL_TRAIN}
    for repeats, kept in (("exact", {1, 2, 3, 4}), ("keep", {1, 2, 3, 4, 5})):
        data = folder.build(pairs, task={**task, "repeats": repeats})
        assert rows_of(data, "train") == kept
        assert counts(data)["duplicates"] == 5 - len(kept)
    loose = folder.build(pairs, task={**task, "repeats": "loose"})
    assert [n <= 2 for n in sorted(rows_of(loose, "train"))] == [True, False]
    assert rows_of(folder.build(pairs, task=task), "train") == {1, 2, 3, 4}
    shuffled = [pairs[i] for i in (3, 1, 0, 4, 2)]
    for repeats in ("exact", "loose"):
        one, other = (
            folder.build(records, task={**task, "repeats": repeats})
            for records in (pairs, shuffled)
        )
        assert prompts(one, "train") == prompts(other, "train")
    # Yet they are one text to the splits.
    spread = [
        {"prompt": f"Spell {n} {w}", "completion": "x"} for n in range(50) for w in ("A", "a")
    ]
    homes = {}
    data = folder.build(spread, task=RECORD_FORMAT)
    for split in SPLITS:
        for n in rows_of(data, split):
            homes.setdefault((n - 1) // 2, set()).add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    with pytest.raises(InputError, match=r"x\.repeats: expected one of 'exact', 'loose', 'keep'"):
        TaskConfig(name="x", repeats="all")


def test_which_repeat_stays_is_not_told_by_the_order_of_the_records(folder):
    """Each text comes from two authors, in two files of which templates read neither."""
    records = [
        {
            "text": f"The lamp of room {n} is as bright as day.",
            "stars": 3,
            "title": "Lamp",
            "author": author,
            "id": n,
        }
        for author in ("Ada", "Bob")
        for n in range(40)
    ]
    for fields in (
        {"group_by": ("author",), **SPREAD},
        {"balance_by": "author", "train_size": 10, **ALL_TRAIN},
        {"template_names": ("Rate", "Write"), **SPREAD},
    ):
        one, other = (folder.build(rows, task=fields) for rows in (records, [*reversed(records)]))
        assert counts(one)["duplicates"] == 40
        for split in SPLITS:
            assert prompts(one, split) == prompts(other, split)


def test_a_question_is_one_text_whatever_the_system_turn_says(folder):
    chats = [
        {
            "messages": [
                {"role": "system", "content": f"You are assistant number {system}, be brief."},
                {"role": "user", "content": f"How many lamps fit into room number {n} of it?"},
                {"role": "assistant", "content": "Three."},
            ]
        }
        for n in range(40)
        for system in range(3)
    ]
    data = folder.build(chats, task={**RECORD_FORMAT, "format": "messages", **SPREAD})
    homes = {}
    for split in SPLITS:
        for n in rows_of(data, split):
            homes.setdefault((n - 1) // 3, []).append(split)
    assert sorted(map(len, homes.values())) == [3] * 40
    assert all(len(set(splits)) == 1 for splits in homes.values())
    assert {split for splits in homes.values() for split in splits} == set(SPLITS)


def test_a_system_turn_tells_conversations_apart_where_nothing_else_does(folder):
    chats = [
        {
            "messages": [
                {"role": "system", "content": f"The text to sum up: room {n} has a lamp."},
                {"role": "user", "content": "Sum it up."},
                {"role": "assistant", "content": f"Lamp in {n}."},
            ]
        }
        for n in range(60)
    ]
    data = folder.build(chats, task={**RECORD_FORMAT, "format": "messages", **SPREAD})
    assert all(rows_of(data, split) for split in SPLITS)


def test_of_a_nested_column_only_what_templates_read_tells_records_apart(folder):
    records = [
        {"doc": {"text": f"The lamp of room {n} is as bright as day.", "id": copy}, "stars": 3}
        for n in range(40)
        for copy in range(2)
    ]
    nested = folder.path / "nested.yaml"
    nested.write_text(TEMPLATES.replace("{{ text }} Answer", "{{ doc.text }} Answer"))
    task = {"templates": str(nested), "split_by": (), **SPREAD}
    data = folder.build(records, task=task)
    assert counts(data)["duplicates"] == 40
    said = [prompt for split in SPLITS for prompt in prompts(data, split)]
    assert len(said) == len(set(said)) == 40
    # Also where another task shows the same text.
    other = {"text": records[0]["doc"]["text"], "stars": 1}
    tasks = {"a": ([other], ALL_TEST), "b": (records, {**task, **ALL_TRAIN})}
    assert 0 not in {(n - 1) // 2 for n in rows_of(several(folder, tasks), "train", 1)}


def test_an_input_is_one_text_under_any_instruction(folder):
    rows = [
        {
            "instruction": f"{verb} this.",
            "input": f"The lamp of room {n} is as bright as day.",
            "output": "Yes.",
        }
        for n in range(40)
        for verb in ("Rate", "Sum up", "Translate")
    ]
    task = {**RECORD_FORMAT, "format": "alpaca"}
    data = folder.build(rows, task={**task, **SPREAD})
    homes = [{(n - 1) // 3 for n in rows_of(data, split)} for split in SPLITS]
    assert all(homes)
    assert sum(map(len, homes)) == 40
    # Another task holds the first out.
    tasks = {"a": ([review(rows[0]["input"])], ALL_TEST), "b": (rows, {**task, **ALL_TRAIN})}
    assert rows_of(several(folder, tasks), "train", 1) == set(range(4, 121))


def superni(instances, definition="Say whether the lamp is bright, with yes or no.", examples=()):
    pair = {"explanation": "", "output": "Yes."}
    return {
        "Definition": [definition],
        "Positive Examples": [{**pair, "input": text} for text in examples],
        "Instances": [{"input": text, "output": ["Yes."]} for text in instances],
    }


def test_an_instance_of_a_task_file_is_told_by_its_input(folder):
    texts = [f"The lamp of room {n} is as bright as day." for n in range(40)]
    # An example that stands among the instances as well may be held out, so it is not shown.
    files = [
        superni(texts, examples=(texts[0], "No lamp is in this room at all.")),
        superni(texts, "Name the room that the text is about."),
    ]
    task = {**RECORD_FORMAT, "format": "superni", **SPREAD}
    data = folder.build(files, task=task)
    for split in SPLITS:
        for prompt in prompts(data, split):
            assert prompt.count(texts[0]) == prompt.endswith(f"Input: {texts[0]}\nOutput:")
    homes = [
        {text for text in texts if any(f"Input: {text}\nOutput:" in p for p in prompts(data, s))}
        for s in SPLITS
    ]
    assert all(homes)
    assert sum(map(len, homes)) == 40
    # What all instances share, definition and examples, contaminates none.
    cleaned = folder.build(files, task=task, decontaminate=("rating",))
    assert counts(cleaned)["contaminated"] == 0


def test_near_duplicates_leave_a_sets_own_test_as_it_is(folder):
    trained = [review(LONG.replace("three", f"{n}")) for n in range(10)]
    tested = [review(LONG.replace("three", f"{n}")) for n in range(20, 30)]
    test = folder.config(tested, name="test").tasks[0].source
    task = {"validation_fraction": 0.0, "near_duplicates": 0.8}
    data = folder.build(trained, task={**task, "test_source": test})
    assert len(data.examples("test")) == 10
    assert data.examples("train") == []
    assert counts(data)["near_duplicates"] == 10
    # Of a test split by digest one is left, and it is the one of test that is.
    data = folder.build(trained, task={**task, "test_fraction": 0.3})
    assert [len(data.examples(split)) for split in SPLITS] == [0, 0, 1]


def test_near_duplicates_are_dropped_and_counted_where_asked(folder):
    near = [review(LONG), review(LONG.replace("three", "four")), review(LONG + " Good.")]
    records = [*reviews(40), *near]
    fractions = {"validation_fraction": 0.0, "test_fraction": 0.0}
    assert len(folder.build(records, task=fractions).examples("train")) == 43
    # The forty differ in a number only, but are too short to share 80 % of their word runs.
    data = folder.build(records, task={**fractions, "near_duplicates": 0.8})
    assert counts(data)["near_duplicates"] == 2
    assert len([p for p in prompts(data, "train") if "my cat" in p]) == 1


def test_records_that_share_a_column_are_near_duplicates_by_the_others(folder):
    (folder.path / "pairs.yaml").write_text(
        TEMPLATES.replace("Review: {{ text }}", "Review: {{ passage }} {{ text }}")
    )
    texts = [f"What did she say on day {n} of {n + 7}?" for n in range(20)]
    near = LONG.replace("three", "four")
    records = [{"passage": LONG, "text": text, "stars": 1, "title": "Lamp"} for text in texts]
    records += [{**records[0], "passage": near}, {**records[0], "stars": 2}]
    task = {**ALL_TRAIN, "templates": str(folder.path / "pairs.yaml"), "near_duplicates": 0.8}
    for split_by in (("title",), ("text",), ()):
        data = folder.build(records, task={**task, "split_by": split_by})
        assert counts(data)["near_duplicates"] == 2
        assert {e.texts[1] for e in data.examples("train")} == set(texts)


def test_training_text_that_holds_what_an_evaluated_prompt_shows_is_dropped(folder):
    """Whatever column decides the split of either task."""
    (folder.path / "pairs.yaml").write_text(
        TEMPLATES.replace("Review: {{ text }}", "Review: {{ passage }} {{ text }}")
    )
    passage = " ".join(f"w{n}" for n in range(60))
    fine = "A lamp, and nothing that anybody else has said about any lamp before this day."
    held_out = [{"passage": passage, "text": LONG, "stars": 1, "title": "Lamp"}]
    trained = [review(f"So: {LONG}", title="b"), review(fine, title="c"),
               review(f"So: {passage}", title="d")]  # fmt: skip
    pairs = {"templates": str(folder.path / "pairs.yaml"), **ALL_TEST, "weight": 0.0}
    for evaluated, other in ((("title",), ("text",)), (("text",), ("title",)), ((), ("title",))):
        tasks = {"probe": (held_out, {**pairs, "split_by": evaluated}),
                 "rating": (trained, {**ALL_TRAIN, "split_by": other})}  # fmt: skip
        assert rows_of(several(folder, tasks), "train", 1) == {1, 2, 3}
        # Each of several texts by itself: the question is a third of the whole.
        data = several(folder, tasks, decontaminate=("probe",), decontaminate_overlap=0.5)
        assert rows_of(data, "train", 1) == {2}


def test_training_text_that_holds_evaluation_text_is_dropped(folder):
    leak = review(f"My sister wrote: {LONG} I agree.")
    clean = review("A lamp, and nothing that anybody else has said about any lamp before this.")
    held_out = {"test_fraction": 1.0, "validation_fraction": 0.0, "weight": 0.0}
    trained = {"test_fraction": 0.0, "validation_fraction": 0.0}
    tasks = {"probe": ([review(LONG)], held_out), "rating": ([leak, clean], trained)}
    assert len(several(folder, tasks).tasks[1].splits["train"]) == 2
    data = several(folder, tasks, decontaminate=("probe",))
    assert [e.messages[0]["content"] for e in data.tasks[1].splits["train"]] == [
        f"How many stars? Review: {clean['text']} Answer:"
    ]
    assert counts(data, 1)["contaminated"] == 1
    with pytest.raises(InputError, match=r"config\.data\.decontaminate: no task 'nope'"):
        several(folder, tasks, decontaminate=("nope",))
    assert (
        several(folder, tasks, decontaminate=("probe",), decontaminate_ngram=40)
        .tasks[1]
        .splits["train"]
    )


def test_evaluation_text_is_found_in_what_training_answers_and_its_answers_too(folder):
    held_out = [review(LONG)]
    fine = "A lamp, and nothing that anybody else has said about any lamp before this day."
    answers = [
        {"prompt": "Write a review.", "completion": f"My sister wrote: {LONG}"},
        {"prompt": "Write a review.", "completion": fine},
    ]
    chats = [{"messages": [
        {"role": "user", "content": "Write a review."}, {"role": "assistant", "content": text},
        {"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "Welcome."},
    ]} for text in (f"Well. {LONG} So.", fine)]  # fmt: skip
    task = {**RECORD_FORMAT, **ALL_TRAIN}
    tasks = {"probe": (held_out, {**ALL_TEST, "weight": 0.0}), "pairs": (answers, task),
             "chats": (chats, task)}  # fmt: skip
    tasks["write"] = (
        [review(f"Then: {LONG}"), review(fine)],
        {**ALL_TRAIN, "template_names": ("Write",), "split_by": ("title",)},
    )
    assert [len(t.splits["train"]) for t in several(folder, tasks).tasks] == [0, 2, 2, 2]
    data = several(folder, tasks, decontaminate=("probe",))
    assert [rows_of(data, "train", task) for task in (1, 2, 3)] == [{2}] * 3
    # In what only stands around the question, in training as trained.
    said = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "Yes."}]
    systems = [{"messages": [{"role": "system", "content": text}, *said]} for text in (LONG, fine)]
    given = {"input": "these are five words here", "output": "Yes."}
    alpaca = [{"instruction": text, **given} for text in (f"So: {LONG}", fine)]
    records = {**RECORD_FORMAT, **ALL_TRAIN, "repeats": "keep"}
    around = {"probe": tasks["probe"], "chats": (systems, records), "alpaca": (alpaca, records)}
    data = several(folder, around, decontaminate=("probe",))
    assert [rows_of(data, "train", task) for task in (1, 2)] == [{2}] * 2
    # An answer of the probe's, which training asks about.
    tasks = {
        "probe": ([{"prompt": "Say it.", "completion": LONG}],
                  {**RECORD_FORMAT, **ALL_TEST, "weight": 0.0}),
        "rating": ([review(f"Then: {LONG}"), review(fine)], ALL_TRAIN),
    }  # fmt: skip
    data = several(folder, tasks, decontaminate=("probe",), decontaminate_overlap=0.9)
    assert rows_of(data, "train", 1) == {2}


# Subsets


def test_strata_keep_their_shares_at_every_size(folder):
    records = [review(f"Review number {n}.", stars=1 if n % 4 else 5) for n in range(400)]
    task = {"stratify_by": "stars", "validation_fraction": 0.0, "test_fraction": 0.0}
    before: list[str] = []
    for size in (20, 40, 100):
        data = folder.build(records, task={**task, "train_size": size})
        stars = Counter(e.completion for e in data.examples("train"))
        assert stars == {"1": size * 3 // 4, "5": size // 4}
        assert prompts(data, "train")[: len(before)] == before
        before = prompts(data, "train")
    with pytest.raises(InputError, match="exclude each other"):
        TaskConfig(name="x", balance_by="a", stratify_by="b", train_size=1)
    with pytest.raises(InputError, match="compose subsets; set train_size"):
        TaskConfig(name="x", stratify_by="b")


def test_columns_are_renamed_to_what_templates_know(folder):
    records = [{"body": f"Review number {n}.", "label": n % 5 + 1, "shop": n} for n in range(60)]
    task = {"rename": ("body=text", "label=stars"), "balance_by": "stars", "train_size": 5}
    data = folder.build(records, task=task)
    assert len(data.examples("train")) == 5
    assert prompts(data, "train")[0].startswith("How many stars? Review: Review number ")
    said = folder.refusal(records)
    assert "no column 'stars'" in said
    assert "rename=('its_name=stars',)" in said
    said = folder.refusal(records, task={"rename": ("bdy=text", "label=stars")})
    assert "no column 'bdy', which task rating.rename names" in said
    said = folder.refusal(records, task={"rename": ("body=text", "label=shop")})
    assert "has a column 'shop' already" in said
    for wrong in (("a",), ("a=b=c",), ("a=",), ("a=b", "c=b"), ("a=b", "b=c")):
        with pytest.raises(InputError, match=r"x\.rename: expected pairs such as 'text=reviews'"):
            TaskConfig(name="x", rename=wrong)


def test_a_column_with_a_dash_is_renamed_by_its_own_name(folder):
    records = [{"my-text": f"Review number {n}.", "stars": n % 5 + 1} for n in range(60)]
    for name in ("my-text", "my_text"):
        data = folder.build(records, task={"rename": (f"{name}=text",)})
        assert prompts(data, "train")[0].startswith("How many stars? Review: Review number ")
    both = [{**record, "my_text": "other"} for record in records]  # then neither changes its name
    data = folder.build(both, task={"rename": ("my-text=text",)})
    assert prompts(data, "train")[0].startswith("How many stars? Review: Review number ")
    said = folder.refusal(records, task={"rename": ("my-txt=text",)})
    assert "no column 'my-txt', which task rating.rename names" in said
    pairs = [{"my-prompt": f"{n} + 1 =", "the-answer": str(n + 1)} for n in range(40)]
    task = {
        "templates": "", "template_names": (), "split_by": (),
        "rename": ("my-prompt=prompt", "the-answer=completion"),
    }  # fmt: skip
    assert "2 + 1 =" in set().union(*by_split(folder.build(pairs, task=task)).values())
    said = folder.refusal(pairs, task={**task, "rename": ("my-promt=prompt",)})
    assert "rename names ['my-promt'], and the record has no such column" in said


def test_a_column_with_a_dash_is_read_with_an_underscore(folder):
    (folder.path / "dash.yaml").write_text(
        TEMPLATES.replace("{{ text }}", "{{ review_text }}").replace("{{ title }}", "a lamp")
    )
    records = [{"review-text": f"Fine {n}", "stars": 1 + n % 5} for n in range(5)]
    data = folder.build(
        records,
        task={
            "templates": str(folder.path / "dash.yaml"), "split_by": ("review_text",),
            "validation_fraction": 0.0, "test_fraction": 0.0,
        },
    )  # fmt: skip
    assert len(data.examples("train")) == 5
