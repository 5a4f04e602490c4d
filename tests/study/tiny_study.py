"""A study that runs in seconds: a tiny model, two tasks in small files; and what reads studies."""

import json
from pathlib import Path

TEMPLATES = """
templates:
  rating: !Template
    name: Rating
    jinja: "How good is it? {{ review_body }} ||| {{ star_rating }}"
    answer_choices: 1 ||| 2 ||| 3 ||| 4 ||| 5
  topic: !Template
    name: Topic
    jinja: "What is it about? {{ text }} ||| {{ topic }}"
    answer_choices: tea ||| rain
"""


def write_files(folder: Path) -> Path:
    """The small data set of the tiny studies; returns its folder."""
    reviews = [{"review_body": f"Lamp {n}.", "star_rating": n % 5 + 1} for n in range(60)]
    # What is hot is tea and what is wet is rain, so that there is something to learn.
    topics = [
        {"text": f"{('Hot', 'Wet')[n % 2]} {n}", "topic": ("tea", "rain")[n % 2]} for n in range(80)
    ]
    for name, records in (("reviews", reviews), ("topics", topics)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "templates.yaml").write_text(TEMPLATES)
    return folder


def study_tree(model: Path, folder: Path, **study):
    """A config as a nested dict; `study` changes its section."""
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.3}
    return {
        "model": {"path": str(model)},
        "data": {
            "max_length": 128,
            "row_length": 128,
            "share_prefix": False,
            "tasks": [
                {
                    "name": "rating", "source": str(folder / "reviews.jsonl"),
                    "templates": str(folder / "templates.yaml"), "template_names": ["Rating"],
                    "split_by": ["review_body"], "metrics": ["accuracy"], **fractions,
                },
                {
                    "name": "topic", "source": str(folder / "topics.jsonl"),
                    "templates": str(folder / "templates.yaml"), "template_names": ["Topic"],
                    "split_by": ["text"],
                    "metrics": ["accuracy", "macro_f1"], **fractions,
                },
            ],
        },
        "train": {
            "num_steps": 4, "batch_size": 8, "save_every": 2, "eval_metrics": ["loss"],
            "num_samples": 0,
        },
        "optimizer": {"peak_lr": 3e-3, "warmup_steps": 0},
        "evaluation": {"shots": [0, 2]},
        "study": {
            "runs": [
                {"name": "first", "tasks": ["topic"], "config": {"train.num_steps": 40}},
                {"name": "single", "after": "first", "interpolations": [0.5]},
                {
                    "name": "replay", "after": "first", "replay": ["topic"],
                    "config": {"data.mixture.replay_share": 0.3},
                },
                {"name": "lora", "after": "first", "config": {"peft.method": "lora"},
                 "interpolations": [0.25]},
                {"name": "more", "after": "lora", "tasks": ["topic"], "scores": ["topic"]},
                {"name": "curve", "train_sizes": [4, 10], "scores": ["rating"],
                 "config": {"train.num_steps": 2}},
            ],
            **study,
        },
    }  # fmt: skip
