"""Readers of JSON: lines, arrays, nested documents, tables stored by columns."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ift_jax.data.files import read_lines
from ift_jax.data.nested import nested_records
from ift_jax.data.records import ReadOptions, Record, Rejected, Rows, Unusable, kind_of
from ift_jax.errors import InputError


def read_json_lines(path: str, options: ReadOptions) -> Rows:
    """One JSON object a line; blank lines are skipped."""
    return _json_lines(path, read_lines(path, options.encoding), options)


def _json_lines(
    path: str, lines: Iterator[tuple[int, str] | Rejected], options: ReadOptions
) -> Rows:
    for line in lines:
        if isinstance(line, Rejected):
            yield line
            continue
        number, text = line
        if not text or text.isspace():
            continue
        origin = f"{path}:{number}"
        try:
            fields = _json_object(text)
        except Unusable as unusable:
            yield unusable.at(origin)
            continue
        if options.records_at:
            yield from nested_records(fields, options.records_at, origin, separator=".")
        else:
            yield Record(fields, origin)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        shown = text.strip()
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise Unusable(
            "broken_json", f"{error.msg} at character {error.pos + 1} of {shown!r}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Unusable("broken_json", str(error).partition(";")[0]) from None
    return _checked_object(value, may_hold_surrogates="\\ud" in text or "\\uD" in text)


def _checked_object(value: Any, *, may_hold_surrogates: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"{kind_of(value)}, not an object")
    if may_hold_surrogates:
        # "\ud83d" alone is legal JSON and no text: no tokenizer takes it, no file can hold it.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise Unusable(
                "lone_surrogate", f"\\u{code:04x} is half of a character; mend the text"
            ) from None
    return value


def read_json(path: str, options: ReadOptions) -> Rows:
    """The objects of an array, or one object, or JSON lines that are called .json.

    It is JSON lines if its first line is a whole object and another line follows; these are
    streamed. Everything else is one JSON value and is loaded whole.
    """
    lines = read_lines(path, options.encoding)
    head: list[tuple[int, str] | Rejected] = []
    for line in lines:
        head.append(line)
        if isinstance(line, Rejected) or not line[1].strip():
            continue
        if not _is_object(line[1]):
            break
        after = next(
            (line for line in lines if isinstance(line, Rejected) or line[1].strip()), None
        )
        if after is not None:
            return _json_lines(path, chain(head, [after], lines), options)
    return _json_document(path, _joined(chain(head, lines)), options)


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _joined(lines: Iterator[tuple[int, str] | Rejected]) -> str:
    texts = []
    for line in lines:
        if isinstance(line, Rejected):
            raise InputError(f"{line.origin}: {line.detail}")
        texts.append(line[1])
    return "\n".join(texts)


def _json_document(path: str, text: str, options: ReadOptions) -> Rows:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno}); mend it, or "
            "set file_format='jsonl' if each line is an object of its own"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({str(error).partition(';')[0]})") from None
    may_hold_surrogates = "\\ud" in text or "\\uD" in text
    if isinstance(value, dict) and options.records_at:
        first = options.records_at.partition(".")[0]
        if first != "*" and first not in value:
            raise InputError(
                f"{path}: records_at={options.records_at!r}: no member {first!r}; "
                f"the members are {', '.join(value) or 'none'}"
            )
        for row in nested_records(value, options.records_at, path):
            yield _without_surrogates(row) if may_hold_surrogates else row
        return
    if isinstance(value, dict):
        _refuse_columns_of_lists(path, value)
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{path}: holds {kind_of(value)}; records are an array of objects")
    for number, element in enumerate(value, 1):
        origin = f"{path}:{number}"
        try:
            fields = _checked_object(element, may_hold_surrogates=may_hold_surrogates)
        except Unusable as unusable:
            yield unusable.at(origin)
            continue
        if options.records_at:
            yield from nested_records(fields, options.records_at, origin, separator=".")
        else:
            yield Record(fields, origin)


def _without_surrogates(row: Record | Rejected) -> Record | Rejected:
    if isinstance(row, Record):
        try:
            _checked_object(row.fields, may_hold_surrogates=True)
        except Unusable as unusable:
            return unusable.at(row.origin)
    return row


def _refuse_columns_of_lists(path: str, value: dict[str, Any]) -> None:
    """A table stored by columns would otherwise pass as one record whose cells are lists."""
    columns = list(value.values())
    if len(columns) < 2 or not all(isinstance(column, list) for column in columns):
        return
    lengths = {len(column) for column in columns}
    scalars = not any(isinstance(cell, dict | list) for column in columns for cell in column)
    if len(lengths) == 1 and scalars:
        raise InputError(
            f"{path}: a table stored by columns ({', '.join(value)}), {lengths.pop()} values each; "
            "set file_format='json_columns', or 'jsonl' if this is one record"
        )


def read_json_columns(path: str, options: ReadOptions) -> Rows:
    """One object of columns: lists of equal length, or pandas' objects of row label -> value."""
    try:
        value = json.loads(_joined(read_lines(path, options.encoding)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: broken JSON ({error}); mend it") from None
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: file_format='json_columns' needs an object of columns")
    columns: list[list[Any]] = []
    for name, column in value.items():
        if not isinstance(column, list | dict):
            raise InputError(f"{path}: column {name!r} is not a list of values")
        columns.append(list(column.values()) if isinstance(column, dict) else column)
    if len({len(column) for column in columns}) > 1:
        shown = ", ".join(f"{name}: {len(column)}" for name, column in value.items())
        raise InputError(f"{path}: the columns differ in length ({shown})")
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield _without_surrogates(Record(dict(zip(value, cells, strict=True)), f"{path}:{number}"))
