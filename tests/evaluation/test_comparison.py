"""Two files of predictions: what is compared, with which test, and what is refused."""

import json

import numpy as np
import pytest
from scipy import stats

from ift_jax.errors import InputError
from ift_jax.evaluation.comparison import compare, comparison_table, main
from ift_jax.evaluation.predictions import Line, Prediction, read_lines

ANSWERS = ["good", "bad"] * 20


def line(number, right, *, model="base", shots=0, seed=0, **changes):
    answer = ANSWERS[number]
    ranked = answer if right else {"good": "bad", "bad": "good"}[answer]
    prediction = Prediction(
        answer, ranked=ranked, generated=f"{ranked} ü", choices=("good", "bad"),
        scores=(-1.0, -2.0), num_choice_tokens=(1, 1), log_likelihood=-1.5, num_tokens=2,
        num_correct=1,
    )  # fmt: skip
    fields = {"task": "rating", "split": "test", "key": f"{number:04x}", "template": "Rate",
              "metrics": ("accuracy", "token_f1"), "prompt": "Well?",
              "shots_given": shots}  # fmt: skip
    return Line(model=model, shots=shots, seed=seed, prediction=prediction, **{**fields, **changes})


def write(path, lines):
    path.write_text("".join(each.to_json() for each in lines), encoding="utf-8")
    return path


def right(seed, share):
    return np.random.default_rng(seed).random(len(ANSWERS)) < share


@pytest.fixture
def files(tmp_path):
    first, second = right(0, 0.5), right(1, 0.8)
    return (
        write(tmp_path / "a.jsonl", [line(n, r) for n, r in enumerate(first)]),
        write(
            tmp_path / "b.jsonl", [line(n, r, model="tuned") for n, r in enumerate(second)][::-1]
        ),
    )


def test_a_line_is_read_back_as_it_was(tmp_path):
    lines = [
        line(3, True),
        line(4, False)._replace(prediction=Prediction("x", references=("x", "y"))),
    ]
    assert read_lines(write(tmp_path / "p.jsonl", lines)) == lines
    fields = json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"task", "split", "shots", "key", "prompt", "reference", "ranked", "generated",
            "scores"} <= fields.keys()  # fmt: skip


def test_items_are_paired_by_what_they_are_made_from(files):
    first, second = right(0, 0.5), right(1, 0.8)
    accuracy, f1 = compare(*files)
    assert (accuracy["metric"], f1["metric"]) == ("accuracy", "token_f1")
    assert accuracy["first"] == {"model": "base", "shots": 0, "value": first.mean()}
    assert accuracy["second"] == {"model": "tuned", "shots": 0, "value": second.mean()}
    assert accuracy["difference"] == pytest.approx(second.mean() - first.mean())
    assert accuracy["low"] < accuracy["difference"] < accuracy["high"]
    discordant = int((first & ~second).sum()), int((second & ~first).sum())
    expected = stats.binomtest(discordant[0], sum(discordant)).pvalue
    assert accuracy["p"] == pytest.approx(expected)
    assert (accuracy["test"], accuracy["count"]) == ("McNemar's exact test", 40)
    assert f1["test"] == "approximate randomization"
    turned = compare(*files[::-1])[0]
    assert turned["difference"] == pytest.approx(-accuracy["difference"])


def test_every_number_of_shots_is_compared_with_every_other(tmp_path):
    a = write(tmp_path / "a", [line(n, n % 3, shots=s) for s in (0, 5) for n in range(9)])
    b = write(tmp_path / "b", [line(n, True, model="tuned") for n in range(9)])
    rows = compare(a, b, ["accuracy"])
    assert [(row["first"]["shots"], row["second"]["shots"]) for row in rows] == [(0, 0), (5, 0)]


def test_seeds_are_averaged_and_tested_by_the_bootstrap(tmp_path):
    a = write(
        tmp_path / "a", [line(n, n % (s + 2), shots=5, seed=s) for s in (0, 1) for n in range(12)]
    )
    b = write(tmp_path / "b", [line(n, True) for n in range(12)])
    [row] = compare(a, b, ["accuracy"])
    assert row["first"]["value"] == pytest.approx((6 / 12 + 8 / 12) / 2)
    assert row["test"] == "approximate randomization"


def test_metrics_can_be_computed_that_were_not_asked_for(files):
    assert compare(*files, ["perplexity", "macro_f1"])[0]["difference"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "1 items are in one of the two only"),
        (lambda lines: [*lines, lines[0]], "holds item 0000 twice"),
        (lambda lines: [e._replace(task="other") for e in lines], "have no task, split and"),
        (lambda lines: [e._replace(split="train") for e in lines], "have no task, split and"),
        (
            lambda lines: [e._replace(prediction=Prediction("?", scores=(1.0,))) for e in lines],
            "other references for the same items",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused(tmp_path, change, message):
    lines = [line(n, True) for n in range(9)]
    a, b = write(tmp_path / "a", lines), write(tmp_path / "b", change(lines))
    with pytest.raises(InputError, match=message):
        compare(a, b)


def test_a_metric_that_the_files_do_not_hold_is_refused(files):
    with pytest.raises(
        InputError, match="metric accuracy_calibrated cannot be computed from predictions"
    ):
        compare(*files, ["accuracy_calibrated"])
    with pytest.raises(InputError, match="no metric 'acc'"):
        compare(*files, ["acc"])


def test_an_empty_file_is_named(files, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="empty: holds no predictions"):
        compare(files[0], tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: no JSON"),
        ("[1]", "line 1: expected an object"),
        ('{"model": "base"}', "line 1: has no 'task'"),
        ('\n{"model": 1, "zzz": 2}', "line 2: has no 'task'"),
    ],
)
def test_a_file_of_something_else_is_refused_by_its_line(tmp_path, text, message):
    (tmp_path / "p").write_text(text)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "p")
    with pytest.raises(InputError, match="no: cannot be read"):
        read_lines(tmp_path / "no")


def test_fields_that_no_line_has_are_refused(tmp_path):
    fields = json.loads(line(0, True).to_json())
    (tmp_path / "p").write_text(json.dumps({**fields, "zzz": 1}))
    with pytest.raises(InputError, match="has the unknown field 'zzz'"):
        read_lines(tmp_path / "p")


def test_the_command_prints_a_line_per_comparison_and_writes_the_rows(files, tmp_path, capsys):
    main([*map(str, files), "--metrics=accuracy", f"--output={tmp_path / 'rows.json'}"])
    rows = compare(*files, ["accuracy"])
    assert capsys.readouterr().out == comparison_table(rows) + "\n"
    assert json.loads((tmp_path / "rows.json").read_text()) == {"rows": rows}
    assert comparison_table(rows).startswith("rating accuracy: base at 0 shots 40.0, tuned at 0")
    with pytest.raises(SystemExit, match="comparison: no: cannot be read"):
        main(["no", "no"])
