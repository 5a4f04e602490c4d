"""What is kept and where it goes: own splits, groups, repeats, near-repeats, leaks, strata."""

from collections import Counter

import pytest
from test_pipeline import TEMPLATES, Folder, by_split, prompts, reviews

from ift_jax.data import collect, pipeline
from ift_jax.data.config import SPLITS, DataConfig, TaskConfig
from ift_jax.data.splits import assign_split
from ift_jax.errors import InputError

LONG = (
    "I have had this lamp on my desk for three weeks now and it still gives a warm and even "
    "light, the switch feels solid, and my cat has not yet managed to push it over."
)


@pytest.fixture
def folder(tmp_path, chat):
    return Folder(tmp_path, chat)


def review(text, stars=3, title="Lamp"):
    return {"text": text, "stars": stars, "title": title}


def counts(data, task=0):
    return data.tasks[task].removed


def several(folder, tasks, **data):
    """A data set of tasks given as {name: (records, fields of the task)}."""
    configs = tuple(
        folder.config(records, name=name, task=fields).tasks[0]
        for name, (records, fields) in tasks.items()
    )
    return pipeline.build(DataConfig(tasks=configs, **data), folder.chat)


# Splits


def test_a_record_goes_where_the_digest_of_its_text_says(folder):
    data = folder.build(reviews(200))
    for task in data.tasks:
        for split in SPLITS:
            assert task.splits[split]
            for example in task.splits[split]:
                assert assign_split(example.key, task.config.fractions) == split


def test_chunks_are_no_boundary(folder, monkeypatch):
    records = [*reviews(120), *reviews(20), "no json"]
    whole = folder.build(records)
    monkeypatch.setattr(collect, "CHUNK", 7)
    chunked = folder.build(records)
    for split in SPLITS:
        assert prompts(chunked, split) == prompts(whole, split)
    assert counts(chunked) == counts(whole) == {**counts(whole), "duplicates": 20}
    assert pipeline.card(chunked) == pipeline.card(whole)


def test_a_sets_own_splits_are_kept_and_training_gives_up_what_they_hold(folder):
    shared = reviews(60)
    validation = folder.config([*shared[40:45], *reviews(5, 900)], name="validation")
    test = folder.config([*shared[:10], *shared[43:45]], name="test")
    data = folder.build(
        shared,
        task={
            "validation_source": validation.tasks[0].source,
            "test_source": test.tasks[0].source,
        },
    )
    found = {split: set(prompts(data, split)) for split in SPLITS}
    assert len(found["test"]) == 12
    assert len(found["validation"]) == 8  # two of its ten stand in test
    assert len(found["train"]) == 60 - 15
    assert not found["train"] & (found["test"] | found["validation"])
    assert counts(data)["in_other_split"] == 15 + 2
    assert data.tasks[0].num_records == 60 + 10 + 12


def test_a_group_is_never_parted_and_its_text_leaks_nowhere(folder):
    records = [review(f"Text {n % 50} of all.", title=f"Lamp {n % 23}") for n in range(300)]
    data = folder.build(records, task={"group_by": ("title",), "split_by": ("text",)})
    titles = {
        split: {records[int(e.origin.rsplit(":", 1)[1]) - 1]["title"] for e in data.examples(split)}
        for split in SPLITS
    }
    assert all(titles.values())
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not titles[a] & titles[b]
    texts = by_split(data)
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["validation"] & texts["test"]


def test_text_held_out_by_one_task_is_not_trained_by_another(folder):
    records = reviews(100)
    data = several(
        folder,
        {
            "a": (records, {"test_fraction": 1.0, "validation_fraction": 0.0, "weight": 0.0}),
            "b": ([*records[:30], *reviews(50, 500)],
                  {"test_fraction": 0.0, "validation_fraction": 0.0}),
        },
    )  # fmt: skip
    assert len(data.tasks[1].splits["train"]) == 50
    assert counts(data, 1)["in_other_split"] == 30


# Repeats and leaks


def test_near_duplicates_are_dropped_and_counted_where_asked(folder):
    near = [review(LONG), review(LONG.replace("three", "four")), review(LONG + " Good.")]
    records = [*reviews(40), *near]
    fractions = {"validation_fraction": 0.0, "test_fraction": 0.0}
    assert len(folder.build(records, task=fractions).examples("train")) == 43
    # The forty differ in a number only, but are too short to share 80 % of their word runs.
    data = folder.build(records, task={**fractions, "near_duplicates": 0.8})
    assert counts(data)["near_duplicates"] == 2
    assert len([p for p in prompts(data, "train") if "my cat" in p]) == 1


def test_training_text_that_holds_evaluation_text_is_dropped(folder):
    leak = review(f"My sister wrote: {LONG} I agree.")
    clean = review("A lamp, and nothing that anybody else has said about any lamp before this.")
    held_out = {"test_fraction": 1.0, "validation_fraction": 0.0, "weight": 0.0}
    trained = {"test_fraction": 0.0, "validation_fraction": 0.0}
    tasks = {"probe": ([review(LONG)], held_out), "rating": ([leak, clean], trained)}
    assert len(several(folder, tasks).tasks[1].splits["train"]) == 2
    data = several(folder, tasks, decontaminate=("probe",))
    assert [e.messages[0]["content"] for e in data.tasks[1].splits["train"]] == [
        f"How many stars? Review: {clean['text']} Answer:"
    ]
    assert counts(data, 1)["contaminated"] == 1
    with pytest.raises(InputError, match=r"config\.data\.decontaminate: no task 'nope'"):
        several(folder, tasks, decontaminate=("nope",))
    assert (
        several(folder, tasks, decontaminate=("probe",), decontaminate_ngram=40)
        .tasks[1]
        .splits["train"]
    )


# Subsets


def test_strata_keep_their_shares_at_every_size(folder):
    records = [review(f"Review number {n}.", stars=1 if n % 4 else 5) for n in range(400)]
    task = {"stratify_by": "stars", "validation_fraction": 0.0, "test_fraction": 0.0}
    before: list[str] = []
    for size in (20, 40, 100):
        data = folder.build(records, task={**task, "train_size": size})
        stars = Counter(e.completion for e in data.examples("train"))
        assert stars == {"1": size * 3 // 4, "5": size // 4}
        assert prompts(data, "train")[: len(before)] == before
        before = prompts(data, "train")
    with pytest.raises(InputError, match="exclude each other"):
        TaskConfig(name="x", balance_by="a", stratify_by="b", train_size=1)
    with pytest.raises(InputError, match="compose subsets; set train_size"):
        TaskConfig(name="x", stratify_by="b")


def test_a_column_with_a_dash_is_read_with_an_underscore(folder):
    (folder.path / "dash.yaml").write_text(
        TEMPLATES.replace("{{ text }}", "{{ review_text }}").replace("{{ title }}", "a lamp")
    )
    records = [{"review-text": f"Fine {n}", "stars": 1 + n % 5} for n in range(5)]
    data = folder.build(
        records,
        task={
            "templates": str(folder.path / "dash.yaml"), "split_by": ("review_text",),
            "validation_fraction": 0.0, "test_fraction": 0.0,
        },
    )  # fmt: skip
    assert len(data.examples("train")) == 5
