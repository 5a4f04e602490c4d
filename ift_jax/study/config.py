"""The config's section `study`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ift_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One entry of `study.runs`: a tuning by the config, with what it changes in it.

    Attributes:
        name: of its folder, and the "model" of its rows.
        after: the entry whose model it goes on from, seed by seed; "" starts from
            config.model.path.
        tasks: what it trains; () is the study's task alone. All other tasks get weight 0, and
            validation leaves them out unless "train.eval_tasks" is "all" in `config`.
        replay: tasks that it trains as well, with replay set; it needs
            {"data.mixture.replay_share": ...} in `config`.
        config: further fields, by their dotted names: {"peft.method": "lora"}. A run that goes on
            from another has its weights as that left them, in floats, unless "model.quantize"
            stands here.
        train_sizes: a run for each of these numbers of training examples of the study's task: a
            learning curve.
        scores: the tasks that it is scored on; () is the study's task and all probes.
        interpolations: shares of the way from the model that it went on from (0) to the one that it
            made (1), at which a model of weights in between is scored too.
    """

    name: str = ""
    after: str = ""
    tasks: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    train_sizes: tuple[int, ...] = ()
    scores: tuple[str, ...] = ()
    interpolations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"config.study.runs: {self.name}"
        if not self.name or not all(c.isalnum() or c in "_." for c in self.name):
            raise InputError(
                "config.study.runs: a run's name is a folder's: letters, digits, _ and ., "
                f"got {self.name!r}"
            )
        if self.name in ("base", "majority", "copy", "random", "tuned"):
            raise InputError(f"{where}: the name stands for something else in results")
        if min(self.train_sizes, default=1) < 1 or _repeats(self.train_sizes):
            raise InputError(
                f"{where}.train_sizes: expected different numbers above 0, got {self.train_sizes}"
            )
        if not all(0 < share < 1 for share in self.interpolations) or _repeats(self.interpolations):
            raise InputError(
                f"{where}.interpolations: expected different numbers above 0 and below 1, "
                f"got {self.interpolations}"
            )


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The config's section `study`.

    The model of config.model.path is scored at each number of `evaluation.shots`; then come the
    runs. A finished study can be given more of them, and more seeds.

    Attributes:
        task: the one that is to be learned; "" is the first of data.tasks.
        probes: the tasks that show what was forgotten; () is all others.
        runs: in an order in which each comes after what it goes on from. The first that goes on
            from another, trains the study's task alone and is scored on everything is what
            the others after the same one are compared with.
        seeds: each repeats all runs, one seed after the other, as train.seed: another order of the
            same examples, and other starts of adapters.
        keep_models: False deletes a run's parameters when it is scored, unless another run goes on
            from them. Optimizer states are deleted in any case.
    """

    task: str = ""
    probes: tuple[str, ...] = ()
    runs: tuple[StudyRun, ...] = ()
    seeds: tuple[int, ...] = (0,)
    keep_models: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or _repeats(self.seeds):
            raise InputError(f"config.study.seeds: expected different numbers, got {self.seeds}")
        for seed in self.seeds:
            check_seed(seed, "config.study.seeds")
        names = [run.name for run in self.runs]
        for number, run in enumerate(self.runs):
            where = f"config.study.runs: {run.name}"
            if run.name in names[:number]:
                raise InputError(f"{where}: is there twice")
            before = next((r for r in self.runs[:number] if r.name == run.after), None)
            if run.after and before is None:
                raise InputError(
                    f"{where}.after: no run {run.after!r} stands before it; there are "
                    f"{', '.join(names[:number]) or 'none'}"
                )
            if before is not None and before.train_sizes:
                raise InputError(
                    f"{where}.after: {run.after} has several train_sizes, so that it is open "
                    "which of its models is meant"
                )


def check_seed(seed: int, name: str) -> None:
    """Raises InputError for a seed of more than 32 bits, of which JAX would take the last ones."""
    if not 0 <= seed < 2**32:
        raise InputError(f"{name}: expected 0 to 2**32 - 1, got {seed}")


def _repeats(values: tuple[Any, ...]) -> bool:
    return len(set(values)) < len(values)
