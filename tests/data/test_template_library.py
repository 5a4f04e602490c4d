"""The templates that come with the package: their form, and what they make of real records."""

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from test_shared_data import SETS

import ift_jax
from ift_jax.data.sources import Record, read_records
from ift_jax.data.templates import Rendered, Template, lint, load_templates

FOLDER = Path(ift_jax.__file__).parent / "templates"
NUM_RECORDS = 200
STARS = (1, 2, 3, 4, 5)
NO_STARS = (0, 6, -1, 4.5, "five", "", True)


class Task(NamedTuple):
    """A template file, the real set it is checked on, and the labels of that set."""

    data: str  # a name in SETS, or one that `real_records` knows
    label: str | None = None  # the column with a closed set of labels
    labels: tuple = ()
    bad: tuple = ()
    quotes: bool = False  # whether a target may rightly stand in the prompt
    optional: tuple = ()  # columns that a record may lack


TASKS = {
    "sentiment": Task("uci_sentences", "sentiment", ("0", "1"), (2, "-1", -1, "x", "", True)),
    "rating": Task("amazon_reviews", "star_rating", STARS, NO_STARS),
    "headline": Task("amazon_reviews", "star_rating", STARS, NO_STARS, quotes=True),
    "review_writing": Task("amazon_reviews", "star_rating", STARS, NO_STARS, quotes=True),
    "topic": Task(
        "ag_news",
        "label",
        ("World", "Sports", "Business", "Science or Technology"),
        ("Weather", "sports", -1, 0, "", ["Sports"]),
    ),
    "nli": Task(
        "rte",
        "label",
        ("entailment", "contradiction"),
        ("neutral", 0, -1, "", "Entailment"),
        quotes=True,
    ),
    "paraphrase": Task("mrpc", "label", (0, 1), (2, -1, "-1", "yes", "", True)),
    "question_answering": Task("xquad", quotes=True),
    "ner": Task("wnut17", quotes=True),
    "dialogue_summary": Task("dialogsum", quotes=True),
    "translation": Task("tatoeba de"),
    "intent": Task("banking77", quotes=True),
    "question_type": Task(
        "trec",
        "coarse",
        ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
        ("NOPE", "num", 0, -1, "", ["NUM"]),
    ),
    "yes_no_questions": Task("boolq", "label", ("True", "False"), ("true", "maybe", 1, 0, -1, "")),
    "spam": Task("sms_spam", "label", ("ham", "spam"), ("Spam", "eggs", 0, 1, "", ["spam"])),
    "slots": Task("restaurant8k", quotes=True, optional=("labels", "context")),
    "word_problems": Task("gsm8k", quotes=True),
    "reasoning": Task("flan_cot", quotes=True),
    "exact_answer": Task("bbh", quotes=True),
    "small_tasks": Task("instruction_induction", quotes=True),
    "translation_french": Task("tatoeba fr"),
}
# Of a set of several files, the one to take: English, or with enough of every label.
FILES = {"xquad": "xquad/xquad.en.json.gz", "trec": "trec/TREC.train.gz"}
# Records without text, of the form that a template needs to take them apart.
BLANK = {
    "topic": {"sentence": "Title: \nText: "},
    "nli": {"sentence": "sentence 1: \nsentence 2: "},
    "yes_no_questions": {"sentence": "question: \npassage: "},
    "ner": {"tokens": [], "tags": []},
    "intent": {"category": "age_limit"},
    "slots": {"userInput": {"text": ""}, "context": {"requestedSlots": []}, "labels": []},
}
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def library(task: str) -> dict[str, Template]:
    return load_templates(FOLDER / f"{task}.yaml")


@pytest.fixture(scope="module")
def real_records(shared_data):
    """The first records of the real set of a task."""
    known: dict[str, list] = {}

    def read(task: str) -> list[dict]:
        data = TASKS[task].data
        if data not in known:
            known[data] = mrpc(shared_data) if data == "mrpc" else first_records(shared_data, data)
        assert len(known[data]) == NUM_RECORDS
        return known[data]

    return read


