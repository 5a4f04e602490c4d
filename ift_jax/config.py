"""RunConfig: the sections that live beside their users, composed and checked together."""

import ast
import contextlib
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ift_jax.data.config import DataConfig, TaskConfig
from ift_jax.data.neutral import NeutralConfig
from ift_jax.errors import InputError
from ift_jax.evaluation.metrics import check_metrics
from ift_jax.evaluation.tasks import EvaluationConfig
from ift_jax.hf.folder import read_json
from ift_jax.model_config import ModelConfig
from ift_jax.peft.config import PeftConfig
from ift_jax.sharding import MeshConfig
from ift_jax.study.config import StudyConfig, check_seed
from ift_jax.train.optimizer import OptimizerConfig
from ift_jax.train.remedies import RemediesConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The config's section `train`.

    Attributes:
        num_steps: optimizer steps; 0 takes num_epochs, above 0 it wins.
        num_epochs: how often every example is seen.
        batch_size: rows a step, over all devices. A packed row holds several examples.
        micro_batches: parts that a batch is computed in, one after the other.
        eval_every: steps between validations; 0 validates at the start and the end only.
        eval_items: validation examples of a task that are looked at; 0 for all.
        eval_metrics: what validation scores beside loss and token accuracy; () takes each
            task's own metrics, ("loss",) nothing more.
        eval_tasks: whose metrics validation takes: of "all" tasks with a validation split, also
            those that are not trained, or of the "trained" ones.
        select_by: what makes a checkpoint the best: validation "loss", the mean over all trained
            tokens of the validation splits of the tasks that are trained, or a metric, the mean
            over the tasks that are trained and scored by it. Replayed tasks are among them, and
            shares of the mixture do not matter.
        patience: stops after so many validations in a row that were no better than the best
            before; 0 never does.
        num_samples: prompts whose answers are generated at each validation, always the same.
        watch_drift: validation also says how far the weights and, on neutral text, the answers
            have moved from the base; keeps a copy of the base's weights while training.
        save_every: steps between checkpoints, beside those of validations; 0 saves at validations
            alone, or where eval_every is 0 too after each tenth of the run (ten steps at least).
            While one is written the one before is there as well. Above the number of steps
            it saves at the end alone.
        seed: of the data order, and of all that is drawn in training: adapters' starts, dropout,
            the order of neutral text, sampled labels.
    """

    num_steps: int = 0
    num_epochs: float = 1.0
    batch_size: int = 8
    micro_batches: int = 1
    eval_every: int = 0
    eval_items: int = 200
    eval_metrics: tuple[str, ...] = ()
    eval_tasks: str = "all"
    select_by: str = "loss"
    patience: int = 0
    num_samples: int = 4
    watch_drift: bool = False
    save_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_steps", "num_epochs", "eval_every", "eval_items", "patience", "num_samples",
            "save_every",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise InputError(f"config.train.{name}: must not be negative")
        if not math.isfinite(self.num_epochs):
            raise InputError(
                f"config.train.num_epochs: expected a finite number, got {self.num_epochs}"
            )
        check_seed(self.seed, "config.train.seed")
        if not self.num_steps and not self.num_epochs:
            raise InputError("config.train: num_steps and num_epochs are both 0")
        for name in ("batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"config.train.{name}: expected 1 or more")
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"config.train.batch_size={self.batch_size} is not a multiple of "
                f"micro_batches={self.micro_batches}"
            )
        for name, metrics in (
            ("select_by", (self.select_by,)),
            ("eval_metrics", self.eval_metrics),
        ):
            check_metrics(
                [m for m in metrics if m != "loss"], f"config.train.{name}: loss, or a metric"
            )
        if self.eval_tasks not in ("all", "trained"):
            raise InputError(
                f"config.train.eval_tasks: expected all or trained, got {self.eval_tasks!r}"
            )
        if self.patience and not self.eval_every:
            raise InputError(
                f"config.train.patience={self.patience}: counts validations on the way; set "
                "eval_every"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. Made by `build_run_config`, frozen from there on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    remedies: RemediesConfig = field(default_factory=RemediesConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    neutral: NeutralConfig = field(default_factory=NeutralConfig)

    def __post_init__(self) -> None:
        if self.remedies.holds_weights:
            held = "l2sp_weight" if self.remedies.l2sp_weight else "ewc_weight"
            if self.peft.method != "none":
                raise InputError(
                    f"config.remedies.{held}: holds the base's own weights near their start, and "
                    f"config.peft.method={self.peft.method} does not train them; kl_weight and "
                    "text_kl_weight work with adapters"
                )
            if self.optimizer.weight_decay:
                raise InputError(
                    f"config.remedies.{held}: pulls the weights to the base, and "
                    f"config.optimizer.weight_decay={self.optimizer.weight_decay} to 0; set it to 0"
                )
        names = [task.name for task in self.data.tasks]
        for task in self.remedies.fisher_tasks:
            if task not in names:
                raise InputError(
                    f"config.remedies.fisher_tasks: no task {task!r}{_closest(task, names)}"
                )


def default_config() -> ConfigDict:
    """All fields at their defaults, for a config file to change and return.

    Example:
        >>> config = default_config()
        >>> config.optimizer.peak_lr = 1e-5
    """
    return ConfigDict(dataclasses.asdict(RunConfig()), convert_dict=True)


def task_config(**fields: Any) -> ConfigDict:
    """A task with its defaults, for `config.data.tasks`; see `ift_jax.data.config.TaskConfig`."""
    known = {f.name for f in dataclasses.fields(TaskConfig)}
    for name in fields:
        if name not in known:
            raise InputError(f"task_config: no field {name!r}{_closest(name, known)}")
    return ConfigDict({**dataclasses.asdict(TaskConfig()), **fields})


def build_run_config(tree: Mapping[str, Any]) -> RunConfig:
    """Frozen, validated dataclasses from a nested mapping.

    Raises:
        InputError: naming the field, and the closest real one where it is unknown.

    Example:
        >>> build_run_config({"train": {"num_stps": 3}})
        Traceback (most recent call last):
            ...
        ift_jax.errors.InputError: config.train.num_stps: no such field; did you mean num_steps?
    """
    return _build(RunConfig, tree, "config")


def field_type(name: str) -> Any:
    """The annotated type of a field, named as on the command line: "data.tasks[0].train_size".

    Raises:
        InputError: naming the closest real field, if there is no such field or it is a section.
    """
    kind: Any = RunConfig
    path = "config"
    for part in name.split("."):
        match = re.fullmatch(r"(\w+)((?:\[\d+\])*)", part)
        if not match:
            raise InputError(
                f"{path}.{part}: expected the name of a field, such as train.num_steps"
            )
        field_name, indices = match.groups()
        fields = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if not fields:
            raise InputError(f"{path}: has no fields, so there is no {path}.{part}")
        path = f"{path}.{field_name}"
        if field_name not in fields:
            raise InputError(f"{path}: no such field{_closest(field_name, fields)}")
        kind = fields[field_name]
        for index in re.findall(r"\[\d+\]", indices):
            if typing.get_origin(kind) is not tuple:
                raise InputError(f"{path}: is not a list, so there is no {path}{index}")
            kind, path = typing.get_args(kind)[0], path + index
    if dataclasses.is_dataclass(kind):
        raise InputError(f"{path}: is a section; set one of its fields")
    return kind


def read_run_config(workdir: Path) -> RunConfig:
    """The config that a workdir was made with.

    Raises:
        InputError: if it has none, or that of a Hugging Face folder.
    """
    tree = read_json(workdir / "config.json")
    if "model_type" in tree:
        raise InputError(f"{workdir}: is a Hugging Face folder, not a workdir; name another")
    return build_run_config(tree)


def to_json(config: RunConfig) -> str:
    """The text of config.json."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The fields in which two configs differ, with both values."""
    flat_old, flat_new = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [
        f"{name} is {flat_old.get(name)!r} there and {flat_new.get(name)!r} here"
        for name in sorted(flat_old | flat_new)
        if flat_old.get(name) != flat_new.get(name)
    ]


