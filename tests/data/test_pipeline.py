"""From files to splits of examples: what is kept, where it goes, and that the card counts it."""

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ift_jax.data import collect, pipeline, template_sandbox
from ift_jax.data.chat import Chat
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.examples import load_task_templates
from ift_jax.data.mixture import MixtureConfig
from ift_jax.data.prepared import set_key
from ift_jax.errors import InputError

TEMPLATES = """
dataset: reviews
templates:
  rate: !Template
    id: rate
    name: Rate
    jinja: "How many stars? Review: {{ text }} Answer: ||| {{ stars }}"
    answer_choices: 1 ||| 2 ||| 3 ||| 4 ||| 5
    metadata: !TemplateMetadata {}
    reference: ""
  write: !Template
    id: write
    name: Write
    jinja: "Write a review of {{ title }}. ||| {{ text }}"
    answer_choices: null
    metadata: !TemplateMetadata {}
    reference: ""
"""


def reviews(count, start=0):
    return [
        {"text": f"Review number {n} says so.", "stars": n % 5 + 1, "title": f"Lamp {n % 7}"}
        for n in range(start, start + count)
    ]


class Folder:
    """A folder with a template file and record files; makes configs and data sets of them."""

    def __init__(self, path: Path, chat: Chat):
        self.path, self.chat = path, chat
        (path / "templates.yaml").write_text(TEMPLATES)

    def config(self, records, *, name="rating", task=(), **data):
        file = self.path / f"{name}.jsonl"
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        settings = {
            "name": name, "source": str(file), "templates": str(self.path / "templates.yaml"),
            "template_names": ("Rate",), "split_by": ("text",), **dict(task),
        }  # fmt: skip
        return DataConfig(tasks=(TaskConfig(**settings),), **data)

    def build(self, records, *, task=(), **data):
        return pipeline.build(self.config(records, task=task, **data), self.chat)

    def refusal(self, records, *, task=(), **data):
        with pytest.raises(InputError) as caught:
            self.build(records, task=task, **data)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path, chat):
    return Folder(tmp_path, chat)


ALL_TRAIN = {"validation_fraction": 0.0, "test_fraction": 0.0}


def prompts(data, split):
    return [e.messages[-1]["content"] for e in data.examples(split)]


def by_split(data):
    return {split: set(prompts(data, split)) for split in SPLITS}


# Examples


def test_a_record_becomes_a_prompt_a_completion_and_its_choices(folder):
    data = folder.build(reviews(1), task={"validation_fraction": 0.0, "test_fraction": 0.0})
    [example] = data.examples("train")
    assert example.messages == (
        {"role": "user", "content": "How many stars? Review: Review number 0 says so. Answer:"},
    )
    assert example.completion == "1"
    assert example.choices == ("1", "2", "3", "4", "5")
    assert example.template == "Rate"
    assert example.task == "rating"
    assert example.origin.endswith("rating.jsonl:1")


def test_tokens_are_those_of_the_examples_in_their_order(folder, chat):
    data = folder.build(reviews(40))
    tokens = data.tokens("train")
    examples = data.examples("train")
    for i, example in enumerate(examples):
        ids, trained = tokens.get(i)
        assert chat.tokenizer.decode(ids[trained].tolist()) == example.completion + "<|im_end|>"


# Splits


def test_the_same_text_never_stands_in_two_splits(folder):
    records = reviews(60)
    again = [{**r, "stars": r["stars"] % 5 + 1, "title": "Other"} for r in records]
    data = folder.build([*records, *again])
    splits = by_split(data)
    assert all(splits[split] for split in SPLITS)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not splits[one] & splits[other]
    # Both labels of a text are there: what is dropped are repeats, not contradictions.
    assert sum(len(prompts(data, split)) for split in SPLITS) == 120


def test_without_split_by_the_text_of_the_prompt_decides(folder):
    """Not the label, by which two labels of a text would go two ways."""
    records = reviews(60)
    again = [{**r, "stars": r["stars"] % 5 + 1} for r in records]
    data = folder.build([*records, *again], task={"split_by": ()})
    splits = by_split(data)
    assert not splits["train"] & (splits["validation"] | splits["test"])
    assert not splits["validation"] & splits["test"]


