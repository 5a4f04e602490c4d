"""A folder with a small config and its data, from which the tests of this folder run `ift`."""

import json
from pathlib import Path

from running import Outcome, server

CONFIG = """
from ift_jax.config import default_config, task_config


def get_config():
    config = default_config()
    config.model.path = {model!r}
    config.data.tasks = (
        task_config(
            name="rating",
            source="reviews.jsonl",
            templates="reviews",
            template_names=("Predict the rating",),
            split_by=("review_body",),
            validation_fraction=0.2,
            test_fraction=0.2,
        ),
    )
    config.data.max_length = 256
    config.train.num_steps = 2
    config.train.batch_size = 4
    return config
"""


def review(number, **changes):
    return {"review_body": f"Lamp {number} shines.", "star_rating": number % 5 + 1, **changes}


class Workplace:
    def __init__(self, path: Path, model: Path):
        self.path = path
        (path / "tiny.py").write_text(CONFIG.format(model=str(model)))
        self.write_reviews([review(n) for n in range(40)])

    def write_reviews(self, records, name="reviews.jsonl") -> None:
        """A file of JSON lines; a record that is text stands in it as it is."""
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (self.path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def run(self, *arguments: str, **options: str) -> Outcome:
        return server().run(list(arguments), cwd=self.path, **options)

    def data(self, *overrides: str) -> Outcome:
        return self.run("data", "--config=tiny.py", *overrides)

    def refusal(self, *arguments: str, progress: bool = False) -> str:
        """What the one line says that a command which cannot be done prints."""
        outcome = self.run(*arguments)
        lines = outcome.stderr.splitlines()
        if progress:
            lines = [line for line in lines if line.startswith(("ift: ", "Traceback"))]
        assert outcome.status == 1, outcome
        assert len(lines) == 1, outcome.stderr
        assert lines[0].startswith("ift: "), outcome.stderr
        assert outcome.stdout == ""
        return lines[0].removeprefix("ift: ")
