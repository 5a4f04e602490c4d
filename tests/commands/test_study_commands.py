"""`ift study` and `ift report` as a user runs them."""

import html
import json
import shutil

import pytest
from workplace import Workplace

STUDY = """
import runpy
from ift_jax.config import task_config


def get_config():
    config = runpy.run_path("tiny.py")["get_config"]()
    names = task_config(
        name="names", source="embedded:names", templates="names",
        template_names=("Question about a name",), split_by=("text",), train_size=40,
        validation_size=5, test_size=10, metrics=("exact_match",),
    )
    config.data.tasks = (*config.data.tasks, names)
    config.data.max_length = 480
    config.train.num_samples = 2
    config.evaluation.shots = (0, 1)
    config.evaluation.max_items = 6
    config.study.runs = (
        {"name": "first", "tasks": ("names",)},
        {"name": "single", "after": "first", "interpolations": (0.5,)},
        {"name": "curve", "train_sizes": (4, 12), "scores": ("rating",)},
    )
    return config
"""
QUESTIONS = ["Does prompting help?", "How many examples suffice?", "What was forgotten?"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    """A folder with a finished study, and how that ended."""
    place = Workplace(tmp_path_factory.mktemp("place"), tiny_llama)
    (place.path / "own.py").write_text(STUDY)
    outcome = place.run("study", "--config=own.py", "--workdir=W")
    assert outcome.status == 0, outcome.stderr
    return place, outcome


def test_a_study_prints_what_it_found_and_leaves_its_page(finished):
    place, outcome = finished
    assert "study, part 8 of 8: curve-12-seed0 is trained and scored" in outcome.stderr
    page = (place.path / "W" / "report.html").read_text()
    results = json.loads((place.path / "W" / "results.json").read_text())
    for finding in results["findings"]:
        assert f"\n{finding['question']}\n" in outcome.stdout
        assert finding["answer"].split(",")[0] in page
    assert [finding["question"] for finding in results["findings"]][:3] == QUESTIONS
    for text in ("R[i][j]", "forgetting F", "How many examples", "single at 0.5"):
        assert text in page, text
    sampled = {
        run: [
            json.loads(line) for line in (place.path / f"W/runs/{run}-seed0/samples.jsonl").open()
        ]
        for run in ("first", "single")
    }
    assert html.escape(sampled["single"][0]["prompt"].split("\n")[0]) in page
    # Also of what the other run alone trains, held out of both.
    asked = [[(s["step"] > 0, s["task"], s["prompt"]) for s in own] for own in sampled.values()]
    assert asked[0] == asked[1]
    assert {s["task"] for s in sampled["single"]} == {"rating", "names"}
    # Again, it only shows what it found.
    again = place.run("study", "--config=own.py", "--workdir=W")
    assert (again.status, again.stdout) == (0, outcome.stdout)
    assert "part 1" not in again.stderr


def test_a_report_of_a_study_beside_a_run_has_figures_as_files(finished):
    place, _ = finished
    shutil.copytree(place.path / "W/runs/first-seed0", place.path / "own-run")
    outcome = place.run("report", "--workdirs=W,own-run", "--output=both.html", "--figures=figures")
    assert outcome.status == 0, outcome.stderr
    *_, made, wrote = outcome.stdout.splitlines()
    files = list((place.path / "figures").iterdir())
    assert made == f"wrote {len(files)} files to figures"
    assert wrote == "wrote both.html"
    assert {file.suffix for file in files} == {".svg", ".png"}
    page = (place.path / "both.html").read_text()
    assert "own-run" in page
    assert "https://" not in page.replace("http://www.w3.org", "")
    refusal = place.refusal("report", "--workdirs=W,none", "--output=x.html")
    assert refusal.startswith("none: ")
