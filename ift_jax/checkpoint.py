"""Checkpoints: parameters, optimizer state and position of a run, as one atomic orbax step."""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from ift_jax.data.chat import Chat
from ift_jax.errors import InputError, one_line
from ift_jax.interpolation import interpolated
from ift_jax.language_model import LanguageModel
from ift_jax.model_config import locate
from ift_jax.models.decoder import Params, Remat
from ift_jax.models.quantization import stored_kind
from ift_jax.peft.adapter import FROZEN, TRAINED, Adapter
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_configured
from ift_jax.sharding import param_shardings
from ift_jax.train.step import TrainState

_FOLDER = "checkpoints"
# Steps on their way out are moved here first, so that whatever is cut off, a step is whole or gone.
_DELETED = "deleted"


class Position(NamedTuple):
    """Where a run stands; with the config it decides all that comes after.

    Attributes:
        step: finished steps; the next batch is batch `step`, since the data order is a
            pure function of (seed, step).
        score: what validation said of these parameters, higher is better; None if it did
            not look at them.
    """

    step: int
    score: float | None


class Checkpoints:
    """The checkpoints of a workdir. The latest and the best one are kept."""

    def __init__(self, workdir: Path):
        self.folder = (workdir / _FOLDER).resolve()
        options = ocp.CheckpointManagerOptions(
            create=True, enable_async_checkpointing=False, todelete_subdir=_DELETED
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @staticmethod
    def existing(workdir: Path) -> "Checkpoints":
        """Those of a workdir that is only read, in which nothing is created.

        Raises:
            InputError: if it has none.
        """
        folder = workdir / _FOLDER
        if folder.is_dir():
            return Checkpoints(workdir)
        if (workdir / "runs").is_dir():
            raise InputError(
                f"{workdir}: is a study; give one of the runs in {workdir / 'runs'} whose models "
                "it kept"
            )
        raise InputError(f"{folder}: holds no checkpoint; run `ift train` first")

    def save(self, state: TrainState, score: float | None, frozen: Any = None) -> None:
        """Writes the state, then removes what is neither the latest nor the best.

        Args:
            frozen: arrays that an adapter drew at its start and never trains, if it has any.
                They are stored rather than drawn again: another release may draw differently.
        """
        step = int(state.step)
        beside = {"frozen": ocp.args.PyTreeSave(frozen)} if frozen else {}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(state.params),
                optimizer=ocp.args.PyTreeSave(state.opt_state),
                position=ocp.args.JsonSave(Position(step, score)._asdict()),
                **beside,
            ),
        )
        keep = {step, self.best()}
        self._delete([old for old in self._manager.all_steps() if old not in keep])

    def latest(self) -> int | None:
        """The last step saved; None if there is none."""
        return self._manager.latest_step()

    def position(self, step: int) -> Position:
        """What was stored with a step."""
        stored = self._restore(step, position=ocp.args.JsonRestore())
        return Position(**stored.position)

    def best(self) -> int | None:
        """The step with the highest score, the earliest of equals; else the latest."""
        scored = [(self.position(s).score, s) for s in sorted(self._manager.all_steps())]
        judged = [(score, -step) for score, step in scored if score is not None]
        return -max(judged)[1] if judged else self.latest()

    def choose(self, which: str) -> int:
        """The step meant by "best", "latest" or a number. Raises InputError if there is none."""
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise InputError(f"{self.folder}: holds no checkpoint; run `ift train` first")
        step = {"best": self.best, "latest": self.latest}.get(which, lambda: None)()
        if step is None and which.isdigit() and int(which) in steps:
            step = int(which)
        if step is None:
            raise InputError(f"--step={which}: expected best, latest or one of {steps}")
        return step

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, placed as `like`, whose arrays may be abstract.

        Raises:
            InputError: if it cannot be read or does not fit; a run never goes on without it.
        """
        restored = self._restore(
            step, params=_restore_args(like.params), optimizer=_restore_args(like.opt_state)
        )
        count = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), like.step.sharding)
        # orbax gives back plain containers; the optimizer's own types come from `like`.
        optimizer = jax.tree.unflatten(
            jax.tree.structure(like.opt_state), jax.tree.leaves(restored.optimizer)
        )
        return TrainState(count, restored.params, optimizer)

    def restore_params(self, step: int, like: Any) -> Any:
        """Only the parameters of a step, placed as `like`."""
        return self._restore(step, params=_restore_args(like)).params

    def restore_frozen(self, step: int, like: Any) -> Any:
        """The adapter's arrays that are not trained, placed as `like`."""
        return self._restore(step, frozen=_restore_args(like)).frozen

    def _restore(self, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()
            raise InputError(
                f"{self.folder / str(step)}: cannot be restored ({reason[0] if reason else error})"
            ) from error

    def finish(self, *, keep_params: bool) -> None:
        """Keeps of a finished run the parameters of its best step alone, or nothing."""
        if not keep_params:
            shutil.rmtree(self.folder)
            return
        best = self.best()
        self._delete([step for step in self._manager.all_steps() if step != best])
        shutil.rmtree(self.folder / str(best) / "optimizer", ignore_errors=True)

    def _delete(self, steps: Sequence[int]) -> None:
        deleted = self.folder / _DELETED
        shutil.rmtree(deleted, ignore_errors=True)  # what was cut off before
        for step in steps:
            self._manager.delete(step)
        shutil.rmtree(deleted, ignore_errors=True)

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def _restore_args(like: Any) -> Any:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    return ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays into a folder of its own, whole or not at all."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore_tree(path: Path, like: Any) -> Any:
    """A tree that `save_tree` wrote, placed as `like`, whose arrays may be abstract.

    Raises:
        InputError: if it cannot be read or does not fit.
    """
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path, args=_restore_args(like))
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{path}: cannot be restored ({one_line(error)})") from error


