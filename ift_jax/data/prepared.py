"""Prepared sets: packed rows in ArrayRecord shards, written once and read by any number of hosts.

    index.json                 what the set was made from (its key), the digest of each file, and
                               that of the index itself
    rows-00000-of-00008.array_record, ...
    validation.jsonl, test.jsonl, exemplars.jsonl    examples for scoring
    card.json, rejected.jsonl  as in a workdir

The key holds digests of the sources' bytes, the template texts, the tokenizer and the options
(`ift_jax.data.prepared_key`). Training compares it with its own config, so a set that does not
fit is refused. A row stays as it was packed; each epoch visits the rows in another order.
"""

import itertools
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from ift_jax.data.chat import Chat, Turns
from ift_jax.data.collect import join_parts
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.files import LOCK, locked, replace_text
from ift_jax.data.fitting import encode_examples
from ift_jax.data.loader import RowSource
from ift_jax.data.parts import collect_part, is_done, load_part, one_core, use_one_core
from ift_jax.data.pipeline import DataSet, Known, TaskData, assemble, build, write_card
from ift_jax.data.prepared_key import (
    VERSION,
    Key,
    difference,
    digest,
    file_digest,
    not_compared,
    set_key,
)
from ift_jax.data.prepared_rows import PreparedRows, encode_row
from ift_jax.data.rows import pack
from ift_jax.data.shots import exemplar_pool
from ift_jax.data.store import Chosen, Store
from ift_jax.errors import InputError, one_line

MIN_SHARDS = 8  # so that as many hosts can write and read their own
SHARD_TOKENS = 2**24
_HELD_OUT = ("validation", "test")
_FILES = ("validation.jsonl", "test.jsonl", "exemplars.jsonl", "card.json", "rejected.jsonl")


