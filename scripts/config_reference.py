"""Writes docs/config.md: every field of a config, from the docstrings of its sections.

python scripts/config_reference.py
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift_jax.config import RunConfig

FILE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
INTRO = """# Every field of a config

Written by `python scripts/config_reference.py` from the docstrings of the sections.

In a config file a field is set as `config.section.field = value`, on the command line as
`--config.section.field=value`. Entries of `config.data.tasks` are `task_config(field=value)` of
`ift_jax.config`, those of `config.study.runs` are dicts; a field of one that the config file
names is set on the command line by its number: `--config.data.tasks[0].train_size=500`. Several
texts are `a,b`, several sources `'("a.csv","b.csv")'`.
"""
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): ")


def main() -> None:
    """Writes the file."""
    FILE.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole page."""
    parts = [INTRO]
    for path, section in sections(RunConfig, ""):
        defaults = {f.name: _default(f) for f in dataclasses.fields(section)}
        rows = [
            f"| {', '.join(f'`{name}`' for name in names)} "
            f"| {', '.join(defaults[name] for name in names)} | {_cell(meaning)} |"
            for names, meaning in meanings(section).items()
        ]
        head = ["| field | default | meaning |", "|---|---|---|"]
        parts.append("\n".join([f"## `{path}`\n", *head, *rows]) + "\n")
    return "\n".join(parts)


def sections(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A dataclass and those within it, by the names that lead to them."""
    if path:
        yield path, section
    for name, kind in typing.get_type_hints(section).items():
        if inner := _inner(kind):
            name += "" if inner is kind else "[i]"
            yield from sections(inner, f"{path or 'config'}.{name}")


def meanings(section: Any) -> dict[tuple[str, ...], str]:
    """What the docstring's "Attributes" say, by the fields that it is said of.

    Raises:
        ValueError: for a field that is not explained.
    """
    found: dict[tuple[str, ...], str] = {}
    names: tuple[str, ...] = ()
    _, _, block = (inspect.getdoc(section) or "").partition("Attributes:\n")
    for line in block.partition("\n\n")[0].splitlines():
        if entry := _ENTRY.match(line):
            names = tuple(entry[1].split(", "))
            line = line[entry.end() :]
        found[names] = f"{found.get(names, '')} {line.strip()}".strip()
    own = {name for name, kind in typing.get_type_hints(section).items() if not _inner(kind)}
    if missing := own - {name for names in found for name in names}:
        raise ValueError(f"{section.__qualname__}: does not explain {', '.join(sorted(missing))}")
    return {names: meaning for names, meaning in found.items() if own & {*names}}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _inner(kind: Any) -> Any:
    """The dataclass that a field of this type is, or holds entries of."""
    return next((t for t in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(t)), None)


def _default(one: Any) -> str:
    given = one.default is not dataclasses.MISSING
    value = one.default if given else one.default_factory()
    return f"`{value!r}`".replace("'", '"')


if __name__ == "__main__":
    main()