INVERTED = """  invert: !Template
    id: invert
    name: Invert
    jinja: "Write a review of {{ stars }} stars. ||| {{ text }}"
    answer_choices: null
    metadata: !TemplateMetadata {original_task: false}
    reference: ""
"""


def test_an_inverted_template_does_not_split_by_the_label(folder):
    """Its prompt reads the label: two labels of a text would go two ways."""
    (folder.path / "templates.yaml").write_text(TEMPLATES + INVERTED)
    records = reviews(60)
    again = [{**r, "stars": r["stars"] % 5 + 1} for r in records]
    names = ("Rate", "Invert")
    task = {"split_by": (), "template_names": names, "template_choice": "all"}
    data = folder.build([*records, *again], task=task)
    homes = {}
    for split in SPLITS:
        for e in data.examples(split):
            number = (int(e.origin.rpartition(":")[2]) - 1) % 60  # of the text
            homes.setdefault(number, set()).add(split)
    assert len(homes) == 60
    assert all(len(splits) == 1 for splits in homes.values())
    # With nothing but inverted templates, what they ask with decides.
    alone = folder.build(records, task={**task, "template_names": ("Invert",)})
    assert sum(bool(alone.examples(split)) for split in SPLITS) >= 2


def test_a_group_stays_together_and_loses_nothing(folder):
    data = folder.build(reviews(70), task={"split_by": ("title",)})
    titles = {
        split: {int(e.origin.split(":")[1]) % 7 for e in data.examples(split)} for split in SPLITS
    }
    assert sum(len(found) for found in titles.values()) == 7
    assert sum(len(data.examples(split)) for split in SPLITS) == 70
    assert data.tasks[0].removed["duplicates"] == 0


def test_splits_stay_when_records_are_shuffled(folder):
    records = reviews(100)
    shuffled = random.Random(0).sample(records, 100)
    assert by_split(folder.build(records)) == by_split(folder.build(shuffled))


def test_splits_stay_when_records_are_added(folder):
    before, after = by_split(folder.build(reviews(100))), by_split(folder.build(reviews(150)))
    for split in SPLITS:
        assert before[split] <= after[split]


def test_fractions_are_met(folder):
    task = {"validation_fraction": 0.2, "test_fraction": 0.3}
    sizes = {s: len(p) for s, p in by_split(folder.build(reviews(1000), task=task)).items()}
    assert sum(sizes.values()) == 1000
    assert sizes["validation"] == pytest.approx(200, abs=45)
    assert sizes["test"] == pytest.approx(300, abs=50)


def test_a_fraction_of_zero_is_an_empty_split(folder):
    data = folder.build(reviews(50), task={"validation_fraction": 0.0, "test_fraction": 0.0})
    assert len(data.examples("train")) == 50
    assert data.examples("validation") == data.examples("test") == []


# Subsets


