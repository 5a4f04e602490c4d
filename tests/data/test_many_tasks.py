"""The mixture of configs/many_tasks.py over real sets: size, shares, and nothing held out in it.

Config, files, templates, tokenizer and pipeline are the real ones. Of a large source only a part
of the records is taken, chosen by what they say, so that a text which two sets share is taken from
both or from neither.
"""

import hashlib
import os
import re
import runpy
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import ROOT

from ift_jax.config import build_run_config
from ift_jax.data import collect, pipeline, selection
from ift_jax.data.records import Record
from ift_jax.data.rows import pack
from ift_jax.data.sources import read_records
from ift_jax.pretrained import load_chat

RECORDS = 200  # of a source, about
SIZE = 3000
RUN = 13  # words
LONG = 5  # words; what is shorter may be a label
PRECEDENCE = ("test", "validation", "train")
CLEAN = ("bbh", "topic", "reasoning")  # of whose held-out texts no part may be trained


def sampled(source, **options):
    if source not in SAMPLES:
        rows = list(read_records(source, **options))
        SAMPLES[source] = [thinned(row) for row in rows if is_taken(row, RECORDS / len(rows))]
        if "gigaword" in str(source):
            SAMPLES[source].append(longer(next(sampled(HELD_OUT))))
    return iter(SAMPLES[source])


SAMPLES = {}
HELD_OUT = f"{os.environ.get('IFT_JAX_DATA', ROOT.parent / 'shared' / 'data')}/ag_news/test.json.gz"


def is_taken(row, share):
    """By any of its texts, so that it does not matter in which column a shared one stands."""
    if not isinstance(row, Record):
        return True
    texts = [text for text in row.fields.values() if isinstance(text, str) and " " in text]
    return any(place(text) < share for text in texts or [str(row.fields)])


def place(text):
    """Where a text's beginning stands between 0 and 1, whatever its case and spacing."""
    said = " ".join(text[:300].casefold().split())
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big") / 2**64


def longer(row):
    """A prompt of T0's kind around a held-out text, such as few samples would hold by chance."""
    fields = {"template": "section", "completion": "World"}
    return Record({**fields, "prompt": f"Whose news is this?\n{row.fields['sentence']}"}, "made:1")


def thinned(row):
    """A file of Super-NaturalInstructions is one record with thousands of instances."""
    if not isinstance(row, Record) or "Instances" not in row.fields:
        return row
    instances = row.fields["Instances"]
    return replace(row, fields={**row.fields, "Instances": instances[:: len(instances) // 100]})


@pytest.fixture(scope="module")
def mixture(shared_data, smollm2):
    """Builds the mixture, with changes to its config; records are read and tokenized once."""
    chat, known = load_chat(smollm2), pipeline.Known()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFT_JAX_DATA", str(shared_data))
        patch.setattr(collect, "read_records", sampled)
        config = runpy.run_path(str(ROOT / "configs" / "many_tasks.py"))["get_config"]()
        config.data.mixture.size = SIZE
        config = build_run_config(config.to_dict()).data
        yield lambda **changes: pipeline.build(replace(config, **changes), chat, known)


@pytest.fixture(scope="module")
def data(mixture):
    return mixture()


@cache
def words(text):
    return re.findall(r"\w+", text.casefold())


def said(example):
    """Each text of an example by itself: the record's own, the rendered turns, the answer."""
    return [example.text, *(m["content"] for m in example.messages), example.completion]


def shared_texts(data):
    """Texts that a record holds out, as a whole, and an example of a later split shows."""
    found = set()
    for number, split in enumerate(PRECEDENCE):
        held = {tuple(words(example.text)): example.text for example in data.examples(split)}
        for later in PRECEDENCE[number + 1 :]:
            for example in data.examples(later):
                own, *others = (tuple(words(text)) for text in said(example))
                shown = {own, *(text for text in others if len(text) >= LONG)}
                found |= {held[text] for text in shown & held.keys()}
    return found


def runs(text):
    found = words(text)
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def largest_share(data):
    """Of the runs of words of a text that the clean tasks hold out, the most that are trained."""
    held = [
        runs(text)
        for task in data.tasks
        if task.config.name in CLEAN
        for split in ("test", "validation")
        for example in task.splits[split]
        for text in (example.text, example.completion)
    ]
    owners = {}
    for number, own in enumerate(held):
        for run in own:
            owners.setdefault(run, []).append(number)
    shares = [0.0]
    for example in data.examples("train"):
        found = runs(example.text) | runs(example.completion)
        counted = Counter(number for run in found for number in owners.get(run, ()))
        shares += [count / len(held[number]) for number, count in counted.items()]
    return max(shares)


def test_the_mixture_has_its_exact_size_and_the_shares_of_its_formula(data):
    card = pipeline.card(data)["mixture"]
    trained = {task.config.name: len(task.splits["train"]) for task in data.trained()}
    assert len(trained) >= 40
    assert card["examples"] == SIZE
    total = sum(np.sqrt(np.minimum([*trained.values()], 10_000)))
    for name, size in trained.items():
        counted = card["tasks"][name]
        assert counted["examples"] == size
        assert abs(counted["drawn"] - SIZE * np.sqrt(min(size, 10_000)) / total) < 1
        assert counted["share"] == pytest.approx(counted["drawn"] / SIZE)
        assert counted["epochs"] == pytest.approx(counted["drawn"] / size)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_rows_of_an_epoch_hold_what_the_card_says(data, epoch):
    rows, _ = pack(data, "train", 0)
    names = np.repeat(
        [task.config.name for task in data.trained()],
        [len(task.splits["train"]) for task in data.trained()],
    )
    first = epoch * rows.rows_per_epoch
    drawn = Counter(
        name
        for row in range(first, first + rows.rows_per_epoch)
        for name in names[rows.members(row)].tolist()
    )
    card = pipeline.card(data)["mixture"]["tasks"]
    assert drawn == {name: task["drawn"] for name, task in card.items()}


def test_no_text_stands_in_two_splits(data, mixture, monkeypatch):
    assert shared_texts(data) == set()
    removed = sum(task.removed["in_other_split"] for task in data.tasks)
    assert removed > 0
    # Without what removes them there are some, and this test sees them.
    monkeypatch.setattr(
        selection, "leaking", lambda record, digest, held, shown, split: np.zeros(len(split), bool)
    )
    assert len(shared_texts(mixture())) > 2


def test_no_text_of_the_named_tasks_stands_inside_a_trained_one(data, mixture):
    assert largest_share(data) < 0.6  # words are told apart a little otherwise here
    assert sum(task.removed["contaminated"] for task in data.tasks) > 0
    assert largest_share(mixture(decontaminate=())) > 0.9
