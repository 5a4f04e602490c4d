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


class TemplateFields(NamedTuple):
    """What stood under a `!Template`, and the file's line on which it began."""

    values: Mapping[str, Any]
    line: int


class _Loader(_BaseLoader):
    """A safe loader that knows the format's two tags and refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in getattr(node, "value", ()):
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
        document = yaml.load(Path(path).read_bytes(), Loader=_Loader)
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


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())