def prepare(
    config: DataConfig,
    chat: Chat,
    folder: Path,
    part: tuple[int, int] = (0, 1),
    num_processes: int = 1,
) -> dict[str, Any] | None:
    """Writes a prepared set, or this host's part of one.

    Each of n parts reads all records and renders and tokenizes an n-th of them. Whichever
    finishes last joins them and writes the shards; their bytes are the same for any n.

    Args:
        part: (i, n), 0 <= i < n.
        num_processes: that share this part's work on this machine.

    Returns:
        The card, or None while other parts are missing.

    Raises:
        InputError: as `pipeline.build`, and if the folder holds another prepared set, or files
            of the names that are written and no set.
    """
    key = set_key(config, chat)
    if (folder / "index.json").exists():
        return _finished(folder, key)
    parts = folder / "parts"
    _refuse_foreign(folder, parts)
    total = part[1] * num_processes
    own = [part[0] * num_processes + i for i in range(num_processes)]
    waiting = [i for i in own if not is_done(parts / f"{i}-of-{total}", key)]
    jobs = [(config, chat, parts / f"{i}-of-{total}", (i, total), key) for i in waiting]
    if len(jobs) == 1:
        collect_part(*jobs[0])
    elif jobs:
        # Not forked: JAX and the tokenizer run threads. This process takes a share of its own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(jobs) - 1, context, use_one_core) as pool:
            others = [pool.submit(collect_part, *job) for job in jobs[1:]]
            with one_core():
                collect_part(*jobs[0])
            for other in others:
                other.result()
    missing = [i for i in range(total) if not is_done(parts / f"{i}-of-{total}", key)]
    if missing:
        hosts = sorted({i // num_processes for i in missing})
        print(f"part {part[0]} of {part[1]} is done; missing: {hosts}", file=sys.stderr)
        return None
    with locked(folder) as is_mine:
        if not is_mine:
            print("another process joins the parts", file=sys.stderr)
            return None
        if (folder / "index.json").exists():
            return _finished(folder, key)
        card = _join(config, chat, folder, total, key)
    shutil.rmtree(parts)
    (folder / LOCK).unlink(missing_ok=True)
    return card


def _refuse_foreign(folder: Path, parts: Path) -> None:
    """Files of our names that nobody was preparing are somebody's own."""
    own = [folder / name for name in _FILES if (folder / name).exists()]
    own += sorted(folder.glob("rows-*-of-*.array_record"))
    # Another part may have joined all of them just now.
    if own and not parts.exists() and not (folder / "index.json").exists():
        raise InputError(
            f"{own[0]}: would be overwritten, and no index.json says that it is of a prepared set; "
            "choose another --output, or empty the folder"
        )


def _finished(folder: Path, key: Key) -> dict[str, Any]:
    """The card of a set that is there already, if it is the one of this key."""
    index = read_index(folder)
    _refuse_other(folder, index["key"], key, "choose another --output")
    _refuse_damaged(folder, index)
    print(f"{folder} is up to date", file=sys.stderr)
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def _join(config: DataConfig, chat: Chat, folder: Path, num_parts: int, key: Key) -> dict[str, Any]:
    """Makes one data set of all parts, and writes it; index.json comes last."""
    owns = [folder / "parts" / f"{i}-of-{num_parts}" for i in range(num_parts)]
    store = Store(folder / "parts")
    firsts = [store.extend(own, own / "numbers.npz") for own in owns]
    collected = [
        join_parts([load_part(own, number) for own in owns], firsts)
        for number in range(len(config.tasks))
    ]
    data = assemble(config, chat, store, collected)
    source, prefix = pack(data, "train", config.seed)
    index = {"key": key, "prefix": prefix.tolist(), **_write_shards(source, folder)}
    for split in _HELD_OUT:
        examples = (example for task in data.tasks for example in task.splits[split])
        _write_examples(folder / f"{split}.jsonl", examples)
    _write_examples(folder / "exemplars.jsonl", _exemplars(data))
    card = write_card(data, folder)
    index["files"] = [_file_entry(folder / name) for name in _FILES]
    index["digest"] = digest(index)
    replace_text(folder / "index.json", json.dumps(index, indent=1) + "\n")
    store.close()
    return card


def _exemplars(data: DataSet) -> Iterator[Example]:
    """The training examples that few-shot prompts choose from."""
    for task in data.tasks:
        train = task.splits["train"]
        pools = [exemplar_pool(train, name).numbers for name in train.templates()]
        if pools:
            kept = np.isin(train.numbers, np.concatenate(pools))
            yield from Chosen(train.store, train.numbers[kept])


def _write_examples(path: Path, examples: Iterable[Example]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for e in examples:
            fields = {name: getattr(e, name) for name in Example.__slots__}
            line = json.dumps({**fields, "turns": e.turns._asdict()}, ensure_ascii=False)
            file.write(f"{line}\n")


def _read_examples(path: Path, task: str, store: Store, chat: Chat) -> Chosen:
    examples = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            if fields["task"] != task:
                continue
            turns = fields["turns"]
            turns["messages"], turns["earlier"] = tuple(turns["messages"]), tuple(turns["earlier"])
            for name in ("choices", "texts", "references"):
                fields[name] = tuple(fields[name])
            examples.append(Example(**{**fields, "turns": Turns(**turns)}))
    tokens = encode_examples(chat, examples)
    numbers = [store.append(e, t) for e, t in zip(examples, tokens, strict=True)]
    return Chosen(store, np.array(numbers, np.int64))


def _write_shards(source: RowSource, folder: Path) -> dict[str, Any]:
    """Writes the rows of epoch 0 as they are packed; returns what the index says of them."""
    tokens = int(source.slots.largest(source.examples.lengths).sum())
    num_shards = max(MIN_SHARDS, -(-tokens // SHARD_TOKENS))
    edges = np.linspace(0, source.rows_per_epoch, num_shards + 1).astype(int).tolist()
    shards, num_tokens = [], 0
    for number, (first, end) in enumerate(itertools.pairwise(edges)):
        name = f"rows-{number:05d}-of-{num_shards:05d}.array_record"
        partial = folder / f"{name}.partial"
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for row in range(first, end):
            members = [source.examples.get(m) for m in source.members(row).tolist()]
            num_tokens += sum(len(ids) for ids, _ in members)
            writer.write(encode_row(members))
        writer.close()
        partial.replace(folder / name)
        shards.append({**_file_entry(folder / name), "rows": end - first})
    plan = source.plan
    return {
        "row_length": plan.row_length,
        "row_targets": plan.row_targets,
        "rows": plan.num_rows,
        "examples": len(plan.order),
        "tokens": num_tokens,
        "shards": shards,
    }


def _file_entry(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "digest": file_digest(path)}


def _refuse_damaged(folder: Path, index: Mapping[str, Any]) -> None:
    """Compares every file with the index: first what costs nothing, then its bytes."""
    entries = [*index["shards"], *index["files"]]
    for entry in entries:
        path = folder / entry["name"]
        if not path.exists():
            raise InputError(f"{path}: is missing; prepare the set anew")
        if (found := path.stat().st_size) != entry["bytes"]:
            raise InputError(
                f"{path}: has {found} bytes, index.json says {entry['bytes']}; prepare the set anew"
            )
    for entry in entries:
        if file_digest(folder / entry["name"]) != entry["digest"]:
            raise InputError(
                f"{folder / entry['name']}: its bytes are not those that were written; "
                "prepare the set anew"
            )


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared set.

    Raises:
        InputError: if the folder holds none, or one that was changed since it was written.
    """
    path = folder / "index.json"
    if not path.exists():
        raise InputError(
            f"{folder}: holds no prepared data set (index.json is missing); write one with "
            "`ift data --config=C --output=DIR`"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
    key = index.get("key") if isinstance(index, dict) else None
    whole = isinstance(key, dict)
    # Other versions go by other rules; `_refuse_other` names them.
    if isinstance(key, dict) and key.get("version") == str(VERSION):
        whole = index.pop("digest", "") == digest(index)
    if not whole:
        raise InputError(f"{path}: is not as it was written; prepare the set anew")
    return index


def _refuse_other(folder: Path, there: Key, here: Key, remedy: str) -> None:
    """A set made from something else is never used; says which sources were not compared."""
    if what := difference(there, here):
        raise InputError(
            f"{folder}: was prepared from other {what}; {remedy}"
            if what != "version"
            else f"{folder}: was prepared by another version of ift_jax; {remedy}"
        )
    if missing := not_compared(here):
        print(
            f"{folder}: not compared with {', '.join(missing)}: not on this machine, or the hub "
            "cannot be reached",
            file=sys.stderr,
        )


def load_data(config: DataConfig, chat: Chat, known: Known | None = None) -> DataSet:
    """The data set of a config: read from `config.prepared`, or else built.

    Args:
        known: as for `pipeline.build`.

    Raises:
        InputError: as `pipeline.build`; and for a prepared set that was made from other data,
            templates, tokenizer or options, or of which a file is missing or damaged.
    """
    if not config.prepared:
        return build(config, chat, known)
    folder = Path(config.prepared).expanduser()
    index = read_index(folder)
    remedy = "run `ift data --output` into another folder"
    _refuse_other(folder, index["key"], set_key(config, chat), remedy)
    _refuse_damaged(folder, index)
    store = Store()
    tasks = []
    for task in config.tasks:
        splits = {
            split: _read_examples(folder / f"{file}.jsonl", task.name, store, chat)
            for split, file in (
                ("train", "exemplars"),
                ("validation", "validation"),
                ("test", "test"),
            )
        }
        tasks.append(TaskData(task, splits))
    return DataSet(
        config,
        tuple(tasks),
        chat,
        stored_in=folder,
        prepared_rows=lambda seed: (
            PreparedRows(folder, index, seed), np.array(index["prefix"], np.int32)
        ),
    )  # fmt: skip