def test_subsets_are_balanced_and_the_smaller_is_in_the_larger(folder):
    records = [r for r in reviews(400) if r["stars"] < 5 or r["text"][-9:] < "5"]
    chosen = {}
    for size in (10, 25, 50):
        task = {"balance_by": "stars", "train_size": size}
        data = folder.build(records, task=task)
        counts = Counter(e.completion for e in data.examples("train"))
        assert set(counts.values()) == {size // 5}
        chosen[size] = set(prompts(data, "train"))
        assert len(data.examples("test")) > 20  # of a size of 0, all are kept
    assert chosen[10] < chosen[25] < chosen[50]


@pytest.mark.parametrize("nothing", [None, "", math.nan])
def test_records_without_a_value_to_balance_by_are_rejected_and_counted(folder, nothing):
    records = [{**r, "kind": ("a", "b", nothing)[n % 3]} for n, r in enumerate(reviews(60))]
    data = folder.build(
        records, task={"balance_by": "kind", "train_size": 20, "validation_fraction": 0.0},
        max_rejected=0.5,
    )  # fmt: skip
    assert Counter(e.label for e in data.examples("train")) == {"a": 10, "b": 10}
    assert pipeline.card(data)["tasks"]["rating"]["rejected"] == {"no_class": 20}
    assert "no value in 'kind', which the task's balance_by names" in folder.refusal(
        records, task={"balance_by": "kind", "train_size": 20}
    )


def test_a_subset_stays_when_records_are_shuffled(folder):
    records = reviews(200)
    task = {"train_size": 20, "balance_by": "stars"}
    first = folder.build(records, task=task)
    second = folder.build(random.Random(1).sample(records, 200), task=task)
    assert prompts(first, "train") == prompts(second, "train")


def test_a_subset_stays_when_records_with_one_key_are_shuffled(folder):
    records = reviews(200)
    task = {"train_size": 20, "split_by": ("title",)}
    first = folder.build(records, task=task)
    second = folder.build(random.Random(1).sample(records, 200), task=task)
    assert prompts(first, "train") == prompts(second, "train")


def test_another_seed_takes_another_subset_of_the_same_split(folder):
    task = {"train_size": 30}
    first = folder.build(reviews(200), task=task)
    second = folder.build(reviews(200), task=task, seed=1)
    whole = by_split(folder.build(reviews(200)))
    assert set(prompts(first, "train")) != set(prompts(second, "train"))
    assert set(prompts(second, "train")) <= whole["train"]


def test_a_subset_larger_than_its_split_is_refused(folder):
    said = folder.refusal(reviews(50), task={"train_size": 60})
    assert "rating.train_size is 60, but the split has" in said
    said = folder.refusal(reviews(50), task={"train_size": 40, "balance_by": "stars"})
    assert "rating.train_size" in said


# Templates


def test_one_template_is_drawn_for_each_record(folder):
    task = {"template_names": (), "template_choice": "one"}
    data = folder.build(reviews(200), task=task)
    examples = [e for split in SPLITS for e in data.examples(split)]
    assert len(examples) == 200
    counts = Counter(e.template for e in examples)
    assert min(counts["Rate"], counts["Write"]) > 60
    again = folder.build(random.Random(0).sample(reviews(200), 200), task=task)
    other = folder.build(reviews(200), task=task, seed=1)
    assert by_split(again) == by_split(data)
    assert by_split(other) != by_split(data)


def test_all_templates_of_a_record_go_into_its_split(folder):
    data = folder.build(reviews(100), task={"template_names": (), "template_choice": "all"})
    origins = {split: Counter(e.origin for e in data.examples(split)) for split in SPLITS}
    assert sum(len(counts) for counts in origins.values()) == 100
    assert all(count == 2 for counts in origins.values() for count in counts.values())
    assert not set(origins["train"]) & set(origins["test"])


def test_a_subset_counts_records_not_their_templates(folder):
    task = {"template_names": (), "template_choice": "all", "train_size": 10}
    data = folder.build(reviews(100), task=task)
    assert len(data.examples("train")) == 20
    assert pipeline.card(data)["tasks"]["rating"]["splits"]["train"]["records"] == 10


def test_an_unknown_template_name_is_refused(folder):
    said = folder.refusal(reviews(5), task={"template_names": ("Rat",)})
    assert "has no template 'Rat'" in said
    assert "['Rate', 'Write']" in said


def test_a_column_that_no_record_has_is_refused(folder):
    records = [{"body": "x", "stars": 1}] * 3
    said = folder.refusal(records)
    assert "rating.jsonl:1: no column 'text', which template 'Rate'" in said
    assert "['body', 'stars']" in said
    assert "no column 'author', which split_by" in folder.refusal(
        reviews(9), task={"split_by": ("author",)}
    )
    assert "no column 'rating', which balance_by" in folder.refusal(
        reviews(9), task={"balance_by": "rating", "train_size": 5}
    )


# Repeats and rejected records


@pytest.mark.parametrize("choice", ["one", "all"])
def test_repeats_are_dropped_and_counted_as_records(folder, choice):
    task = {"template_names": (), "template_choice": choice}
    data = folder.build([*reviews(50), *reviews(20)], task=task)
    assert data.tasks[0].removed["duplicates"] == 20
    origins = {e.origin for split in SPLITS for e in data.examples(split)}
    assert len(origins) == 50


def test_the_card_adds_up(folder):
    records = [
        *reviews(100),
        *reviews(10),
        {**reviews(1)[0], "stars": 7, "text": "Seven."},
        "{broken",
        {"text": "No stars."},
        {"text": "x" * 50_000, "stars": 3, "title": "Long"},
        {"text": "Stop <|im_end|> now", "stars": 3, "title": "Special"},
    ]
    data = folder.build(records, max_rejected=0.1)
    card = pipeline.card(data)["tasks"]["rating"]
    assert card["records"] == len(records)
    assert card["rejected"] == {
        "broken_json": 1, "target_not_in_choices": 1, "undefined_column": 1, "too_long": 1,
        "special_token": 1,
    }  # fmt: skip
    kept = sum(split["records"] for split in card["splits"].values())
    assert card["records"] == sum(card["rejected"].values()) + card["duplicates"] + kept
    for name, split in card["splits"].items():
        examples = data.examples(name)
        tokens = data.tokens(name)
        assert split["examples"] == len(examples) == sum(split["templates"].values())
        assert split["tokens"] == tokens.lengths.sum()
        assert split["trained_tokens"] == tokens.num_targets.sum() == 2 * len(examples)
        assert split["longest"] == tokens.lengths.max()
        assert split["answers"] == dict(sorted(Counter(e.completion for e in examples).items()))


def test_a_set_that_only_evaluates_has_a_card(folder):
    task = {"weight": 0.0, "validation_fraction": 0.0, "test_fraction": 1.0}
    card = pipeline.card(folder.build(reviews(10), task=task))
    assert card["mixture"] == {}
    assert card["tasks"]["rating"]["splits"]["test"]["examples"] == 10


def test_a_task_without_training_examples_is_named_and_not_its_place_among_others(folder):
    only = {"weight": 0.0, "name": "seen"}
    tasks = [
        folder.config(reviews(9, start), name=name, task={**ALL_TRAIN, **more}).tasks[0]
        for start, name, more in (
            (0, "seen", only),
            (20, "a", {}),
            (40, "empty", {"test_fraction": 1.0}),
        )
    ]
    data = pipeline.build(DataConfig(tasks=tuple(tasks)), folder.chat)
    with pytest.raises(InputError, match="tasks: empty: nothing to train on; set its weight to 0"):
        data.counts()


def test_the_content_hash_tells_data_sets_apart(folder):
    def hashes(records, **options):
        splits = pipeline.card(folder.build(records, **options))["tasks"]["rating"]["splits"]
        return [split["content_hash"] for split in splits.values()]

    assert hashes(reviews(50)) == hashes(random.Random(0).sample(reviews(50), 50))
    first = hashes(reviews(50))
    assert first != hashes(reviews(51))
    # A choice that no prompt shows decides what an answer is ranked among.
    (folder.path / "templates.yaml").write_text(TEMPLATES.replace("||| 5", "||| 5 ||| 6"))
    assert first != hashes(reviews(50))


def test_rejected_records_are_written_with_place_and_reason(folder, tmp_path):
    records = [*reviews(60), "{broken", {"text": "Ünïcode", "stars": 7, "title": "a"}]
    data = folder.build(records)
    card = pipeline.write_card(data, tmp_path / "out" / "data")
    assert json.loads((tmp_path / "out" / "data" / "card.json").read_text()) == json.loads(
        json.dumps(card)
    )
    lines = (tmp_path / "out" / "data" / "rejected.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["task"] == second["task"] == "rating"
    assert first["origin"].endswith("rating.jsonl:61")
    assert first["reason"] == "broken_json"
    assert second["origin"].endswith("rating.jsonl:62")
    assert second["reason"] == "target_not_in_choices"
    assert "'7' is none of the choices '1', '2'" in second["detail"]


def test_a_template_that_often_hangs_is_given_up_for_the_whole_build(folder, monkeypatch):
    monkeypatch.setattr(collect, "CHUNK", 4)
    monkeypatch.setattr(template_sandbox, "MAX_TIMEOUTS", 3)
    hangs = "{% if stars % 2 == 0 %}{% for i in range(10 ** 12) %}{% endfor %}{% endif %}"
    path = folder.path / "templates.yaml"
    path.write_text(TEMPLATES.replace("How many", f"{hangs}How many"))
    data = folder.build(reviews(40), max_rejected=1.0)
    rejected = data.tasks[0].rejected
    tried = [r for r in rejected if "not tried" not in r.detail]
    assert (len(tried), {r.reason for r in rejected}) == (3, {"timeout"})
    # Two of five ratings hang: those of records 1, 3 and 6, and none is tried after that.
    assert len(rejected) == 2 + len(range(6, 40))


def test_more_rejected_records_than_allowed_stop_the_run(folder):
    records = [*reviews(90), *[{**r, "stars": 7} for r in reviews(10, start=90)]]
    assert folder.build(records, max_rejected=0.1).tasks[0].num_records == 100
    said = folder.refusal(records, max_rejected=0.09)
    assert "10 of 100 records were rejected, more than config.data.max_rejected=0.09" in said
    assert "rating.jsonl:91: target_not_in_choices" in said


def test_a_record_that_fails_in_two_templates_counts_once_against_the_limit(folder):
    records = [*reviews(90), *[{"stars": 1, "title": "a"}] * 10]
    task = {"template_names": (), "template_choice": "all"}
    assert folder.build(records, task=task, max_rejected=0.1).tasks[0].num_records == 100


def test_no_readable_record_is_refused_with_the_first_reason(folder):
    said = folder.refusal(["{broken", "{worse"])
    assert "task rating: no record could be read; first:" in said
    assert "rating.jsonl:1" in said


# Too long


def test_an_example_of_exactly_the_longest_length_fits(folder):
    length = pipeline.card(folder.build(reviews(1)))["tasks"]["rating"]["splits"]
    longest = max(split["longest"] for split in length.values())
    assert not folder.build(reviews(1), max_length=longest).tasks[0].rejected
    data = folder.build(reviews(1), max_length=longest - 1, max_rejected=1.0)
    [rejected] = data.tasks[0].rejected
    assert rejected.reason == "too_long"
    assert rejected.detail == f"{longest} tokens, max_length is {longest - 1}"


def test_a_long_example_can_stop_the_run(folder):
    records = [*reviews(3), {"text": "x" * 600, "stars": 1, "title": "a"}]
    said = folder.refusal(records, on_too_long="error")
    assert "rating.jsonl:4: " in said
    assert "max_length is 512; see config.data.on_too_long" in said


def test_truncation_cuts_the_middle_of_the_prompt(folder, chat):
    words = [f"word{n}" for n in range(200)]
    long = {"text": " ".join(words), "stars": 4, "title": "a"}
    task = {"validation_fraction": 0.0, "test_fraction": 0.0}
    data = folder.build([long], task=task, on_too_long="truncate", max_length=200)
    assert data.tasks[0].num_truncated == 1
    [example] = data.examples("train")
    content = example.messages[-1]["content"]
    assert content.startswith("How many stars? Review: word0 word1 ")
    assert content.endswith(" word199 Answer:")
    assert " ... " in content
    assert example.completion == "4"
    length = data.tokens("train").lengths.sum()
    assert 180 < length <= 200
    [one] = chat.encode([(example.messages, example.completion)])
    assert chat.tokenizer.decode(one.ids[one.trained].tolist()) == "4<|im_end|>"


@pytest.mark.parametrize("max_length", [80, 81, 97, 128, 255])
def test_what_was_truncated_fits_also_with_characters_of_many_bytes(folder, max_length):
    records = [{"text": "漢字 и é " * 90 + str(n), "stars": 1, "title": "a"} for n in range(5)]
    task = {"validation_fraction": 0.0, "test_fraction": 0.0}
    data = folder.build(records, task=task, on_too_long="truncate", max_length=max_length)
    lengths = data.tokens("train").lengths
    assert len(lengths) == data.tasks[0].num_truncated == 5
    assert lengths.max() <= max_length
    assert all("\ufffd" not in text for text in prompts(data, "train"))


def test_a_long_completion_is_never_cut(folder):
    records = [*reviews(30), {"text": "x" * 600, "stars": 1, "title": "a"}]
    task = {"template_names": ("Write",), "split_by": ("text",)}
    data = folder.build(records, task=task, on_too_long="truncate")
    assert [r.reason for r in data.tasks[0].rejected] == ["too_long"]
    completions = {e.completion for split in SPLITS for e in data.examples(split)}
    assert completions == {r["text"] for r in reviews(30)}


def test_there_is_room_for_the_choice_with_the_most_tokens(folder):
    chinese = "漢" * 12  # fewer characters than the other choice, and more tokens
    template = f"""
templates:
  a: !Template
    name: Language
    jinja: "{{{{ text }}}}||| {{{{ answer }}}}"
    answer_choices: {chinese} ||| latin letters
"""
    (folder.path / "languages.yaml").write_text(template)
    record = {"text": "x" * 90, "answer": "latin letters"}
    task = {
        "templates": str(folder.path / "languages.yaml"), "template_names": (),
        "validation_fraction": 0.0, "test_fraction": 0.0,
    }  # fmt: skip
    whole = folder.build([record], task=task)
    length = int(whole.tokens("train").lengths.sum())
    assert folder.build([record], task=task, max_length=length + 23).examples("train")
    tight = folder.build([record], task=task, max_length=length + 22, max_rejected=1.0)
    assert [r.reason for r in tight.tasks[0].rejected] == ["too_long"]
    cut = folder.build([record], task=task, max_length=length - 3, on_too_long="truncate")
    [one] = folder.chat.encode([(cut.examples("train")[0].messages, chinese)])
    assert len(one.ids) <= length - 3
    # An answer that is none of the choices, and longer than they are, is measured by itself.
    longer = {**record, "answer": "y" * 60}
    compatible = {**task, "template_mode": "compatible"}
    length = int(folder.build([longer], task=compatible).tokens("train").lengths.sum())
    assert folder.build([longer], task=compatible, max_length=length).examples("train")
    tight = folder.build([longer], task=compatible, max_length=length - 1, max_rejected=1.0)
    assert [r.reason for r in tight.tasks[0].rejected] == ["too_long"]


# Tasks


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_own_source_of_which_nothing_can_be_used_is_refused(folder, split):
    """However few its records are beside those of training."""
    own = folder.path / "own.jsonl"
    own.write_text('{"text": "Its label has another name.", "target": 3}\n')
    task = {f"{split}_source": str(own), f"{split}_fraction": 0.0}
    said = folder.refusal(reviews(400), task=task)
    assert f"rating: no record of its {split} source can be used; first: {own}:1: undef" in said
    with own.open("a") as file:
        file.write(json.dumps(reviews(1, 900)[0]))
    assert len(folder.build(reviews(400), task=task).examples(split)) == 1


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("copied", [False, True])
def test_a_source_that_is_held_out_as_a_whole_is_refused(folder, split, copied):
    path = folder.path / "rating.jsonl"
    other = path.with_name("copy.jsonl") if copied else path
    other.write_text("".join(json.dumps(one) + "\n" for one in reviews(20)))
    task = {f"{split}_source": str(other)}
    says = f"rating: no example of its source is left to train on .*{split}_source too"
    assert re.search(says, folder.refusal(reviews(20), task=task))
    data = folder.build(reviews(20), task={**task, "weight": 0.0})
    assert data.examples(split)


def test_the_path_stands_in_for_the_source_of_the_first_task(folder):
    mine = folder.config(reviews(7), name="mine")
    other = folder.config(reviews(9), name="other")
    config = DataConfig(tasks=(*mine.tasks, *other.tasks), path=other.tasks[0].source)
    data = pipeline.build(config, folder.chat)
    assert [task.num_records for task in data.tasks] == [9, 9]
    nameless = replace(mine.tasks[0], source="")
    with pytest.raises(InputError, match=r"mine has no source; set its source, or config.data.pa"):
        pipeline.build(DataConfig(tasks=(nameless,)), folder.chat)
    with pytest.raises(InputError, match=r"tasks: mine has no source$"):
        pipeline.build(DataConfig(tasks=(*other.tasks, nameless), path="x.jsonl"), folder.chat)


def test_tasks_must_be_there_and_have_names_of_their_own(folder):
    with pytest.raises(InputError, match=r"config.data.tasks: no task is given"):
        pipeline.build(DataConfig(), folder.chat)
    [task] = folder.config(reviews(5)).tasks
    for tasks in ((task, task), (replace(task, name=""),)):
        with pytest.raises(InputError, match="names must be given and differ"):
            pipeline.build(DataConfig(tasks=tasks), folder.chat)


def test_a_task_without_templates_is_refused(folder):
    said = folder.refusal(reviews(5), task={"templates": ""})
    assert said.startswith("config.data.tasks: rating: ")
    assert "give templates for labelled columns" in said


def test_templates_that_ship_are_found_by_name(folder):
    record = {
        "review_body": "Fine.",
        "star_rating": 4,
        "review_headline": "a",
        "product_title": "b",
    }
    task = {"templates": "reviews", "template_names": ("Predict the rating",), "split_by": ()}
    data = folder.build([record], task=task)
    [example] = [e for split in SPLITS for e in data.examples(split)]
    assert example.completion == "4"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_length": 7}, "config.data.max_length: expected 8 or more, got 7"),
        ({"row_length": -1}, "config.data.row_length: must not be negative"),
        ({"max_rejected": 1.5}, "config.data.max_rejected: expected 0 to 1"),
        ({"on_too_long": "cut"}, "config.data.on_too_long: expected drop, truncate or error"),
    ],
)
def test_settings_of_the_data_are_checked(options, says):
    with pytest.raises(InputError, match=says):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"template_choice": "two"}, "a.template_choice: expected one or all"),
        ({"template_mode": "loose"}, "a.template_mode: expected one of 'strict', 'compatible'"),
        ({"template_mode": "compatible"}, "a.template_mode: is for templates, and none are set"),
        ({"test_size": -1}, "a.test_size is negative"),
        ({"test_fraction": -0.1}, "a: validation_fraction and test_fraction must not"),
        ({"test_fraction": 0.95}, "a: validation_fraction and test_fraction must not"),
    ],
)
def test_settings_of_a_task_are_checked(options, says):
    with pytest.raises(InputError, match=says):
        TaskConfig(name="a", **options)


