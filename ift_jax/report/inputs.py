"""What a report reads: plain files of workdirs and of studies, checked where they enter.

This docstring and the shapes below are the contract with whoever writes these files. A field named
with `?` may be left out; fields that are not named here are ignored. Only config.json must exist;
another missing file leaves a section out, and the report says so. A file that is there and does not
hold what stands here stops the report with the file, and the line or field.

A workdir of `ift train`:

    config.json           the resolved config, any JSON object of sections
    results.json          RESULTS
    metrics.jsonl         METRICS a line. Of a step of training: loss, token_accuracy, tokens,
                          trained_tokens, learning_rate, gradient_norm, tokens_per_s. Of a
                          validation: validation_loss, validation_token_accuracy,
                          "validation/<task>/<metric>". A last line that does not end is left
                          out, as it is being written.
    samples.jsonl         SAMPLE a line: what was generated at a step of training
    data/card.json        CARD
    data/preview.jsonl    PREVIEW a line: training examples, token by token
    data/rejected.jsonl   REJECTED a line

A study's folder holds config.json and results.json too. Its results.json has the rows of all runs,
told apart by these fields of a ROW:

    model           the method: "base", "single", "multi", "replay", ...; a name, shown as it is
    seed?           of training. Rows that differ in the seed alone are shown as their mean, with
                    an interval from the lowest low to the highest high
    stage?          0 before tuning, 1 after the first tuning, ...; of a model's rows the table of
                    scores shows the last stage only
    train_size?     training examples. A model with rows of several sizes gets a learning curve,
                    and in the table of scores the largest size
    interpolation?  share of the tuned weights, 0 (base) to 1 (tuned). Such rows stand in the curve
                    of task score against retained score only
    template?, class?   a row of a part of the items

A task may have several metrics. The first in order of its rows is the one that figures show.
Beside its rows a study's results.json may have (RESULTS):

    target?    the task that was to be learned
    retained?  the tasks whose mean score is "retained score": the probes that count
    runs?      paths, relative to the folder, of workdirs whose curves, data and samples the
               report shows; scores come from the study's rows alone
    matrices?  MATRIX each: values[i][j] is R[i][j], the score of tasks[j] after stages[i];
               forgetting[j] is F of tasks[j], average_forgetting its mean over the tasks that
               backward_transfer is of
    changes?   CHANGE each: after minus before on the same items. `counted` is false where the
               model before tuning did not beat the baselines
    drift?     DRIFT each: a cheap early sign of forgetting, such as the distance of the weights
               from those of the model before, or the KL divergence on neutral text, with its
               unit in `measure`; `before?` is that model
    probes?    PROBE each: which probes count for the model that the target is tuned from, and why
    costs?     COST each: what a run took; seconds of its steps, compilation included
    findings?  FINDING each: what the numbers say, in sentences
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ift_jax.errors import InputError
from ift_jax.hf.folder import read_json

SCORE = {"value": float, "low": float, "high": float}
ROW = {
    "model": str, "task": str, "split": str, "shots": int, "metric": str, "count": int, **SCORE,
    "prompt_tokens?": float, "shots_given?": float, "template?": str, "class?": str, "seed?": int,
    "stage?": int, "train_size?": int, "interpolation?": float,
}  # fmt: skip
MATRIX = {
    "model": str, "seed?": int, "stages": [str], "tasks": [str], "metrics": [str],
    "values": [[float]], "low?": [[float]], "high?": [[float]],
    "forgetting?": [SCORE], "backward_transfer?": SCORE, "average_forgetting?": SCORE,
    "mean_change?": SCORE,
}  # fmt: skip
CHANGE = {
    "model": str, "task": str, "metric": str, "before": str, "after": str, **SCORE,
    "count?": int, "p?": float, "counted?": bool, "seed?": int,
}  # fmt: skip
DRIFT = {"model": str, "measure": str, "value": float, "seed?": int}
PROBE = {"task": str, "metric": str, "before": str, "counted": bool, "why": str}
COST = {
    "model": str, "seed": int, "train_size?": int, "steps": int, "tokens": int,
    "trained_tokens": int, "training_s": float, "scoring_s": float,
}  # fmt: skip
FINDING = {"question": str, "answer": str}
RESULTS = {
    "rows": [ROW], "chosen?": {"step": int, "by": str, "value?": float},
    "target?": str, "retained?": [str], "runs?": [str],
    "matrices?": [MATRIX], "changes?": [CHANGE], "drift?": [DRIFT], "probes?": [PROBE],
    "costs?": [COST], "findings?": [FINDING],
}  # fmt: skip
METRICS = {"step": int, str: float}
SAMPLE = {
    "step": int, "task": str, "template": str, "prompt": str, "reference": str, "completion": str,
}  # fmt: skip
PREVIEW = {"task": str, "template": str, "origin": str, "tokens": [{"text": str, "trained": bool}]}
REJECTED = {"task": str, "origin": str, "reason": str, "detail": str}
_MIXED = {
    "examples": int, "drawn": int, "epochs": float, "share": float, "tokens": int,
    "trained_tokens": int, "share_of_tokens": float, "share_of_trained_tokens": float,
}  # fmt: skip
CARD = {
    "tasks": {
        str: {
            "records": int, "rejected": {str: int}, "truncated": int,
            "duplicates?": int, "near_duplicates?": int, "in_other_split?": int,
            "contaminated?": int,
            "splits": {
                str: {
                    "examples": int, "tokens": int, "trained_tokens": int, "longest": int,
                    "templates": {str: int}, "answers": {str: int},
                }
            },
        }
    },
    "mixture": {"examples?": int, "tasks?": {str: _MIXED}},
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One workdir's or study's files; what does not exist is empty.

    Attributes:
        name: what the report calls it.
        folder: where it lies.
        config: config.json.
        results: results.json, or {}.
        metrics, samples, preview: lines of metrics.jsonl, samples.jsonl, data/preview.jsonl.
        card: data/card.json, or {}.
        rejected: the first lines of data/rejected.jsonl.
        missing: the files that do not exist, relative to the folder.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    preview: list[dict[str, Any]] = field(default_factory=list)
    card: Mapping[str, Any] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    missing: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of results.json."""
        return self.results.get("rows", [])

    @property
    def is_study(self) -> bool:
        """Whether its results are those of several runs."""
        return not self.results.keys().isdisjoint(("runs", "matrices", "changes", "target"))


