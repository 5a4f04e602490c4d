"""What a model answered, item by item: in memory, and as the lines of a file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ift_jax.errors import InputError


class Prediction(NamedTuple):
    """What a model answered to one item. What was not computed keeps its default.

    Attributes:
        answer: the reference.
        ranked: the choice with the highest log-likelihood.
        generated: the generated text.
        references: all right answers, where there is more than `answer`.
        choices: what was ranked.
        scores: log-likelihood of each choice, summed over its tokens, in nats.
        num_choice_tokens: tokens of each choice, end of turn included.
        neutral_scores: as `scores`, behind a prompt that asks about nothing.
        log_likelihood: of `answer`, summed over its tokens, in nats.
        num_tokens: tokens of `answer`, end of turn included.
        num_correct: how many of them the model found the most likely, given those before.
    """

    answer: str
    ranked: str = ""
    generated: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    num_choice_tokens: tuple[int, ...] = ()
    neutral_scores: tuple[float, ...] = ()
    log_likelihood: float = 0.0
    num_tokens: int = 0
    num_correct: int = 0

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every right answer."""
        return self.references or (self.answer,)


class Line(NamedTuple):
    """A line of a predictions file: an item, how it was asked, and what came.

    Attributes:
        model, task, split, shots: as in the rows of results.json.
        seed: of the exemplars.
        shots_given: exemplars that the context had room for.
        template: the item's.
        key: digest of the record that the item was made from.
        metrics: what the run was asked for.
        prompt: all that the model read.
    """

    model: str
    task: str
    split: str
    shots: int
    seed: int
    shots_given: int
    template: str
    key: str
    metrics: tuple[str, ...]
    prompt: str
    prediction: Prediction

    def to_json(self) -> str:
        """One line of JSON. What the prediction leaves at its default is left out."""
        fields = self._asdict()
        prediction = fields.pop("prediction")
        default = Prediction("")
        said = {
            name: value
            for name, value in prediction._asdict().items()
            if name == "answer" or value != getattr(default, name)
        }
        fields["reference"] = said.pop("answer")
        return json.dumps({**fields, **said}, ensure_ascii=False) + "\n"


_TUPLES = ("metrics", "references", "choices", "scores", "num_choice_tokens", "neutral_scores")


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a predictions file.

    Raises:
        InputError: if there is no such file, or a line is none that `Line.to_json` wrote.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return list(_parse(str(path), text.split("\n")))


def _parse(path: str, rows: Sequence[str]) -> Iterator[Line]:
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        where = f"{path}, line {number}"
        try:
            fields: Any = json.loads(row)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: no JSON ({error.msg})") from error
        if not isinstance(fields, Mapping):
            raise InputError(f"{where}: expected an object, got {row[:40]!r}")
        values: dict[str, Any] = {n: tuple(v) if n in _TUPLES else v for n, v in fields.items()}
        values["answer"] = values.pop("reference", None)
        said = {name: values.pop(name) for name in Prediction._fields if name in values}
        missing = [n for n in Line._fields if n != "prediction" and n not in values]
        unknown = sorted(values.keys() - set(Line._fields))
        if missing or unknown or said["answer"] is None:
            wrong = f"has no {(missing or ['reference'])[0]!r}"
            if unknown and not missing:
                wrong = f"has the unknown field {unknown[0]!r}"
            raise InputError(f"{where}: {wrong}; `ift evaluate --predictions` writes such files")
        yield Line(**values, prediction=Prediction(**said))
