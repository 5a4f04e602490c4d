"""Records that stand deep inside a JSON value, found by a dotted path (`records_at`)."""

from collections.abc import Iterator
from typing import Any

from ift_jax.data.records import Record, Rejected, kind_of


def nested_records(
    value: dict[str, Any], records_at: str, origin: str, separator: str = ":"
) -> Iterator[Record | Rejected]:
    """The objects at `records_at`, each with the scalar fields of the objects around it.

    A step is a member's name, or `*` for every element of a list or every value of an object.
    A path that ends at a list means the list's elements. Strings, numbers, booleans and nulls
    on the way down become fields of the records below; a record's own fields win.

    Example:
        >>> squad = {"version": "1.1", "data": [{"context": "It rained.", "qas": [{"id": 7}]}]}
        >>> [record] = nested_records(squad, "data.*.qas", "squad.json")
        >>> record.fields, record.origin
        ({'version': '1.1', 'context': 'It rained.', 'id': 7}, 'squad.json:data.1.qas.1')
    """
    steps = records_at.split(".")
    for place, carried, node in _walk(value, steps, "", {}):
        where = f"{origin}{separator}{place[1:]}" if place else origin
        if isinstance(node, _Absent):
            yield Rejected(where, "wrong_shape", f"records_at={records_at!r}: {node}")
        elif isinstance(node, dict):
            yield Record({**carried, **node}, where)
        else:
            yield Rejected(where, "not_an_object", f"{kind_of(node)}, not an object")


class _Absent(str):
    """What is missing where the path goes on."""


def _walk(
    node: Any, steps: list[str], place: str, carried: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    if not steps:
        if isinstance(node, list):
            for number, element in enumerate(node, 1):
                yield f"{place}.{number}", carried, element
        else:
            yield place, carried, node
        return
    step, *rest = steps
    if isinstance(node, dict) and step != "*":
        carried = {**carried, **_scalars(node)}
    if step == "*" and isinstance(node, list):
        for number, element in enumerate(node, 1):
            yield from _below(element, rest, f"{place}.{number}", carried)
    elif step == "*" and isinstance(node, dict):
        for name, element in node.items():
            yield from _below(element, rest, f"{place}.{name}", carried)
    elif isinstance(node, dict) and step in node:
        yield from _walk(node[step], rest, f"{place}.{step}", carried)
    elif isinstance(node, dict):
        yield place, carried, _Absent(f"no member {step!r}, only {', '.join(node) or 'none'}")
    else:
        yield place, carried, _Absent(f"no member {step!r} in {kind_of(node)}")


def _below(
    element: Any, rest: list[str], place: str, carried: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """An element that `*` picked: a record itself if the path ends here, else walked on."""
    if rest:
        yield from _walk(element, rest, place, carried)
    else:
        yield place, carried, element


def _scalars(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not isinstance(value, dict | list)}
