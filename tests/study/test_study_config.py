"""The data of `--config=study`: what docs/study.md says it scores, on the real sets."""

import runpy
from collections import Counter
from itertools import combinations

import pytest
from conftest import ROOT

from ift_jax.config import build_run_config
from ift_jax.data import pipeline
from ift_jax.data.config import SPLITS
from ift_jax.pretrained import load_chat
from ift_jax.study.plan import make_plan

TEST_ITEMS = {
    "rating": 250, "names": 100, "entities": 100, "topic": 100, "nli": 100, "intent": 100,
    "question_type": 100, "translation": 60, "summary": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(shared_data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFT_JAX_DATA", str(shared_data))
        tree = runpy.run_path(str(ROOT / "configs" / "study.py"))["get_config"]()
    return build_run_config(tree.to_dict())


@pytest.fixture(scope="module")
def data(config, smollm2):
    return pipeline.build(config.data, load_chat(smollm2))


@pytest.mark.slow
def test_the_study_scores_as_many_items_of_each_task_as_it_says(data):
    found = {task.config.name: task for task in data.tasks}
    assert {name: len(task.splits["test"]) for name, task in found.items()} == TEST_ITEMS
    trained = {name: len(task.splits["train"]) for name, task in found.items()}
    assert trained == {**dict.fromkeys(TEST_ITEMS, 100), "rating": 1000}
    # Of 77 intents the templates know ten.
    assert [name for name, task in found.items() if task.rejected] == ["intent"]


@pytest.mark.slow
def test_answers_of_the_study_are_balanced_where_it_says_so(data):
    found = {task.config.name: task for task in data.tasks}
    stars = Counter(e.completion for e in found["rating"].splits["train"])
    assert stars == dict.fromkeys("12345", 200)
    intents = found["intent"].splits
    assert len(intents["test"][0].choices) == 10
    for split in SPLITS:
        counts = Counter(e.completion for e in intents[split])
        assert len(counts) == 10
        assert max(counts.values()) - min(counts.values()) <= 1
    topics = Counter(e.completion for e in found["topic"].splits["test"])
    assert topics == dict.fromkeys(("World", "Sports", "Business", "Science or Technology"), 25)


@pytest.mark.slow
def test_no_text_of_the_study_stands_in_two_splits(data):
    for task in data.tasks:
        keys = {split: {e.key for e in task.splits[split]} for split in SPLITS}
        for one, other in combinations(SPLITS, 2):
            assert not keys[one] & keys[other], task.config.name


def test_the_studys_runs_are_the_issues_kinds(config, tmp_path):
    plan = {planned.key: planned for planned in make_plan(config, tmp_path)}
    assert list(plan)[:5] == [
        "stage1-seed0", "single-seed0", "replay-seed0", "multitask-seed0", "lora-seed0",
    ]  # fmt: skip
    assert plan["stage1-seed0"].trains == tuple(name for name in TEST_ITEMS if name != "rating")
    for name in ("single", "replay", "multitask", "lora"):
        assert plan[f"{name}-seed0"].after == "stage1-seed0"
    sizes = [planned.train_size for planned in plan.values() if planned.train_size]
    assert sizes == [50, 100, 250, 500, 1000]