def first_records(shared_data: Path, data: str) -> list[dict]:
    source, options, _ = SETS[data]
    sources = [source] if isinstance(source, str) else source
    paths = [FILES[data]] if data in FILES else sources
    rows = read_records([str(shared_data / path) for path in paths], **options)
    return [row.fields for row in islice(rows, NUM_RECORDS) if isinstance(row, Record)]


def mrpc(shared_data: Path) -> list[dict]:
    """Pairs of MRPC, out of prompts in which nothing but a first line stands around them."""
    records = []
    for row in read_records(str(shared_data / "t0_p3_templates" / "glue_mrpc.jsonl.gz")):
        assert isinstance(row, Record)
        if row.fields["template"] == "glue_mrpc_same_thing":
            _, first, second = row.fields["prompt"].strip("\n").split("\n")
            label = {"no": 0, "yes": 1}[row.fields["completion"]]
            records.append({"sentence1": first, "sentence2": second, "label": label})
    return records


def rejected(template: Template, records: list[dict]) -> list[bool]:
    return [not isinstance(result, Rendered) for result in template.render_batch(records)]


# --- form -------------------------------------------------------------------------------------


def test_every_file_has_its_task():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == TASKS.keys() | {
        "reviews",
        "names",
        "products",
    }


def test_names_and_texts_are_unique_across_files():
    files = [load_templates(path).values() for path in FOLDER.glob("*.yaml")]
    templates = [template for file in files for template in file]
    assert [name for name, n in Counter(t.name for t in templates).items() if n > 1] == []
    assert [text for text, n in Counter(t.jinja for t in templates).items() if n > 1] == []


@EVERY_TASK
def test_file_is_tidy_and_has_ten_templates_three_of_them_inverted(task):
    templates = library(task)
    inverted = [t for t in templates.values() if t.metadata["original_task"] is False]
    assert len(templates) >= 10
    assert len(inverted) >= 3
    assert len(templates) - len(inverted) >= 6
    assert lint(templates) == []
    assert all(t.answer_choices is None for t in inverted)


@EVERY_TASK
def test_file_names_its_columns_at_the_top(task):
    lines = (FOLDER / f"{task}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines[: lines.index("templates:")] if line.startswith("#"))
    columns = set().union(*(template.columns for template in library(task).values()))
    assert {column for column in columns if not re.search(rf"\b{column}\b", comment)} == set()


# --- on real records --------------------------------------------------------------------------


@EVERY_TASK
def test_templates_suit_the_real_set(task, real_records):
    """Lint finds nothing but targets that are quotations; nearly all records are accepted."""
    records = real_records(task)
    allowed = ["the target can be read in the prompt"] if TASKS[task].quotes else []
    allowed.append("samples are rejected")  # judged below
    findings = lint(library(task), records[0].keys(), records)
    assert [line for line in findings if not any(text in line for text in allowed)] == []
    shares = {name: sum(rejected(t, records)) / NUM_RECORDS for name, t in library(task).items()}
    assert {name: share for name, share in shares.items() if share > 0.05} == {}


@EVERY_TASK
def test_missing_value_is_rejected_wherever_it_is_read(task, real_records):
    record = real_records(task)[0]
    for template in library(task).values():
        without = [{**record, column: None} for column in template.columns]
        needed = template.columns - {*TASKS[task].optional}
        without += [{k: v for k, v in record.items() if k != c} for c in needed]
        assert all(rejected(template, without)), template.name


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.label])
def test_bad_label_is_rejected_and_every_good_one_accepted(task, real_records):
    label = TASKS[task].label
    record = real_records(task)[0]
    readers = [t for t in library(task).values() if label in t.columns]
    assert readers
    for template in readers:
        good = [{**record, label: value} for value in TASKS[task].labels]
        good += [{**record, label: str(value)} for value in TASKS[task].labels]
        bad = [{**record, label: value} for value in TASKS[task].bad]
        assert not any(rejected(template, good)), template.name
        assert all(rejected(template, bad)), template.name


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("headline", {"review_headline": " ", "review_body": " "}),
        ("question_answering", {"answers": [], "question": "", "context": ""}),
        ("dialogue_summary", {"summary": "", "topic": "", "dialogue": ""}),
        ("translation", {"german": "", "english": ""}),
        ("intent", {"category": "", "text": ""}),
    ],
)
def test_empty_text_is_rejected_as_a_target(task, changes, real_records):
    for template in library(task).values():
        if not re.search(r"\|\|\|\s*\w+:", template.jinja):  # a target of labelled parts
            assert rejected(template, [{**real_records(task)[0], **changes}]) == [True]