ODDITIES = """templates:
  a: !Template
    name: Odd
    jinja: "{{ text }} by {{ author }}{{ gone }} ||| {{ stars }}{{ more }}"
    answer_choices: 1 ||| 2
"""


def test_compatible_templates_give_what_promptsource_gives(folder):
    (folder.path / "odd.yaml").write_text(ODDITIES)
    base = {"text": "It works.", "author": "Ann", "stars": 1, "more": ""}
    odd = {
        "printed_none": {**base, "author": None},
        "undefined_column": {name: base[name] for name in ("text", "stars", "more")},
        "target_not_in_choices": {**base, "stars": 3},
        "long": {**base, "text": "x" * 3000},
        "three_parts": {**base, "more": ["|||"]},
        "empty_target": {**base, "stars": ""},
    }
    records = [base, *odd.values()]
    task = {
        "templates": str(folder.path / "odd.yaml"), "template_names": (), **ALL_TRAIN,
    }  # fmt: skip
    settings = {"max_length": 8000, "max_rejected": 1.0}
    (template,) = load_task_templates(folder.config(records, task=task).tasks[0])

    said = folder.refusal(records, task=task, **settings)
    assert "no column 'gone'" in said  # of any record
    records.append({**base, "gone": ""})
    strict = folder.build(records, task=task, **settings)
    assert Counter(r.reason for r in strict.tasks[0].rejected) == {
        "undefined_column": 6, "printed_none": 1,
    }  # fmt: skip

    loose = {**task, "template_mode": "compatible"}
    data = folder.build(records, task=loose, **settings)
    assert {r.reason: r.origin[-2:] for r in data.tasks[0].rejected} == {
        "three_parts": ":6", "empty_target": ":7",
    }  # fmt: skip
    made = {(e.messages[0]["content"], e.completion): e for e in data.examples("train")}
    wanted = [template.apply(r) for r in records]
    assert set(made) == {tuple(parts) for parts in wanted if len(parts) == 2 and parts[1]}
    assert ("It works. by None", "1") in made
    assert made["It works. by Ann", "3"].choices == ("1", "2")
    assert max(len(prompt) for prompt, _ in made) == 2048 + len(" by Ann")


