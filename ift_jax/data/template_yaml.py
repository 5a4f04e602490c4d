"""Reads the YAML of a template file into plain values, without building any Python object."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ift_jax.errors import InputError

# The C parser reads ten times faster; which one a PyYAML has depends on how it was built.
if TYPE_CHECKING:
    from yaml import SafeLoader as _BaseLoader
else:
    _BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


MAX_REPEATED_CHARS = 2**20  # that aliases may add to a file
MAX_PROBLEM_CHARS = 300


class TemplateFields(NamedTuple):
    """What stood under a `!Template`, and the file's line on which it began."""

    values: Mapping[str, Any]
    line: int


class _Loader(_BaseLoader):
    """A safe loader that knows the format's two tags and refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        # What is no mapping is refused below, with its line.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _construct_template(loader: _Loader, node: yaml.MappingNode) -> TemplateFields:
    return TemplateFields(loader.construct_mapping(node, deep=True), node.start_mark.line + 1)


def _construct_metadata(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _construct_template)
_Loader.add_constructor("!TemplateMetadata", _construct_metadata)


def read_template_file(path: str | PathLike[str]) -> dict[str, TemplateFields]:
    """The templates of a file by their keys, in file order.

    Raises:
        InputError: If the file cannot be read or does not hold templates.
    """
    try:
        document = _load(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: {_one_line(error.problem or error.context)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {_one_line(error)}") from error

    templates = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(templates, dict):
        raise InputError(
            f"{path}: no mapping `templates:`, from ids to templates, at the top level"
        )
    for key, fields in templates.items():
        if not isinstance(fields, TemplateFields):
            raise InputError(f"{path}: template {key}: write `!Template` after its key")
    return {str(key): fields for key, fields in templates.items()}


def _load(text: bytes) -> Any:
    """The document as plain values; None for an empty one."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, len(text) + MAX_REPEATED_CHARS, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, most: int, sizes: dict[int, int]) -> int:
    """Characters and nodes below a node, what an alias repeats counted each time.

    Ten lines of aliases to aliases stand for a billion nodes, which whoever prints or merges them
    would meet one by one.

    Args:
        sizes: of the nodes that were seen, by id; 0 while a node's own parts are counted.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias stands inside what it repeats", node.start_mark
            )
        return sizes[id(node)]
    sizes[id(node)] = 0
    if isinstance(node, yaml.ScalarNode):
        size = 1 + len(node.value)
    else:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        size = 1 + sum(_expanded_size(part, most, sizes) for part in parts)
    if size > most:
        raise yaml.constructor.ConstructorError(
            None, None, f"its aliases repeat more than {MAX_REPEATED_CHARS:,} characters",
            node.start_mark,
        )  # fmt: skip
    sizes[id(node)] = size
    return size


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())[:MAX_PROBLEM_CHARS]
