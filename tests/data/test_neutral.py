"""Neutral text: what measures and what is trained on, whatever the order of the source."""

import json

import numpy as np
import pytest

from ift_jax.data.embedded_names import embedded_names
from ift_jax.data.embedded_notes import embedded_notes
from ift_jax.data.embedded_reviews import embedded_reviews
from ift_jax.data.neutral import NeutralConfig, neutral_texts
from ift_jax.errors import InputError


def write(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def read(tokens):
    return [bytes(tokens.get(i)[0].astype(np.uint8)) for i in range(len(tokens.lengths))]


TEXTS = [f"text number {i}, of no task" for i in range(12)]


def test_the_order_of_the_source_and_repeats_decide_nothing(tmp_path, chat):
    config = {"num_texts": 4, "max_tokens": 64}
    found = [
        neutral_texts(NeutralConfig(source=write(tmp_path / f"{n}.txt", texts), **config), chat)
        for n, texts in enumerate([TEXTS, TEXTS[::-1], TEXTS + TEXTS[3:7]])
    ]
    for other in found[1:]:
        assert read(other.measured) == read(found[0].measured)
        assert read(other.rest) == read(found[0].rest)
    measured, rest = set(read(found[0].measured)), set(read(found[0].rest))
    assert (len(measured), len(rest)) == (4, 8)
    assert not measured & rest


def test_every_token_but_the_first_is_a_target_and_long_texts_are_cut(tmp_path, chat):
    source = write(tmp_path / "a.txt", ["a" * 100])
    before = chat.prompt_ids([{"role": "user", "content": "b" * 50}])
    texts = neutral_texts(NeutralConfig(source=source, max_tokens=10), chat)
    assert len(chat.prompt_ids([{"role": "user", "content": "b" * 50}])) == len(before)
    rows = texts.measuring_rows()
    assert texts.measured.lengths.tolist() == [10]
    assert rows[0].weights.sum() == 9
    assert (rows[0].targets[:9] == rows[0].tokens[1:10]).all()


def test_training_rows_go_on_without_end_and_are_a_function_of_seed_and_number(tmp_path, chat):
    source = write(tmp_path / "a.txt", TEXTS)
    texts = neutral_texts(NeutralConfig(source=source, num_texts=2, max_tokens=64), chat)
    rows, again, other = (texts.training_rows(seed) for seed in (0, 0, 1))
    at = [5 * rows.rows_per_epoch + i for i in range(rows.rows_per_epoch)]
    assert all((rows[i].tokens == again[i].tokens).all() for i in at)
    assert any((rows[i].tokens != other[i].tokens).any() for i in at)
    short = write(tmp_path / "b.txt", TEXTS[:2])
    with pytest.raises(InputError, match="none is left for text_kl_weight"):
        neutral_texts(NeutralConfig(source=short, num_texts=2), chat).training_rows(0)


def test_the_embedded_notes_serve_by_default_and_are_no_text_of_a_task(chat):
    texts = neutral_texts(NeutralConfig(num_texts=3), chat)
    assert (len(texts.measured.lengths), len(texts.rest.lengths)) == (3, 597)
    notes = {note["text"] for note in embedded_notes()}
    others = [r["review_body"] for r in embedded_reviews()] + [r["text"] for r in embedded_names()]
    assert not notes & {*others}
    assert all("{" not in note and 120 < len(note) < 420 for note in notes)


def test_a_column_is_named_or_found(tmp_path, chat):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "says": t}) + "\n" for i, t in enumerate(TEXTS)))
    found = neutral_texts(NeutralConfig(source=str(path), column="says"), chat)
    assert len(found.measured.lengths) == 12
    with pytest.raises(InputError, match=r"a\.jsonl.* has no text in 'text'; there"):
        neutral_texts(NeutralConfig(source=str(path)), chat)
    with pytest.raises(InputError, match="no such file"):
        neutral_texts(NeutralConfig(source=str(tmp_path / "none.txt")), chat)
    with pytest.raises(InputError, match="has no text of two tokens"):
        neutral_texts(NeutralConfig(source=write(tmp_path / "short.txt", ["a", "b"])), chat)


def test_lines_that_cannot_be_read_are_counted_and_refused_where_there_is_nothing_else(
    tmp_path, chat, capsys
):
    broken = ['{"text": "a whole line"}', "{broken", "{broken too"]
    found = neutral_texts(NeutralConfig(source=write(tmp_path / "a.jsonl", broken)), chat)
    assert len(found.measured.lengths) == 1
    assert "2 records left out; first: " in capsys.readouterr().err
    with pytest.raises(InputError, match=r"no text of two tokens; first: .*b\.jsonl:1: "):
        neutral_texts(NeutralConfig(source=write(tmp_path / "b.jsonl", broken[1:])), chat)


@pytest.mark.parametrize("change", [{"num_texts": -1}, {"max_tokens": 7}])
def test_counts_are_checked(change):
    with pytest.raises(InputError, match=f"config.neutral.{next(iter(change))}"):
        NeutralConfig(**change)
