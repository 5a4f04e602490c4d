"""Every set of configs/data_sets.py becomes examples, on a sample of its own records.

The configs, files, templates, tokenizer and pipeline are the real ones. Of each source every n-th
record is taken, which is the only thing that makes this quick.
"""

import ast
import runpy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from ift_jax.config import build_run_config
from ift_jax.data import collect, pipeline
from ift_jax.data.config import SPLITS
from ift_jax.data.records import Record
from ift_jax.data.sources import read_records, resolve_sources
from ift_jax.data.splits import split_key
from ift_jax.errors import InputError
from ift_jax.pretrained import load_chat

CONFIG = ROOT / "configs" / "data_sets.py"
NAMES = runpy.run_path(str(CONFIG))["names"]()
EVERY_SET = pytest.mark.parametrize("name", NAMES)
SAMPLE = 300  # records of a source
# Held out as a whole: its files ask to be kept out of training.
NOT_TRAINED = {"bbh"}


@pytest.fixture(scope="module")
def chat(smollm2):
    return load_chat(smollm2)


@pytest.fixture(scope="module")
def built(shared_data, chat):
    """Builds a set on a sample of its records, once."""
    known = {}

    def build(name):
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("IFT_JAX_DATA", str(shared_data))
                patch.setattr(collect, "read_records", sampled)
                config = build_run_config(
                    runpy.run_path(str(CONFIG))["get_config"](name).to_dict()
                ).data
                # A sample has too few records for the sizes of subsets.
                tasks = [
                    replace(task, train_size=0, validation_size=0, test_size=0, balance_by="")
                    for task in config.tasks
                ]
                known[name] = pipeline.build(replace(config, tasks=tuple(tasks)), chat)
        return known[name]

    return build


def sampled(source, **options):
    rows = [thinned(row) for row in read_records(source, **options)]
    return iter(rows[:: max(1, len(rows) // SAMPLE)])


def thinned(row):
    """A file of Super-NaturalInstructions is one record with thousands of instances."""
    if not isinstance(row, Record) or "Instances" not in row.fields:
        return row
    instances = row.fields["Instances"]
    return replace(row, fields={**row.fields, "Instances": instances[:: len(instances) // SAMPLE]})


def encoded(data):
    """(split, example, token ids, trained) of every example."""
    for split in SPLITS:
        if examples := data.examples(split):
            tokens = data.tokens(split)
            for number, example in enumerate(examples):
                yield split, example, *tokens.get(number)


def trained_texts(chat, ids, trained):
    edges = np.flatnonzero(np.diff([0, *trained.astype(int), 0]))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [chat.tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=False) for a, b in pairs]


def test_there_is_a_config_for_every_folder(shared_data):
    folders = {path.name for path in shared_data.iterdir() if path.is_dir()}
    assert set(NAMES) == folders - {"promptsource"}


def test_a_set_is_ten_lines_of_config():
    (sets,) = (
        node.value
        for node in ast.parse(CONFIG.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_TASKS"
    )
    assert isinstance(sets, ast.Dict)
    assert len(sets.keys) == len(NAMES)
    for name, tasks in zip(NAMES, sets.values, strict=True):
        assert tasks.end_lineno - tasks.lineno < 10, name


@EVERY_SET
def test_a_set_becomes_training_examples(name, built):
    data = built(name)
    assert len(data.examples("train")) + len(data.examples("test")) > 100
    assert bool(data.examples("train")) == (name not in NOT_TRAINED)
    assert len(data.examples("validation")) > 0 or name in NOT_TRAINED
    assert len(data.examples("test")) > 0


@EVERY_SET
def test_what_is_trained_are_the_answers_with_their_ends_of_turn(name, built, chat):
    for _, example, ids, trained in encoded(built(name)):
        answers = [example.messages[turn]["content"] for turn in example.turns.earlier]
        wanted = [answer + chat.end_of_turn for answer in (*answers, example.completion)]
        assert trained_texts(chat, ids, trained) == wanted, example.origin


@EVERY_SET
def test_no_text_stands_in_two_splits(name, built):
    splits = {}
    for split, example, _, _ in encoded(built(name)):
        splits.setdefault(example.key, set()).add(split)
    assert max(map(len, splits.values())) == 1


@EVERY_SET
def test_the_card_of_a_set_adds_up(name, built):
    data = built(name)
    card = pipeline.card(data)
    counted = Counter()
    for split, example, ids, trained in encoded(data):
        counted[example.task, split, "examples"] += 1
        counted[example.task, split, "tokens"] += len(ids)
        counted[example.task, split, "trained_tokens"] += int(trained.sum())
        counted[example.task, split, "template", example.template] += 1
        assert len(ids) <= card["max_length"]
    for task in data.tasks:
        name, part = task.config.name, card["tasks"][task.config.name]
        kept = sum(part["splits"][split]["records"] for split in SPLITS)
        gone = sum(part["rejected"].values()) + sum(task.removed.values())
        assert part["records"] == kept + gone, name
        for split in SPLITS:
            for what in ("examples", "tokens", "trained_tokens"):
                assert part["splits"][split][what] == counted[name, split, what], (name, what)
            for template, count in part["splits"][split]["templates"].items():
                assert count == counted[name, split, "template", template]


def test_text_that_two_sets_share_goes_to_one_split(shared_data):
    """flan_cot has the questions of gsm8k: the same key, and so the same split."""

    def keys(source, **options):
        rows = read_records(str(shared_data / source), **options)
        return {split_key(row.fields["question"]) for row in rows}

    columns = ("question", "answer", "rationale")
    shared = keys("flan_cot/gsm8k_train.tsv.gz", columns=columns, quoted=False)
    own = keys("gsm8k/train.jsonl.gz")
    assert len(own & shared) > 0.99 * len(own)
    assert not shared & keys("gsm8k/test.jsonl.gz")


def test_the_mixture_of_all_sets_keeps_families_whole(monkeypatch, shared_data):
    """The rows of a family show the same few texts, so no share of them may be held out."""
    monkeypatch.setenv("IFT_JAX_DATA", str(shared_data))
    config = runpy.run_path(str(ROOT / "configs" / "many_tasks.py"))["get_config"]()
    tasks = build_run_config(config.to_dict()).data.tasks
    homes = {}
    for task in tasks:
        held_out = {split for split, share in task.fractions.items() if share and split != "train"}
        sources = [source for source in task.source if "t0_p3_templates" in source]
        for source in resolve_sources(sources) if sources else ():
            # Whole in one split, except that all of train may be train.
            assert len([share for share in task.fractions.values() if share]) == 1, task.name
            family = source.rpartition("/")[2].partition(".")[0].partition("_")[0]
            homes.setdefault(family, set()).add(min(held_out, default="train"))
    assert len(homes) > 15
    assert all(len(splits) == 1 for splits in homes.values()), homes
    # All others that are trained hold something out, for scores.
    for task in tasks:
        if task.weight and not task.name.startswith("t0_"):
            assert task.test_source or task.test_fraction > 0, task.name


def test_an_unknown_set_is_refused_with_the_known_ones():
    get_config = runpy.run_path(str(CONFIG))["get_config"]
    with pytest.raises(InputError, match=r"no data set 'trek'; did you mean trec\? there are amaz"):
        get_config("trek")
    with pytest.raises(InputError, match="no data set is named; there are amazon_reviews, uci_sen"):
        get_config()
