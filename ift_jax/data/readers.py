"""Readers of tables, text lines, tagged sentences and columnar files, one per format.

Each yields records and rejections in the file's order.
"""

import os
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ift_jax.data.delimited import named_twice, read_delimited
from ift_jax.data.files import read_lines, split_extension
from ift_jax.data.records import ReadOptions, Record, Rejected, Rows
from ift_jax.errors import InputError, one_line

_BATCH_ROWS = 1024


def read_csv(path: str, options: ReadOptions) -> Rows:
    """Comma-separated rows."""
    return _delimited(path, options, ",")


def read_tsv(path: str, options: ReadOptions) -> Rows:
    """Tab-separated rows, quoted as spreadsheets and pandas write them unless quoted=False."""
    return _delimited(path, options, "\t")


def _delimited(path: str, options: ReadOptions, delimiter: str) -> Rows:
    lines = read_lines(path, options.encoding)
    delimiter = options.delimiter or delimiter
    return read_delimited(path, lines, delimiter, options.columns, quoted=options.quoted)


def read_text(path: str, options: ReadOptions) -> Rows:
    """Each line that is not blank as {"text": line}, or as the groups of `line_pattern`."""
    pattern = re.compile(options.line_pattern) if options.line_pattern else None
    for line in read_lines(path, options.encoding):
        if isinstance(line, Rejected):
            yield line
            continue
        number, text = line[0], line[1].removesuffix("\r")
        if not text or text.isspace():
            continue
        if pattern is None:
            yield Record({"text": text}, f"{path}:{number}")
        elif match := pattern.fullmatch(text):
            yield Record(match.groupdict(default=""), f"{path}:{number}")
        else:
            yield Rejected(
                f"{path}:{number}", "no_match", f"line_pattern does not match {text[:60]!r}"
            )


def read_conll(path: str, options: ReadOptions) -> Rows:
    """One record a sentence: each column a list, the cells of its lines in order.

    Cells are split at tabs, or at blanks in lines without a tab; a blank line ends the sentence.
    """
    names = options.columns or ("tokens", "tags")
    rows: list[list[str]] = []
    first, broken = 0, None
    # The empty line stands for the end of the file, where the last blank line is often missing.
    for line in chain(read_lines(path, options.encoding), [(0, "")]):
        if isinstance(line, Rejected):
            broken = broken or line
            continue
        number, text = line[0], line[1].removesuffix("\r")
        if text and not text.isspace():
            cells = text.split("\t") if "\t" in text else text.split()
            first = first or number
            rows.append(cells)
            if len(cells) != len(names):
                detail = f"{len(cells)} cells where there are {len(names)} columns: {text[:60]!r}"
                broken = broken or Rejected(f"{path}:{number}", "wrong_columns", detail)
            continue
        if broken:
            yield broken
        elif rows and rows[0][0] != "-DOCSTART-":
            yield Record(
                {
                    name: list(column)
                    for name, column in zip(names, zip(*rows, strict=True), strict=True)
                },
                f"{path}:{first}",
            )
        rows, first, broken = [], 0, None


def read_parallel(paths: Sequence[str], options: ReadOptions) -> Rows:
    """Files aligned line by line: file i gives column i, and origins name the first file.

    Raises:
        InputError: If one file ends before another.
    """
    readers = [read_lines(path, options.encoding) for path in paths]
    number = 0
    while True:
        lines = [next(reader, None) for reader in readers]
        ended = [path for path, line in zip(paths, lines, strict=True) if line is None]
        if len(ended) == len(paths):
            return
        if ended:
            raise InputError(
                f"{ended[0]}: ends after line {number}, but the files beside it go on; "
                "parallel files need equally many lines"
            )
        number += 1
        cells = [line[1].removesuffix("\r") for line in lines if isinstance(line, tuple)]
        if len(cells) == len(paths):
            fields: dict[str, Any] = dict(zip(options.columns, cells, strict=True))
            yield Record(fields, f"{paths[0]}:{number}")
        else:
            yield next(line for line in lines if isinstance(line, Rejected))


def read_parquet(path: str, options: ReadOptions) -> Rows:
    """The rows of a Parquet file, a batch at a time."""
    del options
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(_columnar(path)) as file:
            yield from _rows_of(path, file.iter_batches(batch_size=_BATCH_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from None


def read_arrow(path: str, options: ReadOptions) -> Rows:
    """The rows of an Arrow IPC file (Feather 2) or stream (as `datasets` caches them)."""
    del options
    import pyarrow as pa

    try:
        with pa.memory_map(_columnar(path)) as file:
            if file.read(6) == b"ARROW1":
                file.seek(0)
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
                yield from _rows_of(path, batches)
            else:
                file.seek(0)
                yield from _rows_of(path, pa.ipc.open_stream(file))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Arrow", error) from None


def _columnar(path: str) -> str:
    if split_extension(path)[1]:
        raise InputError(
            f"{path}: compressed from outside; unpack it, the format compresses itself"
        )
    if not os.path.getsize(os.path.expanduser(path)):
        raise InputError(f"{path}: the file is empty; give one that holds records")
    return os.path.expanduser(path)


def _rows_of(path: str, batches: Any) -> Rows:
    number = 0
    for batch in batches:
        if (twice := named_twice(batch.schema.names)) is not None:
            raise InputError(f"{path}: has two columns {twice!r}; rename one")
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            try:
                rows = batch.slice(start, _BATCH_ROWS).to_pylist()
            except ValueError as error:  # such as two fields of one name inside a column
                raise InputError(
                    f"{path}: row {number + 1} or one soon after it cannot be read: "
                    f"{one_line(error)}"
                ) from error
            for fields in rows:
                number += 1
                yield Record(fields, f"{path}:{number}", columnar=True)


def _unreadable(path: str, kind: str, error: Exception) -> InputError:
    first_line = str(error).partition("\n")[0]
    return InputError(f"{path}: not a readable {kind} file ({first_line}); write or copy it again")