def test_intents_with_choices_are_those_of_the_bank(shared_data):
    source, options, _ = SETS["banking77"]
    rows = read_records(str(shared_data / source), **options)
    records = list({row.fields["category"]: row.fields for row in rows}.values())
    for template in library("intent").values():
        if template.answer_choices is not None:
            results = template.render_batch(records)
            assert {result.completion for result in results} == {*results[0].answer_choices}
            assert rejected(template, [{"text": "Two pizzas.", "category": "order_food"}]) == [True]


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        (["Rome", "!"], ["B-animal", "O"]),
        (["Rome", "!"], ["X-location", "O"]),
        (["Rome", "!"], ["location", "O"]),
        (["Rome", "!"], [None, "O"]),
        (["Rome", "!"], [-1, 0]),
        (["Rome", "!"], ["B-location"]),
        (["Rome"], ["B-location", "O"]),
        (["Rome", "City"], ["B-location", "I-animal"]),
    ],
)
def test_entities_with_bad_tags_are_rejected(tokens, tags):
    for template in library("ner").values():
        assert rejected(template, [{"tokens": tokens, "tags": tags}]) == [True], template.name


def test_entities_are_listed_as_text():
    record = {
        "tokens": ["Ada", "Lovelace", "flew", "to", "Rome", "with", "Bob", "Ross", "."],
        "tags": ["B-person", "I-person", "O", "O", "B-location", "O", "B-person", "I-person", "O"],
    }
    targets = {
        name: template.render(record).completion for name, template in library("ner").items()
    }
    text = "Ada Lovelace flew to Rome with Bob Ross ."
    assert targets == {
        "Entities with their types": "person: Ada Lovelace\nlocation: Rome\nperson: Bob Ross",
        "Names in a text": "Ada Lovelace\nRome\nBob Ross",
        "Names in a row": "Ada Lovelace; Rome; Bob Ross",
        "People in a text": "Ada Lovelace\nBob Ross",
        "Places in a text": "Rome",
        "Types of entities in a text": "person, location",
        "Any entity in a text": "yes",
        "Write a text with these entities": text,
        "Write a text with these names": text,
        "Write a text with entities of these types": text,
    }
    nothing = {"tokens": ["Hello", "."], "tags": ["O", "O"]}
    for name, template in library("ner").items():
        if template.metadata["original_task"]:
            expected = "no" if name == "Any entity in a text" else "none"
            assert template.render(nothing).completion == expected
        else:
            assert template.render(nothing).prompt.endswith("none")


