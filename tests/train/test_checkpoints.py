"""Checkpoints are whole or gone, wherever a process was killed."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from ift_jax.checkpoint import Checkpoints
from ift_jax.train.step import TrainState


def state(step):
    return TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.full(3, step)}, {"m": jnp.zeros(3)})


class Killed(BaseException):
    """What `kill -9` would do, for a test."""


def killed_while_deleting(monkeypatch, call):
    """Runs `call` up to its first removal of a folder, of which most is gone by then."""

    def remove_most(path, *args, **kwargs):
        if not Path(path).exists():
            return
        for file in Path(path).rglob("*"):
            if file.is_file() and file.name != "metadata":
                file.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_most)
        with pytest.raises(Killed):
            call()


def steps_of(checkpoints):
    return [path.name for path in sorted(checkpoints.folder.iterdir()) if path.name.isdigit()]


def test_a_kill_while_an_old_step_is_deleted_leaves_whole_steps(tmp_path, monkeypatch):
    first = Checkpoints(tmp_path)
    first.save(state(1), 0.1)
    killed_while_deleting(monkeypatch, lambda: first.save(state(2), 0.2))
    again = Checkpoints(tmp_path)
    assert steps_of(again) == ["2"]
    assert again.best() == again.latest() == 2
    assert again.restore(2, state(0)).params["w"].tolist() == [2, 2, 2]
    again.save(state(3), 0.15)
    assert steps_of(again) == ["2", "3"]
    assert not (again.folder / "deleted").exists()
    killed_while_deleting(monkeypatch, lambda: again.finish(keep_params=True))
    last = Checkpoints(tmp_path)
    assert last.choose("best") == 2
    last.finish(keep_params=True)
    assert sorted(path.name for path in last.folder.iterdir()) == ["2"]
    assert last.restore_params(2, state(0).params)["w"].tolist() == [2, 2, 2]
    assert not (last.folder / "2" / "optimizer").exists()