OPTIONAL = (
    "results.json",
    "metrics.jsonl",
    "samples.jsonl",
    "data/card.json",
    "data/preview.jsonl",
    "data/rejected.jsonl",
)
MAX_REJECTED = 200  # lines kept of data/rejected.jsonl; the card counts all


def read_runs(folders: list[Path]) -> list[Run]:
    """Each folder's files, and those of the runs that a study names, named apart.

    Raises:
        InputError: naming the file and the line or field, if a folder is no workdir, is given
            twice, or holds a damaged file.
    """
    named = [folder / run for folder in folders for run in read_results(folder).get("runs", [])]
    listed = [*folders, *named]
    resolved = [folder.resolve() for folder in listed]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise InputError(f"{listed[number]}: is given twice; a report shows a workdir once")
    names = distinct_names(resolved)
    runs = [read_run(folder, name) for folder, name in zip(listed, names, strict=True)]
    return [*runs[: len(folders)], *map(_without_scores, runs[len(folders) :])]


def _without_scores(run: Run) -> Run:
    """A run of a study, whose results.json has its scores; of its own, which step they are of."""
    missing = tuple(file for file in run.missing if file != "results.json")
    chosen = run.results.get("chosen")
    return replace(run, results={"chosen": chosen} if chosen else {}, missing=missing)