def _placed_shapes(adapter: Adapter, mesh: Mesh | None) -> Any:
    """The adapter's branches as abstract arrays that know where they will lie."""
    shapes = adapter.shapes()
    alone = SingleDeviceSharding(jax.devices()[0])
    placed = (
        jax.tree.map(lambda _: alone, shapes)
        if mesh is None
        else param_shardings(mesh, adapter.axes(), shapes)
    )
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placed
    )


def load_workdir(
    workdir: Path,
    *,
    which: str = "best",
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: Remat = "dots",
    mesh: Mesh | None = None,
    share: float = 1.0,
) -> LanguageModel:
    """The model that a run made: the base model with tuned parameters, or with its adapter.

    An adapter of the run that this one went on from is worked into the base model's weights.

    Args:
        which: "best", "latest" or a step's number.
        param_dtype: of the weights; where the run quantized them it is the run's own, to which
            they were rounded before.
        share: of the tuned weights; below 1 gives a model between base and tuned one, see
            `ift_jax.interpolation`.
    """
    from ift_jax.config import read_run_config

    run = read_run_config(workdir)
    if run.model.quantize != "none":
        param_dtype = run.model.param_dtype
    checkpoints = Checkpoints.existing(workdir)
    try:
        step = checkpoints.choose(which)
        model = dataclasses.replace(run.model, dtype=dtype, param_dtype=param_dtype, remat=remat)
        base = load_configured(model, mesh)
        _take_chat_format(base)
        if run.peft.method == "none":
            tuned = base.with_params(checkpoints.restore_params(step, base.params))
            if step == checkpoints.best():
                tuned = dataclasses.replace(tuned, source=str(workdir.resolve()))
        else:
            tuned = base.with_adapter(*_restored_adapter(base, run.peft, checkpoints, step, mesh))
        return interpolated(base, tuned, share)
    finally:
        checkpoints.close()


def load_workdir_adapter(
    workdir: Path, model: LanguageModel, *, any_base: bool = False
) -> tuple[Adapter, Params]:
    """The adapter of a run's best step, for a model that is the run's base.

    Args:
        any_base: leaves unasked whether it is.

    Raises:
        InputError: for a run that trained no adapter, or one that does not fit the model or was
            trained beside other weights of the same shapes.
    """
    from ift_jax.config import read_run_config

    run = read_run_config(workdir)
    if run.peft.method == "none":
        raise InputError(f"{workdir}: this run trained all weights; give it as the model itself")
    if not any_base:
        _check_base(workdir, run.model.path, model)
        here = _in_words(*stored_kind(model.params))
        there = _in_words(run.model.quantize, run.model.quantize_group)
        if here != there:
            print(
                f"{workdir}: its adapter was trained beside weights stored as {there}, here they "
                f"are {here} (quantize): logits are not those of its run",
                file=sys.stderr,
            )
    _take_chat_format(model)
    checkpoints = Checkpoints.existing(workdir)
    try:
        return _restored_adapter(model, run.peft, checkpoints, checkpoints.choose("best"), None)
    finally:
        checkpoints.close()


def _take_chat_format(model: LanguageModel) -> None:
    """Gives a tokenizer without a chat template the plain one, which the run asked by."""
    if model.tokenizer is not None:
        Chat.of(model.tokenizer)


def _in_words(kind: str, group: int) -> str:
    return kind if kind == "none" else f"{kind} in groups of {group}"


def _check_base(workdir: Path, path: str, model: LanguageModel) -> None:
    """Refuses a model that was loaded from elsewhere than the base of a run, `path`."""
    if not model.source:
        return
    try:
        base = locate(path).resolve()
    except InputError as error:
        print(f"{workdir}: whether its adapter fits is not known ({error})", file=sys.stderr)
        return
    if base != Path(model.source):
        raise InputError(
            f"{workdir}: its adapter was trained beside {path}, not beside {model.source}; load "
            f"that base, or a folder that `ift export --workdir={workdir}` wrote, which may stand "
            "beside any weights of these shapes"
        )


def _restored_adapter(
    base: LanguageModel, config: PeftConfig, checkpoints: Checkpoints, step: int, mesh: Mesh | None
) -> tuple[Adapter, Params]:
    adapter = base.adapter_for(config)
    like = _placed_shapes(adapter, mesh)
    arrays = {TRAINED: checkpoints.restore_params(step, like[TRAINED])}
    if FROZEN in like:
        arrays[FROZEN] = checkpoints.restore_frozen(step, like[FROZEN])
    return adapter, arrays