def test_compatible_templates_are_part_of_what_a_prepared_set_is_made_from(folder):
    strict = folder.config(reviews(9))
    loose = replace(strict, tasks=(replace(strict.tasks[0], template_mode="compatible"),))
    assert set_key(strict, folder.chat)["options"] != set_key(loose, folder.chat)["options"]


def test_lint_lists_what_else_would_stop_a_build(folder, tmp_path):
    text = TEMPLATES.replace("name: Write", "name: Rate") + INVERTED.replace("{{ stars }}", "{{ }}")
    (tmp_path / "templates.yaml").write_text(text)
    config = folder.config(reviews(9), task={"template_names": ()})
    findings = pipeline.lint_tasks(config)
    assert any("line 11: template 'Rate': the same name as template 'Rate' of line 4" in f
               for f in findings)  # fmt: skip
    assert any("template 'Invert': line 1 of jinja" in f for f in findings)
    assert any("metadata lacks" in f for f in findings)
    with pytest.raises(InputError, match="line 4 has one of this name"):
        folder.build(reviews(9), task={"template_names": ()})


def test_lint_judges_the_tasks_templates_with_their_records(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "templates:\n  a: !Template\n    id: a\n    name: Leaks\n    answer_choices: null\n"
        '    jinja: "Sum up: {{ title }} {{ text }} ||| {{ title }}"\n'
    )
    (tmp_path / "r.jsonl").write_text('{"text": "It works.", "title": "A fine kettle"}\n')
    task = TaskConfig(
        name="sum", source=str(tmp_path / "r.jsonl"), templates=str(tmp_path / "t.yaml")
    )
    findings = pipeline.lint_tasks(DataConfig(tasks=(task,)))
    assert any("'Leaks'" in f and "title" in f for f in findings)
    tidy = TaskConfig(name="rating", source="embedded:reviews", templates="rating")
    assert pipeline.lint_tasks(DataConfig(tasks=(tidy,))) == []


