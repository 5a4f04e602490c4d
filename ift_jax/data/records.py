"""What a source yields: a record that was read, or the reason why one was not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data set, before any template.

    Attributes:
        fields: Column name -> value, names and values exactly as the source has them.
        origin: Where it stands: the path as given and the line or row, counted from 1
            ("reviews.jsonl:12"), or the place in a nested file ("tasks.json:examples.3").
        columnar: Whether it comes from a table in which the objects of a column all have the
            members of each, as nulls.
    """

    fields: dict[str, Any]
    origin: str
    columnar: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that could not be used; reading goes on after it.

    Attributes:
        origin: Where it stands, as in Record.
        reason: A short slug to count by: "broken_json", "bad_encoding", "wrong_columns" ...
        detail: One line for a person: what is wrong, and what to do where that is known.
    """

    origin: str
    reason: str
    detail: str


Rows = Iterator[Record | Rejected]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read; the meaning of each stands at `sources.read_records`."""

    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoted: bool = True
    records_at: str = ""
    line_pattern: str = ""


def kind_of(value: Any) -> str:
    """What a value is, in the words of a message.

    Example:
        >>> kind_of(3), kind_of({}), kind_of(None)
        ('a number', 'an object', 'null')
    """
    return _KINDS.get(type(value), f"a {type(value).__name__}")


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class Unusable(Exception):
    """Raised inside a reader or a format for one bad row; its caller makes a Rejected of it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def at(self, origin: str) -> Rejected:
        """The rejection, now that the place is known."""
        return Rejected(origin, self.reason, self.detail)
