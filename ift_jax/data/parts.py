"""A host's or process's part of what is collected, as files that the others can join.

parts/1-of-4/examples.bin, tokens.bin, numbers.npz    the store
             index-0.npy, marks-0.npy, counted-0.json per task
             done.json                                the key, when all else is written
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ift_jax.data.chat import Chat
from ift_jax.data.collect import Collected, collect, sourced_tasks
from ift_jax.data.config import DataConfig
from ift_jax.data.files import replace_text
from ift_jax.data.prepared_key import Key, difference, gone, set_key
from ift_jax.data.records import Rejected
from ift_jax.data.store import Store
from ift_jax.data.template_sandbox import end_worker
from ift_jax.errors import InputError

_THREADS = "TOKENIZERS_PARALLELISM"  # read at each call


def use_one_core() -> None:
    """Keeps the tokenizer from running a thread a core, where each process has a part."""
    os.environ[_THREADS] = "false"


@contextmanager
def one_core() -> Iterator[None]:
    """`use_one_core` for a while."""
    before = os.environ.get(_THREADS)
    use_one_core()
    try:
        yield
    finally:
        del os.environ[_THREADS]
        if before is not None:
            os.environ[_THREADS] = before


def is_done(part: Path, key: Key) -> bool:
    """Whether a part was collected, and from just this."""
    done = part / "done.json"
    return done.exists() and json.loads(done.read_text(encoding="utf-8")) == key


def collect_part(
    config: DataConfig, chat: Chat, own: Path, part: tuple[int, int], key: Key
) -> None:
    """Collects chunks i, i + n, ... of every task into the folder `own`.

    Raises:
        InputError: as `collect`; for a folder that cannot be written; and if the sources or
            templates are not those of the key any more, since nobody knows what was read.
    """
    shutil.rmtree(own, ignore_errors=True)
    try:
        own.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{own.parent.parent}: cannot be written ({error.strerror})") from error
    try:
        store = Store(own)
        for number, (task, source) in enumerate(sourced_tasks(config)):
            found = collect(task, source, config, chat, store, part)
            np.save(own / f"index-{number}.npy", found.index)
            np.save(own / f"marks-{number}.npy", found.marks)
            counted = {
                "labels": found.labels,
                "rejected": [[chunk, dataclasses.asdict(one)] for chunk, one in found.rejected],
                "num_records": found.num_records,
                "columns": sorted(found.columns),
                "first_origin": found.first_origin,
                "chunks": found.chunks,
            }
            replace_text(own / f"counted-{number}.json", json.dumps(counted))
        store.save(own / "numbers.npz")
        store.close()
        _refuse_changed(config, chat, key)
        replace_text(own / "done.json", json.dumps(key))
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    finally:
        end_worker()


def _refuse_changed(config: DataConfig, chat: Chat, key: Key) -> None:
    after = set_key(config, chat)
    what = difference(key, after) or ", ".join(f"sources ({role})" for role in gone(after))
    if what:
        raise InputError(
            f"{what}: changed while they were read; prepare the set anew once nothing writes there"
        )


def load_part(own: Path, number: int) -> Collected:
    """What a part collected of task `number`."""
    counted = json.loads((own / f"counted-{number}.json").read_text(encoding="utf-8"))
    return Collected(
        index=np.load(own / f"index-{number}.npy"),
        marks=np.load(own / f"marks-{number}.npy"),
        labels=counted["labels"],
        rejected=[(chunk, Rejected(**one)) for chunk, one in counted["rejected"]],
        num_records=counted["num_records"],
        columns=set(counted["columns"]),
        first_origin=counted["first_origin"],
        chunks={split: (first, end) for split, (first, end) in counted["chunks"].items()},
    )
