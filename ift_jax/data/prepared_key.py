"""The key of a prepared set: digests of all that decides what it holds, and what two differ in."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ift_jax.data.chat import Chat
from ift_jax.data.collect import sourced_tasks, task_sources
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import load_task_templates
from ift_jax.data.hub import hub_revision
from ift_jax.data.sources import file_format_of, resolve_sources
from ift_jax.errors import InputError

VERSION = 7  # of a prepared set's files
_UNKNOWN = "@"  # ends the entry of a hub source whose revision is not known

Key = Mapping[str, Any]


def set_key(config: DataConfig, chat: Chat) -> dict[str, Any]:
    """What a prepared set is made from, as JSON can hold it.

    "sources" has an entry for each source of a task ("source of reviews", "test_source of
    reviews"): for each of its files, in order, the format that it is read in and the digest of
    its bytes, or "" where the file is not on this machine. Paths are left out: files may move.

    Raises:
        InputError: for templates and sources that cannot be read.
    """
    sources: dict[str, list[str]] = {}
    digest_of = cache(file_digest)  # for this call only: files change between two
    for task, source in sourced_tasks(config):
        for split, where, _ in task_sources(task, source):
            role = f"{split}_source" if split else "source"
            sources[f"{role} of {task.name}"] = [
                _source_entry(name, file_format_of(name, task.file_format, task.line_pattern),
                              digest_of) if name else ""
                for name in _resolved([where] if isinstance(where, str) else list(where))
            ]  # fmt: skip
    templates = [
        # The metadata decide what a record is split by.
        [task.name, t.name, t.jinja, t.answer_choices, dict(t.metadata)]
        for task in config.tasks
        for t in load_task_templates(task)
    ]
    backend, special = chat.backend, chat.tokenizer.special_tokens_map
    format_ = [chat.tokenizer.chat_template, chat.bos, chat.opening, chat.end_of_turn, chat.trims]
    tokenizer = [backend.to_str(), special, *format_]
    return {
        "version": str(VERSION),
        "sources": sources,
        "templates": digest(templates),
        "tokenizer": digest(tokenizer),
        "options": digest(_options(config)),
    }


def difference(there: Key, here: Key) -> str:
    """What differs: "templates", "sources (test_source of reviews)", ...; or "".

    Args:
        there: the key of what was made.
        here: that of the config at hand. Sources that it could not look at do not differ.
    """
    for name, value in here.items():
        if name != "sources" and there.get(name) != value:
            return name
        if name == "sources":
            made = there["sources"]
            for role in (*value, *made):
                if role not in value or role not in made or not _fits(made[role], value[role]):
                    return f"sources ({role})"
    return ""


def not_compared(key: Key) -> list[str]:
    """The sources of which at least one file, or the hub's revision, is not known."""
    return [role for role, entries in key["sources"].items() if not all(map(_is_known, entries))]


def gone(key: Key) -> list[str]:
    """The sources of which at least one file is not on this machine."""
    return [role for role, entries in key["sources"].items() if "" in entries]


def _fits(there: list[str], here: list[str]) -> bool:
    """Whether both are the same but for what is not known here.

    A pattern whose files are not here stands for any number of them, so that what is known has
    to come in the same order only.
    """
    if "" not in here and len(here) != len(there):
        return False
    left = iter(there)
    return all(any(_same(one, entry) for one in left) for entry in here if entry)


def _same(there: str, here: str) -> bool:
    return there == here or (not _is_known(here) and there.startswith(here))


def _is_known(entry: str) -> bool:
    return bool(entry) and not entry.endswith(_UNKNOWN)


def _options(config: DataConfig) -> dict[str, Any]:
    """The config without the places of files; their bytes stand in the key by themselves."""
    options = dataclasses.asdict(config)
    for name in ("path", "prepared"):
        del options[name]
    for task in options["tasks"]:
        for name in ("source", "validation_source", "test_source", "templates", "metrics"):
            del task[name]
    return options


def _resolved(names: list[str]) -> list[str]:
    """The files one by one; "" for a name or a pattern that stands for none here."""
    found: list[str] = []
    for name in names:
        try:
            found += resolve_sources([name])
        except InputError:
            found.append("")
    return found


def _source_entry(name: str, file_format: str, digest_of: Any) -> str:
    if file_format == "hub":
        return f"{name}{_UNKNOWN}{hub_revision(name)}"
    if file_format == "embedded":
        return name
    try:
        return f"{file_format} {digest_of(Path(name).expanduser())}"
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error


def digest(value: Any) -> str:
    """Of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
