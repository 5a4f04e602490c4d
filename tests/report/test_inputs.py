"""What a report reads: every file is checked, and what is wrong is named."""

import json

import pytest

from ift_jax.errors import InputError
from ift_jax.report.inputs import distinct_names, read_run, read_runs

ROW = {
    "model": "tuned", "task": "rating", "split": "test", "shots": 0, "metric": "accuracy",
    "value": 0.5, "count": 50, "low": 0.4, "high": 0.6,
}  # fmt: skip
MATRIX = {
    "model": "single", "stages": ["base", "probes"], "tasks": ["names"], "metrics": ["entity_f1"],
    "values": [[0.1], [0.9]],
}  # fmt: skip
LOST = {"value": 0.1, "low": 0.0, "high": 0.2}


def workdir(path, files=()):
    path.mkdir(parents=True)
    for name, content in {"config.json": "{}", **dict(files)}.items():
        (path / name).parent.mkdir(exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        (path / name).write_bytes(content)
    return path


def test_a_workdir_needs_its_config_alone(tmp_path):
    run = read_run(workdir(tmp_path / "w"))
    assert (run.name, run.rows, run.metrics) == ("w", [], [])
    assert run.missing == (
        "results.json", "metrics.jsonl", "samples.jsonl", "data/card.json", "data/preview.jsonl",
        "data/rejected.jsonl",
    )  # fmt: skip
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(InputError, match=r"w: is no workdir, there is no config\.json in it"):
        read_run(tmp_path / "w")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", "{", r"results\.json: not valid JSON"),
        ("results.json", {"rows": 3}, r"results\.json: rows: expected a list, got 3"),
        ("results.json", {}, r"results\.json: rows: is missing"),
        (
            "results.json",
            {"rows": [ROW, {**ROW, "value": "0.5"}]},
            r'results\.json: rows\[1\]\.value: expected a number, got "0\.5"',
        ),
        ("results.json", {"rows": [{**ROW, "seed": 1.5}]}, r"rows\[0\]\.seed: expected a whole"),
        ("results.json", {"rows": [{**ROW, "shots": True}]}, r"rows\[0\]\.shots: expected a whole"),
        (
            "results.json",
            {"rows": [], "matrices": [{**MATRIX, "values": [[0.1]]}]},
            r"results\.json: matrices\[0\]\.values: expected 2 rows of 1, one per stage and task",
        ),
        (
            "results.json",
            {"rows": [], "matrices": [{**MATRIX, "forgetting": [LOST, LOST]}]},
            r"matrices\[0\]\.forgetting: expected 1 values",
        ),
        ("metrics.jsonl", '{"step": 1}\n{broken\n', r"metrics\.jsonl, line 2: not valid JSON"),
        ("metrics.jsonl", '{"loss": 1.0}\n', r"metrics\.jsonl, line 1: step: is missing"),
        (
            "metrics.jsonl",
            '{"step": 1, "loss": null}\n',
            r"metrics\.jsonl, line 1: loss: expected a number, got null",
        ),
        ("metrics.jsonl", b'{"step": "\xff"}\n', r"metrics\.jsonl, line 1: not valid JSON"),
        ("metrics.jsonl", "3\n", r"metrics\.jsonl, line 1: expected an object, got 3"),
        ("samples.jsonl", '{"step": 1}\n', r"samples\.jsonl, line 1: task: is missing"),
        ("data/card.json", {"tasks": {}}, r"data/card\.json: mixture: is missing"),
        (
            "data/card.json",
            {"tasks": {"rating": {"records": "many"}}, "mixture": {}},
            r"data/card\.json: tasks\.rating\.rejected: is missing",
        ),
        (
            "data/preview.jsonl",
            '{"task": "a", "template": "b", "origin": "c", "tokens": [{"text": 1}]}\n',
            r"data/preview\.jsonl, line 1: tokens\[0\]\.trained: is missing",
        ),
        ("data/rejected.jsonl", "{}\n", r"data/rejected\.jsonl, line 1: task: is missing"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_field(tmp_path, file, content, said):
    with pytest.raises(InputError, match=said):
        read_run(workdir(tmp_path / "w", {file: content}))


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    text = '{"step": 1, "loss": 2.0}\n{"step": 2, "lo'
    run = read_run(workdir(tmp_path / "w", {"metrics.jsonl": text}))
    assert run.metrics == [{"step": 1, "loss": 2.0}]


def test_losses_that_are_no_numbers_can_be_read(tmp_path):
    [line] = read_run(
        workdir(tmp_path / "w", {"metrics.jsonl": '{"step": 1, "loss": NaN}\n'})
    ).metrics
    assert line["loss"] != line["loss"]


def test_a_study_brings_the_runs_that_it_names(tmp_path):
    results = {"rows": [ROW], "runs": ["runs/single"], "matrices": [MATRIX]}
    study = workdir(tmp_path / "study", {"results.json": results})
    workdir(study / "runs" / "single", {"results.json": {"rows": [ROW]}})
    runs = read_runs([study])
    assert [(run.name, run.is_study) for run in runs] == [("study", True), ("single", False)]
    assert [len(run.rows) for run in runs] == [1, 0]  # the study's rows are those of its runs
    (study / "runs" / "single" / "config.json").unlink()
    with pytest.raises(InputError, match="single: is no workdir"):
        read_runs([study])


def test_a_workdir_is_shown_once(tmp_path):
    one = workdir(tmp_path / "one")
    with pytest.raises(InputError, match="one: is given twice"):
        read_runs([one, tmp_path / "one" / ".." / "one"])


def test_names_are_as_short_as_they_can_be(tmp_path):
    a, b, c = (tmp_path / name for name in ("a/run", "b/run", "c/other"))
    assert distinct_names([a, c]) == ["run", "other"]
    assert distinct_names([a, b, c]) == ["a/run", "b/run", "other"]