def test_a_later_build_collects_only_what_it_reads_otherwise(chat, tmp_path, monkeypatch):
    """Builds that share what they collected give what builds from nothing give."""
    file = tmp_path / "reviews.jsonl"
    reviews = [{"review_body": f"Lamp {n}.", "star_rating": n % 5 + 1, "kind": str(n % 2)}
               for n in range(120)]  # fmt: skip
    file.write_text("".join(json.dumps(review) + "\n" for review in reviews))
    task = TaskConfig(
        name="rating", source=str(file), templates="reviews", split_by=("review_body",),
        template_names=("Predict the rating",), balance_by="star_rating",
        train_size=20, validation_size=5, test_size=5, test_fraction=0.2, validation_fraction=0.2,
    )  # fmt: skip
    same = [
        DataConfig(tasks=(one,), mixture=MixtureConfig(temperature=temperature))
        for one, temperature in (
            (task, 1.0),
            (replace(task, train_size=30, train_shots=(1,)), 1.0),
            (replace(task, weight=0.0, validation_fraction=0.0, validation_size=0), 1.0),
            (replace(task, metrics=("accuracy",), near_duplicates=0.9, train_size=10), 2.0),
        )
    ]
    other = [
        DataConfig(tasks=(replace(task, balance_by="", stratify_by="kind"),)),
        DataConfig(tasks=(task,), seed=3),
        DataConfig(tasks=(task,), max_length=120, on_too_long="truncate"),
    ]
    collect, calls = pipeline.collect, []
    monkeypatch.setattr(pipeline, "collect", lambda *a: calls.append(a) or collect(*a))
    known, counts = pipeline.Known(), []
    for config in same + other:
        calls.clear()
        shared = pipeline.card(pipeline.build(config, chat, known))
        counts.append(len(calls))
        assert shared == pipeline.card(pipeline.build(config, chat))
    assert counts == [1, 0, 0, 0, 1, 1, 1]