def flat(value: Any, path: str = "config") -> dict[str, Any]:
    """A config's fields by their names on the command line.

    Example:
        >>> flat({"train": {"seed": 3}})
        {'config.train.seed': 3}
    """
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, child in items for k, v in flat(child, f"{path}.{name}").items()}


def _closest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


def _build(cls: Any, tree: Any, path: str) -> Any:
    if isinstance(tree, ConfigDict):  # ml_collections leaves those inside tuples as they are
        tree = tree.to_dict()
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: expected a section with fields, got {tree!r}")
    kinds = typing.get_type_hints(cls)
    values = {}
    for name, value in tree.items():
        if name not in kinds:
            raise InputError(f"{path}.{name}: no such field{_closest(name, kinds)}")
        values[name] = _convert(kinds[name], value, f"{path}.{name}")
    return cls(**values)


def _convert(kind: Any, value: Any, path: str) -> Any:
    """A value as the annotated type; int passes for float, list for tuple, nothing else."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {str(k): tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    if kind == str | tuple[str, ...] and isinstance(value, str) and value[:1] in ("(", "["):
        with contextlib.suppress(SyntaxError, ValueError):  # no list, but a text that begins so
            return _convert(tuple[str, ...], ast.literal_eval(value), path)
    if origin in (typing.Union, types.UnionType):
        for choice in args:
            try:
                return _convert(choice, value, path)
            except InputError:
                continue
    if origin is typing.Literal and type(value) is str:
        return value  # the dataclass names the values it knows
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise InputError(f"{path}: expected {wanted}, got {value!r} ({type(value).__name__})")
