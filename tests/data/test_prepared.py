"""Prepared sets: same rows as in memory, same bytes from any number of parts, never stale."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import TEMPLATES, Folder, prompts, reviews

from ift_jax.batch import Batch
from ift_jax.data import collect, parts, pipeline, prepared_key, prepared_rows
from ift_jax.data.chat import Chat
from ift_jax.data.config import SPLITS, DataConfig, MixtureConfig, TaskConfig
from ift_jax.data.loader import Batches
from ift_jax.data.prepared import load_data, prepare
from ift_jax.data.prepared_key import difference, set_key
from ift_jax.data.prepared_rows import decode_row, encode_row, permuted
from ift_jax.data.rows import packed_rows
from ift_jax.errors import InputError

properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)


@pytest.fixture
def folder(tmp_path, chat, monkeypatch):
    monkeypatch.setattr(collect, "CHUNK", 16)
    return Folder(tmp_path, chat)


@pytest.fixture
def config(folder):
    """Two tasks, mixed, with repeats, a broken line, and several templates."""
    first = folder.config(
        [*reviews(90), *reviews(9), "no json"],
        name="a",
        task={"template_names": (), "template_choice": "all", "test_size": 5},
    )
    second = folder.config(
        reviews(40, 500), name="b", task={"balance_by": "stars", "train_size": 10}
    )
    return DataConfig(
        tasks=(*first.tasks, *second.tasks),
        max_length=128,
        row_length=256,
        mixture=MixtureConfig(rates="weights", size=100),
    )


def files(path):
    return {f.name: f.read_bytes() for f in sorted(path.iterdir())}


def row_contents(rows, count):
    """What each row holds, in an order that rows do not have."""
    return Counter(rows[r].tokens.tobytes() + rows[r].weights.tobytes() for r in range(count))


def test_a_prepared_set_is_what_would_be_built_in_memory(config, chat, tmp_path):
    card = prepare(config, chat, tmp_path / "set")
    built = pipeline.build(config, chat)
    data = load_data(replace(config, prepared=str(tmp_path / "set")), chat)
    assert card == pipeline.card(built) == pipeline.card(data)
    for split in ("validation", "test"):
        assert prompts(data, split) == prompts(built, split)
        assert [e.choices for e in data.examples(split)] == [
            e.choices for e in built.examples(split)
        ]
    for task, other in zip(data.tasks, built.tasks, strict=True):
        for name in other.splits["train"].templates():
            assert [e.content for e in task.splits["train"].of_template(name)] == [
                e.content for e in other.splits["train"].of_template(name)
            ]
    stored, in_memory = packed_rows(data, "train", 5), packed_rows(built, "train", config.seed)
    assert stored.prefix.tolist() == in_memory.prefix.tolist()
    count = stored.rows.rows_per_epoch
    assert count == in_memory.rows.rows_per_epoch
    assert row_contents(stored.rows, count) == row_contents(in_memory.rows, count)


def test_each_epoch_visits_every_row_once_in_another_order(config, chat, tmp_path):
    prepare(config, chat, tmp_path / "set")
    data = load_data(replace(config, prepared=str(tmp_path / "set")), chat)
    rows = packed_rows(data, "train", 7).rows
    n = rows.rows_per_epoch
    epochs = [[rows[e * n + r].tokens.tobytes() for r in range(n)] for e in (0, 1, 10**6)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    other_seed = packed_rows(data, "train", 8).rows
    assert [other_seed[r].tokens.tobytes() for r in range(n)] != epochs[0]
    batches = Batches(rows, 4, 2)
    for offset, batch in zip(range(5), batches.from_step(n // 4), strict=False):
        for name in Batch._fields:
            expected = getattr(batches[n // 4 + offset], name)
            np.testing.assert_array_equal(getattr(batch, name), expected)


@pytest.mark.parametrize("total", [2, 3, 7])
def test_parts_give_the_bytes_of_one_process_in_any_order(config, chat, tmp_path, total, capsys):
    prepare(config, chat, tmp_path / "one")
    order = np.random.default_rng(total).permutation(total).tolist()
    for number in order[:-1]:
        assert prepare(config, chat, tmp_path / "parts", (number, total)) is None
        assert "missing" in capsys.readouterr().err
        assert not (tmp_path / "parts" / "index.json").exists()
    card = prepare(config, chat, tmp_path / "parts", (order[-1], total))
    assert card["tasks"]["a"]["records"] == 100
    assert files(tmp_path / "parts") == files(tmp_path / "one")


def test_several_processes_give_the_same_bytes(folder, chat, tmp_path):
    chunk = 2048  # a started process does not see what the fixture changed
    collect.CHUNK = chunk
    config = folder.config(reviews(chunk + 200), max_length=128)
    prepare(config, chat, tmp_path / "one")
    prepare(config, chat, tmp_path / "two", num_processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_part_that_was_cut_off_is_made_anew_and_a_whole_one_is_kept(config, chat, tmp_path):
    prepare(config, chat, tmp_path / "one")
    prepare(config, chat, tmp_path / "set", (0, 2))
    part = tmp_path / "set" / "parts" / "0-of-2"
    kept = (part / "numbers.npz").stat().st_mtime_ns
    prepare(config, chat, tmp_path / "set", (0, 2))
    assert (part / "numbers.npz").stat().st_mtime_ns == kept
    (part / "done.json").unlink()
    (part / "tokens.bin").write_bytes(b"half")
    prepare(config, chat, tmp_path / "set", (1, 2))
    assert not (tmp_path / "set" / "index.json").exists()
    prepare(config, chat, tmp_path / "set", (0, 2))
    assert files(tmp_path / "set") == files(tmp_path / "one")


# Never stale


def changed(what, config, folder, chat):
    """(config, chat) with one thing changed that decides what the set holds."""
    task = config.tasks[0]
    if what == "sources":
        with open(task.source, "a", encoding="utf-8") as file:
            file.write(json.dumps(reviews(1, 7000)[0]) + "\n")
    elif what == "templates":
        path = folder.path / "templates.yaml"
        path.write_text(TEMPLATES.replace("How many stars?", "How many stars now?"))
    elif what == "tokenizer":
        tokenizer = make_tokenizer()
        tokenizer.chat_template = tokenizer.chat_template.replace("'\n'", "' '")
        chat = Chat.of(tokenizer)
    else:
        config = replace(config, tasks=(replace(task, train_shots=(1,)), *config.tasks[1:]))
    return config, chat


@pytest.mark.parametrize("what", ["sources", "templates", "tokenizer", "options"])
def test_a_set_made_from_something_else_is_refused(what, config, folder, chat, tmp_path):
    out = tmp_path / "set"
    prepare(config, chat, out)
    before = files(out)
    other, other_chat = changed(what, config, folder, chat)
    with pytest.raises(InputError, match=f"prepared from other {what}"):
        load_data(replace(other, prepared=str(out)), other_chat)
    with pytest.raises(InputError, match=f"other {what}.*; choose another --output"):
        prepare(other, other_chat, out)
    assert files(out) == before


def test_the_key_holds_what_templates_are_for(config, chat, folder):
    """An inverted one does not decide by what records are split."""
    before = set_key(config, chat)
    path = folder.path / "templates.yaml"
    path.write_text(TEMPLATES.replace("{}", "{original_task: false}"))
    assert set_key(config, chat) == {**before, "templates": set_key(config, chat)["templates"]}
    assert set_key(config, chat) != before


def test_the_key_holds_the_token_that_ends_a_base_models_answers(config):
    def base_model(end):
        tokenizer = make_tokenizer()
        tokenizer.chat_template, tokenizer.eos_token = None, end
        return Chat.of(tokenizer)

    one, other = (set_key(config, base_model(e)) for e in ("<|im_end|>", "<|im_start|>"))
    assert one == {**other, "tokenizer": one["tokenizer"]}
    assert one != other


def test_moved_files_do_not_matter_and_missing_ones_are_said(config, chat, tmp_path, capsys):
    from pathlib import Path

    out = tmp_path / "set"
    card = prepare(config, chat, out)
    task = config.tasks[0]
    moved = Path(task.source).rename(tmp_path / "elsewhere.jsonl")
    there = replace(config, tasks=(replace(task, source=str(moved)), *config.tasks[1:]))
    assert prepare(there, chat, out) == card
    assert "up to date" in capsys.readouterr().err
    data = load_data(replace(config, prepared=str(out)), chat)
    assert "not compared with source of a: not on this machine" in capsys.readouterr().err
    assert pipeline.card(data) == card


def write_reviews(path, count, start):
    path.write_text("".join(json.dumps(one) + "\n" for one in reviews(count, start)))
    return str(path)


def test_a_split_that_is_another_ones_source_makes_another_set(config, chat, tmp_path):
    task, other = config.tasks[0], write_reviews(tmp_path / "other.jsonl", 30, 9000)
    validated = replace(config, tasks=(replace(task, validation_source=other),))
    tested = replace(config, tasks=(replace(task, test_source=other),))
    prepare(validated, chat, tmp_path / "set")
    says = r"prepared from other sources \((test|validation)_source of a\)"
    with pytest.raises(InputError, match=says):
        prepare(tested, chat, tmp_path / "set")
    with pytest.raises(InputError, match=says):
        load_data(replace(tested, prepared=str(tmp_path / "set")), chat)
    turned = replace(task, source=other, validation_source=task.source)
    with pytest.raises(InputError, match=r"other sources \(source of a\)"):
        prepare(replace(config, tasks=(turned,)), chat, tmp_path / "set")


@pytest.mark.parametrize("missing", ["another task's", "another file", "a pattern's"])
def test_sources_that_are_here_are_compared_though_others_are_missing(
    missing, config, chat, tmp_path, capsys
):
    one, two, three = (tmp_path / f"more-{n}.jsonl" for n in range(3))
    for number, path in enumerate((one, two, three)):
        write_reviews(path, 20, 9000 + 100 * number)
    first, second = config.tasks
    sources = {
        "another task's": (str(three),),
        "another file": (str(one), str(three)),
        "a pattern's": (str(tmp_path / "more-[01].jsonl"), str(three)),
    }[missing]
    own = replace(
        config, tasks=(first, replace(second, source=sources, balance_by="", train_size=0))
    )
    prepare(own, chat, tmp_path / "set")
    capsys.readouterr()
    for path in (one, two) if missing != "another task's" else [tmp_path / "a.jsonl"]:
        path.rename(path.with_suffix(".away"))
    read_from = replace(own, prepared=str(tmp_path / "set"))
    load_data(read_from, chat)
    role = "source of a" if missing == "another task's" else "source of b"
    assert f"not compared with {role}: not on this machine" in capsys.readouterr().err
    write_reviews(three, 20, 9900)
    with pytest.raises(InputError, match=r"prepared from other sources \(source of b\)"):
        load_data(read_from, chat)


@pytest.mark.parametrize("what", ["sources", "templates"])
def test_what_changes_while_it_is_read_is_not_prepared(
    what, config, folder, chat, tmp_path, monkeypatch
):
    """Also where it is put back afterwards: nothing of what was collected is kept."""
    out, path = tmp_path / "set", tmp_path / ("a.jsonl" if what == "sources" else "templates.yaml")
    before = path.read_bytes()

    def rewritten(*arguments):
        changed(what, config, folder, chat)
        return collect.collect(*arguments)

    monkeypatch.setattr(parts, "collect", rewritten)
    with pytest.raises(InputError, match=f"^{what}.*: changed while they were read; prepare"):
        prepare(config, chat, out)
    monkeypatch.undo()
    monkeypatch.setattr(collect, "CHUNK", 16)
    path.write_bytes(before)
    assert not (out / "index.json").exists()
    prepare(config, chat, out)
    prepare(config, chat, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_a_source_that_goes_while_it_is_read_is_not_prepared(config, chat, tmp_path, monkeypatch):
    def removed(*arguments):
        found = collect.collect(*arguments)
        (tmp_path / "a.jsonl").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(parts, "collect", removed)
    with pytest.raises(InputError, match=r"sources \(source of a\): changed while"):
        prepare(config, chat, tmp_path / "set")


def test_the_same_bytes_under_another_name_make_another_set_if_they_are_read_otherwise(
    config, chat, tmp_path
):
    def key_of(path, **options):
        path.write_text('{"text": "a"}\n{"text": "b"}\n')
        task = TaskConfig(name="t", source=str(path), **options)
        return set_key(replace(config, tasks=(task,)), chat)

    lines = key_of(tmp_path / "x.jsonl")
    assert difference(lines, key_of(tmp_path / "x.txt")) == "sources (source of t)"
    assert difference(lines, key_of(tmp_path / "y.ndjson")) == ""
    named = key_of(tmp_path / "x.jsonl", file_format="txt")
    assert difference(named, key_of(tmp_path / "x.txt", file_format="txt")) == ""


def test_a_hub_source_is_compared_by_name_and_by_what_is_known_of_its_revision(
    config, chat, monkeypatch
):
    def key_of(name, revision):
        monkeypatch.setattr(prepared_key, "hub_revision", lambda source: revision)
        return set_key(replace(config, tasks=(TaskConfig(name="t", source=name),)), chat)

    known = key_of("hub:owner/name", "12ab")
    assert difference(known, key_of("hub:owner/name", "12ab")) == ""
    assert difference(known, key_of("hub:owner/name", "34cd")) == "sources (source of t)"
    unknown = key_of("hub:owner/name", "")
    assert difference(known, unknown) == ""
    assert prepared_key.not_compared(unknown) == ["source of t"]
    assert prepared_key.not_compared(known) == []
    assert difference(known, key_of("hub:owner/other", "")) == "sources (source of t)"


def test_damage_is_named(config, chat, tmp_path):
    with pytest.raises(InputError, match="holds no prepared data set"):
        load_data(replace(config, prepared=str(tmp_path / "nothing")), chat)
    prepare(config, chat, tmp_path / "set")
    out = tmp_path / "set"
    shards = sorted(out.glob("rows-*"))
    first, second = (path.read_bytes() for path in shards[:2])
    at = np.flatnonzero(np.frombuffer(first, np.uint8))[150]  # in the first rows
    flipped = first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]
    tested = (out / "test.jsonl").read_bytes()
    read_from = replace(config, prepared=str(out))
    for path, damaged, says in (
        (shards[0], first[:100], f"has 100 bytes, index.json says {len(first)}"),
        (shards[0], flipped, "its bytes are not those that were written"),
        (shards[0], second, "has|its bytes"),
        (
            out / "test.jsonl",
            b"".join(tested.splitlines(True)[:3]),
            "has .* bytes, index.json says",
        ),
        (out / "card.json", None, "is missing"),
    ):
        whole = path.read_bytes()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{path.name}: ({says})"):
            load_data(read_from, chat)
        with pytest.raises(InputError, match=path.name):
            prepare(config, chat, out)
        path.write_bytes(whole)
    data = load_data(read_from, chat)
    shards[0].write_bytes(flipped)  # after it was opened
    rows = packed_rows(data, "train", 0).rows
    with pytest.raises(InputError, match=f"{shards[0].name}: cannot be read"):
        [rows[number] for number in range(rows.rows_per_epoch)]


def test_an_index_that_was_edited_is_refused(config, chat, tmp_path):
    out = tmp_path / "set"
    prepare(config, chat, out)
    path = out / "index.json"
    written = path.read_text()
    index = json.loads(written)
    shards = [{**shard, "rows": shard["rows"] + 1} for shard in index["shards"]]
    for edited, says in (
        ({**index, "row_length": 64}, "is not as it was written; prepare the set anew"),
        ({**index, "prefix": [1, 2]}, "is not as it was written"),
        ({**index, "shards": shards}, "is not as it was written"),
        ({**index, "key": {**index["key"], "sources": ""}}, "is not as it was written"),
        ({**index, "key": {**index["key"], "version": "3"}}, "by another version of ift_jax"),
        ({name: index[name] for name in index if name != "digest"}, "is not as it was written"),
        ({"digest": index["digest"]}, "is not as it was written"),
        ([], "is not as it was written"),
    ):
        path.write_text(json.dumps(edited))
        with pytest.raises(InputError, match=says):
            load_data(replace(config, prepared=str(out)), chat)
        with pytest.raises(InputError, match=says):
            prepare(config, chat, out)
    path.write_text(json.dumps(json.loads(written)))  # laid out otherwise, the same index
    load_data(replace(config, prepared=str(out)), chat)


# Pieces


@properties
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 2**31))
def test_rows_survive_being_written(lengths, seed):
    rng = np.random.default_rng(seed)
    members = [(rng.integers(0, 2**31 - 1, n).astype(np.int32), rng.random(n) < 0.5)
               for n in lengths]  # fmt: skip
    for (ids, trained), (ids_back, trained_back) in zip(
        members, decode_row(encode_row(members)), strict=True
    ):
        np.testing.assert_array_equal(ids, ids_back)
        np.testing.assert_array_equal(trained, trained_back)


@properties
@given(st.integers(1, 3000), st.text(max_size=5))
def test_a_keyed_permutation_is_one(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_of_huge_sets_cost_nothing():
    found = {permuted(i, 10**12, "k") for i in range(1000)}
    assert len(found) == 1000
    assert max(found) > 9 * 10**11


def test_splits_of_the_card_are_those_of_the_examples(config, chat):
    data = pipeline.build(config, chat)
    for task in data.tasks:
        for split in SPLITS:
            card = pipeline.card(data)["tasks"][task.config.name]["splits"][split]
            assert card["examples"] == len(task.splits[split])
            assert card["templates"] == dict(Counter(e.template for e in task.splits[split]))


def test_a_batch_far_along_reads_as_many_rows_as_the_first(config, chat, tmp_path, monkeypatch):
    prepare(config, chat, tmp_path / "set")
    data = load_data(replace(config, prepared=str(tmp_path / "set")), chat)
    rows = packed_rows(data, "train", 0).rows
    source, read, asked = rows._source, [], []

    class Counting:
        def __getitem__(self, row):
            read.append(row)
            return source[row]

    monkeypatch.setattr(rows, "_source", Counting())
    monkeypatch.setattr(prepared_rows, "permuted", lambda *a: asked.append(a) or permuted(*a))
    for step in (0, 1, 1_000_000):
        read.clear()
        asked.clear()
        _ = Batches(rows, 4, 0)[step]
        assert len(read) == len(asked) == 4


@pytest.mark.parametrize("name", ["test.jsonl", "rows-00000-of-00008.array_record"])
def test_a_folder_that_holds_files_of_somebody_else_is_left_alone(config, chat, tmp_path, name):
    (tmp_path / "set").mkdir()
    own = tmp_path / "set" / name
    own.write_text("mine")
    with pytest.raises(InputError, match=f"{name}: would be overwritten"):
        prepare(config, chat, tmp_path / "set")
    assert own.read_text() == "mine"
