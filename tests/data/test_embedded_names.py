"""The embedded questions about names: the text alone decides the answer."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ift_jax
from ift_jax.data import pipeline
from ift_jax.data.config import DataConfig, TaskConfig
from ift_jax.data.embedded_names import BEARERS, NAMES, NUM_RECORDS, embedded_names
from ift_jax.data.templates import lint, load_templates

SHA256 = "042621e02e235cea2aff834f2cbecbb628fe37e4a0e81c5b701b310bc49825f5"
SCRIPT = """
import hashlib, json
from ift_jax.data.embedded_names import embedded_names
print(hashlib.sha256(json.dumps(embedded_names(), sort_keys=True).encode()).hexdigest())
"""
EVERY_BEARER = [bearer for bearers, _ in BEARERS for bearer in bearers]


@pytest.fixture(scope="module")
def records():
    return embedded_names()


def test_a_reader_finds_the_answer_in_the_sentence_about_the_bearer(records):
    for record in records:
        [bearer] = [b for b in EVERY_BEARER if f" the {b}" in record["question"]]
        about = [s for s in record["text"].split(". ") if f"he {bearer}" in s]
        assert len(about) == 1
        assert names_in(about[0]) == [record["name"]]
        assert names_in(record["text"]) == record["names"]
        assert len(record["names"]) in (2, 3)
        assert names_in(record["question"]) == []


def names_in(text):
    return sorted({*re.findall(r"[A-Z][a-z]+", text)} & {*NAMES})


def test_neither_place_nor_frequency_of_a_name_gives_the_answer_away(records):
    places = Counter()
    for record in records:
        order = sorted(record["names"], key=lambda name: record["text"].index(name))
        places[len(order), order.index(record["name"])] += 1
    for (count, _), number in places.items():
        total = sum(n for (c, _), n in places.items() if c == count)
        assert abs(number / total - 1 / count) < 0.06
    answers = Counter(record["name"] for record in records)
    assert answers.keys() == set(NAMES)
    assert max(answers.values()) < 0.04 * NUM_RECORDS


def test_records_are_distinct_and_the_same_everywhere(records):
    assert len(records) == NUM_RECORDS
    assert len({record["text"] for record in records}) == NUM_RECORDS
    text = json.dumps(records, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256
    elsewhere = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == SHA256
    embedded_names()[0]["names"].append("X")
    assert embedded_names() == records


def test_it_is_a_task_with_choices_and_splits(chat):
    task = TaskConfig(
        name="names", source="embedded:names", templates="names", split_by=("text",),
        template_names=("Question about a name",), train_size=50, validation_size=20, test_size=20,
    )  # fmt: skip
    data = pipeline.build(DataConfig(tasks=(task,)), chat)
    [built] = data.tasks
    assert [len(built.splits[name]) for name in ("train", "validation", "test")] == [50, 20, 20]
    for example in built.splits["test"]:
        assert example.completion in example.choices
        assert len(example.choices) in (2, 3)


def test_templates_suit_the_records(records):
    templates = load_templates(Path(ift_jax.__file__).parent / "templates" / "names.yaml")
    findings = lint(templates, sorted(records[0]), records[:50])
    assert [f for f in findings if "the target can be read in the prompt" not in f] == []
    listed = templates["All names of a text"].render(records[0])
    assert listed.completion == "Pepper, Sophie"
