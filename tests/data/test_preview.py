"""The preview shows whole examples with exactly the trained tokens in brackets."""

import json
import re

import pytest
from conftest import make_tokenizer
from test_chat import bpe_tokenizer
from test_pipeline import TEMPLATES, Folder, reviews

from ift_jax.data import pipeline
from ift_jax.data.chat import Chat
from ift_jax.data.preview import card_text, preview, write_preview

WHOLE = {"validation_fraction": 0.0, "test_fraction": 0.0}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, Chat.of(make_tokenizer()))


def test_a_preview_shows_the_text_with_what_is_trained_in_brackets(folder):
    data = folder.build(reviews(1), task=WHOLE)
    [shown] = preview(data, 1, tokens=False, colour=False)
    head, text = shown.split("\n", 1)
    assert re.fullmatch(r"--- .*rating\.jsonl:1, template 'Rate', \d+ tokens, 2 trained", head)
    assert text == (
        "<|im_start|>user\nHow many stars? Review: Review number 0 says so. Answer:<|im_end|>\n"
        "<|im_start|>assistant\n⟦1<|im_end|>⟧"
    )


def test_a_preview_without_its_brackets_is_the_text(folder):
    record = {"text": "漢字 é 👩‍👩‍👧", "stars": 2, "title": "Ünïcode"}
    for name in ("Rate", "Write"):
        data = folder.build([record], task={**WHOLE, "template_names": (name,)})
        [shown] = preview(data, 1, tokens=False, colour=False)
        [one] = data.chat.encode((e.messages, e.completion) for e in data.examples("train"))
        text = shown.split("\n", 1)[1]
        assert text.replace("⟦", "").replace("⟧", "") == one.text
        assert text.count("⟦") == text.count("⟧") == 1
        completion = data.examples("train")[0].completion
        assert text.endswith(f"⟦{completion}<|im_end|>⟧")


def test_a_token_across_the_boundary_is_shown_whole_as_trained(folder):
    template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    folder.chat = Chat.of(bpe_tokenizer([(":", "3")], template))
    data = folder.build([{"text": "a", "stars": 3, "title": ""}], task=WHOLE)
    [shown] = preview(data, 1, tokens=False, colour=False)
    assert shown.endswith("Answer⟦:3</s>⟧")


def test_a_file_of_previews_holds_the_text_token_by_token(folder, tmp_path):
    records = [{"text": f"漢字 👩‍👩‍👧 {n}", "stars": 2, "title": "Ünïcode"} for n in range(3)]
    data = folder.build(records, task=WHOLE)
    write_preview(data, tmp_path / "preview.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "preview.jsonl").read_text().splitlines()]
    assert len(lines) == 2  # a few of each task
    examples = data.examples("train")
    for line, example, number in zip(lines, examples, range(2), strict=False):
        [one] = data.chat.encode([(example.messages, example.completion)])
        ids, trained = data.tokens("train").get(number)
        assert len(line["tokens"]) == len(ids)
        assert [token["trained"] for token in line["tokens"]] == trained.tolist()
        assert "".join(token["text"] for token in line["tokens"]) == one.text
        said = "".join(token["text"] for token in line["tokens"] if token["trained"])
        assert said == f"{example.completion}<|im_end|>"
        assert (line["task"], line["template"]) == ("rating", example.template)
        assert line["origin"] == example.origin


def test_token_by_token_shows_numbers_ids_and_names(folder):
    data = folder.build(reviews(1), task=WHOLE)
    [shown] = preview(data, 1, tokens=True, colour=False)
    lines = shown.split("\n")[1:]
    ids = data.tokens("train").get(0)[0].tolist()
    assert [int(line.split()[0]) for line in lines] == list(range(len(ids)))
    assert [int(line.split()[1]) for line in lines] == ids
    assert lines[0].split()[2] == "<|im_start|>"
    assert [line.split()[2] for line in lines[-2:]] == ["⟦1⟧", "⟦<|im_end|>⟧"]
    assert sum("⟦" in line for line in lines) == 2


def test_colour_surrounds_what_is_trained(folder):
    data = folder.build(reviews(1), task=WHOLE)
    [shown] = preview(data, 1, tokens=False, colour=True)
    assert shown.endswith("\033[1;32m⟦1<|im_end|>⟧\033[0m")


def test_as_many_examples_are_shown_as_asked_for(folder):
    data = folder.build(reviews(5), task=WHOLE)
    assert len(list(preview(data, 2, tokens=False, colour=False))) == 2
    assert len(list(preview(data, 50, tokens=False, colour=False))) == 5
    assert list(preview(data, 0, tokens=False, colour=False)) == []


def test_the_card_as_text_names_tasks_splits_answers_and_rejections(folder):
    data = folder.build([*reviews(50), "{broken", *reviews(3)])
    lines = card_text(pipeline.card(data)).split("\n")
    assert lines[0] == (
        "task rating: 54 records, 1 rejected (broken_json 1), 3 duplicates, 0 truncated"
    )
    for line, split in zip(lines[1:], ("train", "validation", "test"), strict=False):
        assert line.split()[0] == split
        assert int(line.split()[1]) == len(data.examples(split))
    assert "answers 1: " in lines[1]
    assert lines[-1] == f"  template 'Rate': {len(data.examples('train'))} training examples"


def test_of_many_answers_the_card_names_the_most_frequent(folder):
    answers = [f"a{n}" for n in range(60)] + ["often"] * 3
    records = [
        {**review, "stars": answer} for review, answer in zip(reviews(63), answers, strict=True)
    ]
    path = folder.path / "own.yaml"
    path.write_text(TEMPLATES.replace("1 ||| 2 ||| 3 ||| 4 ||| 5", "'{{ stars }} ||| none'"))
    task = {"templates": str(path), "validation_fraction": 0.0, "test_fraction": 0.0}
    text = card_text(pipeline.card(folder.build(records, task=task)))
    line = next(line for line in text.splitlines() if line.startswith("  train"))
    assert "answers often: 3, " in line
    assert line.endswith(" and 41 others")