def read_run(folder: Path, name: str = "") -> Run:
    """The files of one folder.

    Raises:
        InputError: see `read_runs`.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: is no workdir, there is no config.json in it")
    data = folder / "data"
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        config=read_json(folder / "config.json"),
        results=read_results(folder),
        metrics=list(_lines(folder / "metrics.jsonl", METRICS)),
        samples=list(_lines(folder / "samples.jsonl", SAMPLE)),
        preview=list(_lines(data / "preview.jsonl", PREVIEW)),
        card=_object(data / "card.json", CARD),
        rejected=list(_lines(data / "rejected.jsonl", REJECTED, MAX_REJECTED)),
        missing=tuple(file for file in OPTIONAL if not (folder / file).exists()),
    )


def read_results(folder: Path) -> dict[str, Any]:
    """A folder's results.json, or {} if there is none.

    Raises:
        InputError: naming the field that is not as RESULTS says.
    """
    results = _object(folder / "results.json", RESULTS)
    for number, matrix in enumerate(results.get("matrices", [])):
        where = f"{folder / 'results.json'}: matrices[{number}]"
        _check_sizes(matrix, where)
    return results


def distinct_names(folders: list[Path]) -> list[str]:
    """Of each path the shortest end that no other has.

    Example:
        >>> distinct_names([Path("/runs/a/x"), Path("/runs/b/x"), Path("/runs/c")])
        ['a/x', 'b/x', 'c']
    """
    return [_shortest_end(folder, folders) for folder in folders]


def _shortest_end(folder: Path, folders: list[Path]) -> str:
    for length in range(1, len(folder.parts)):
        end = folder.parts[-length:]
        if sum(other.parts[-length:] == end for other in folders) == 1:
            return "/".join(end)
    return str(folder)


def check(value: Any, shape: Any, where: str) -> None:
    """Whether a JSON value has a shape: a type, a list of a shape, or an object's fields.

    An object's shape names its fields, `?` behind those that may be missing; the key `str` is the
    shape of all fields that are not named.

    Raises:
        InputError: naming the first field that has not.

    Example:
        >>> check({"steps": [1, "2"]}, {"steps": [int], "seed?": int}, "results.json")
        Traceback (most recent call last):
            ...
        ift_jax.errors.InputError: results.json: steps[1]: expected a whole number, got "2"
    """
    for field_name, problem in _problems(value, shape, ""):
        raise InputError(
            f"{where}: {field_name}: {problem}" if field_name else f"{where}: {problem}"
        )


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _problems(value: Any, shape: Any, at: str) -> Iterator[tuple[str, str]]:
    got = f"got {json.dumps(value, ensure_ascii=False)[:60]}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield at, f"expected a list, {got}"
            return
        for number, one in enumerate(value):
            yield from _problems(one, shape[0], f"{at}[{number}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            yield at, f"expected an object, {got}"
            return
        named = {name.rstrip("?") for name in shape if isinstance(name, str)}
        for name in shape:
            if isinstance(name, str) and not name.endswith("?") and name not in value:
                yield f"{at}.{name}".lstrip("."), "is missing"
        for name, one in value.items():
            inner = shape.get(name, shape.get(f"{name}?")) if name in named else shape.get(str)
            if inner is not None:
                yield from _problems(one, inner, f"{at}.{name}".lstrip("."))
    elif type(value) is not shape and not (shape is float and type(value) is int):
        yield at, f"expected {_WORDS[shape]}, {got}"


def _object(path: Path, shape: Any) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    check(value, shape, str(path))
    return value


def _lines(path: Path, shape: Any, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, whole lines only."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") or (limit and number > limit):
                return
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not valid JSON ({error})") from error
            check(value, shape, where)
            yield value


def _check_sizes(matrix: Mapping[str, Any], where: str) -> None:
    """A matrix has a row per stage and a column per task."""
    rows, columns = len(matrix["stages"]), len(matrix["tasks"])
    for name in ("values", "low", "high"):
        sizes = [len(row) for row in matrix.get(name, [[0] * columns] * rows)]
        if sizes != [columns] * rows:
            raise InputError(
                f"{where}.{name}: expected {rows} rows of {columns}, one per stage and task"
            )
    for name in ("metrics", "forgetting"):
        if len(matrix.get(name, range(columns))) != columns:
            raise InputError(f"{where}.{name}: expected {columns} values, one per task")