def test_slots_are_listed_as_text():
    record = {
        "userInput": {"text": "Ada, 3 of us on Friday"},
        "context": {"requestedSlots": ["first_name", "people", "people"]},
        "labels": [
            {"slot": "first_name", "valueSpan": {"endIndex": 3}},
            {"slot": "people", "valueSpan": {"startIndex": 5, "endIndex": 6}},
            {"slot": "date", "valueSpan": {"startIndex": 16, "endIndex": 22}},
        ],
    }
    results = {name: template.render(record) for name, template in library("slots").items()}
    text = record["userInput"]["text"]
    assert {name: result.completion for name, result in results.items()} == {
        "Slots of a booking": "first name: Ada\npeople: 3\ndate: Friday",
        "Slots of a booking in a row": "first name: Ada; people: 3; date: Friday",
        "Day and hour of a booking": "date: Friday",
        "Size of a party": "3",
        "Name for a reservation": "first name: Ada",
        "Kinds of slots in a message": "first name, people, date",
        "Anything for the booking form": "yes",
        "Write a message with these slots": text,
        "Write the answer to a restaurant": text,
        "Write a message with these kinds of slots": text,
    }
    assert "Asked for: first name, people\n" in results["Size of a party"].prompt
    nothing = {"userInput": {"text": "Hello."}, "context": {}}
    for name, template in library("slots").items():
        if template.metadata["original_task"]:
            expected = "no" if name == "Anything for the booking form" else "none"
            assert template.render(nothing).completion == expected
        else:
            assert template.render(nothing).prompt.endswith("none")


def test_calculations_are_left_out_of_worked_solutions():
    record = {
        "question": "How many?",
        "answer": "4 * 2 = <<4*2=8>>8 pens.\n8 + 1 = <<8+1=9>>9\n#### 9",
    }
    template = library("word_problems")["Problem step by step"]
    assert template.render(record).completion == "4 * 2 = 8 pens.\n8 + 1 = 9\nAnswer: 9"
    for template in library("word_problems").values():
        assert rejected(template, [{**record, "answer": "It is 9."}]) == [True]


def test_answers_may_come_as_the_hub_has_them(real_records):
    record = real_records("question_answering")[0]
    [answer] = record["answers"]
    for template in library("question_answering").values():
        as_on_hub = {**record, "answers": {key: [value] for key, value in answer.items()}}
        assert template.render(as_on_hub) == template.render(record)


@EVERY_TASK
def test_prompt_tells_no_more_of_a_label_than_the_listed_choices(task, real_records):
    """The prompt is the same whatever the label, and lists all choices alike or none of them."""
    label, labels = TASKS[task].label, TASKS[task].labels
    record = real_records(task)[0]
    for template in library(task).values():
        if template.answer_choices is None:
            continue
        if label:
            results = template.render_batch([{**record, label: value} for value in labels])
            assert len({result.prompt for result in results}) == 1, template.name
            assert len({result.completion for result in results}) > 1, template.name
        prompt, _, _ = template.jinja.partition("|||")
        assert label is None or label not in Template("prompt", prompt).columns, template.name

        blank = dict.fromkeys(template.columns, "") | BLANK.get(task, {})
        own = template.render(blank | ({label: labels[0]} if label else {}))
        counts = {
            choice: len(re.findall(rf"(?<!\w){re.escape(choice)}(?!\w)", own.prompt))
            for choice in own.answer_choices
        }
        if not template.metadata["choices_in_prompt"]:
            assert set(counts.values()) == {0}, (template.name, counts)
        elif task == "intent":  # some intents hold the name of another
            assert min(counts.values()) == 1, (template.name, counts)
        else:
            assert set(counts.values()) == {1}, (template.name, counts)


@EVERY_TASK
def test_instruction_stands_before_the_text(task, real_records):
    """All prompts of a template begin alike, so that what they share is computed once."""
    records = real_records(task)[:20]
    for template in library(task).values():
        prompts = [result.prompt for result in template.render_batch(records)]
        first_lines = {prompt.split("\n")[0] for prompt in prompts}
        assert len(first_lines) == 1, template.name
        assert len(first_lines.pop()) >= 20, template.name


@EVERY_TASK
def test_templates_work_as_promptsource_reads_them(task, real_records):
    """Its truncation changes the text of a template, which must survive that."""
    records = [r for r in real_records(task) if len(str(r)) < 2000][:5]
    assert records
    for template in library(task).values():
        for record in records:
            rendered = template.render(record)
            assert template.apply(record) == [rendered.prompt, rendered.completion], template.name
