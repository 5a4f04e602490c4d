"""Where records come from: files, globs, the embedded sample, the Hugging Face hub.

A bad row becomes a Rejected and reading goes on; what concerns a whole file, or the way it was
asked for, is an InputError.
"""

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence

from ift_jax.data import json_readers, readers
from ift_jax.data.delimited import named_twice
from ift_jax.data.files import check_encoding, split_extension
from ift_jax.data.records import ReadOptions, Rows
from ift_jax.data.records import Record as Record
from ift_jax.data.records import Rejected as Rejected
from ift_jax.errors import InputError

_READERS: dict[str, Callable[[str, ReadOptions], Rows]] = {
    "jsonl": json_readers.read_json_lines,
    "json": json_readers.read_json,
    "json_columns": json_readers.read_json_columns,
    "csv": readers.read_csv,
    "tsv": readers.read_tsv,
    "txt": readers.read_text,
    "conll": readers.read_conll,
    "parquet": readers.read_parquet,
    "arrow": readers.read_arrow,
}
FILE_FORMATS = (*_READERS, "parallel")
_EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".conll": "conll",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
# An option that the format at hand would ignore is a mistake in the config, so it is refused.
_OPTION_FORMATS = {
    "columns": ("csv", "tsv", "conll", "parallel"),
    "delimiter": ("csv", "tsv"),
    "quoted": ("csv", "tsv"),
    "records_at": ("json", "jsonl"),
    "line_pattern": ("txt",),
}


def read_records(
    source: str | Sequence[str],
    *,
    encoding: str = "utf-8",
    file_format: str = "",
    columns: Sequence[str] = (),
    subset: str = "",
    split: str = "",
    delimiter: str = "",
    quoted: bool = True,
    records_at: str = "",
    line_pattern: str = "",
) -> Iterator[Record | Rejected]:
    """Yields the records of a source in order, and a Rejected for each row that is none.

    Files are streamed, except that a .json file which is not JSON lines is loaded whole.

    Args:
        source: A path, a glob (its files in sorted order; `**` for any depth),
            "embedded:reviews", "embedded:names", "embedded:notes", "hub:owner/name", or a list of
            these. Files may be compressed: .gz, .zst, .bz2, .xz.
        encoding: Of text files; a byte order mark is dropped.
        file_format: One of FILE_FORMATS where the extension does not say it. "conll" is a token
            a line with its tags; "parallel" takes line-aligned files, one for each of `columns`.
        columns: Names for files without a header; csv and tsv files then have none.
        subset: Of a hub data set with several.
        split: Of a hub data set.
        delimiter: Between cells, if not the comma of csv and the tab of tsv.
        quoted: Whether csv and tsv cells may stand in double quotes. False takes quotes as text.
        records_at: Where records stand inside JSON, such as "examples", "examples.*" or
            "data.*.paragraphs.*.qas"; see `nested.nested_records`.
        line_pattern: A regular expression that matches a whole line of text; its named groups
            become the fields.

    Raises:
        InputError: If an option does not fit, or a file is missing, empty, cut off, unreadable
            or of unknown format. What can be seen without reading is raised by the call itself.

    Example:
        >>> first = next(read_records("embedded:reviews"))
        >>> first.origin, "review_body" in first.fields
        ('embedded:reviews:1', True)
    """
    check_encoding(encoding)
    options = ReadOptions(encoding, tuple(columns), delimiter, quoted, records_at, line_pattern)
    _check_pattern(line_pattern)
    if (twice := named_twice(options.columns)) is not None:
        raise InputError(f"columns={options.columns}: names {twice!r} twice")
    if file_format and file_format not in FILE_FORMATS:
        close = difflib.get_close_matches(file_format, FILE_FORMATS, 1)
        raise InputError(
            f"file_format={file_format!r}: no such format; "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"There are {', '.join(FILE_FORMATS)}"
        )
    names = resolve_sources([source] if isinstance(source, str) else list(source))
    if not all(name.startswith("hub:") for name in names) and (subset or split):
        raise InputError("subset and split are for hub: sources; files are chosen by their path")
    if file_format == "parallel":
        return _parallel(names, options)
    streams = [_stream(name, file_format, options, subset, split) for name in names]
    return (row for stream in streams for row in stream)


def resolve_sources(sources: list[str]) -> list[str]:
    """The sources one by one, globs expanded; each must exist and none may come twice."""
    if not sources:
        raise InputError("the source is an empty list; name at least one file")
    names: list[str] = []
    for source in sources:
        names += [source] if source.startswith(("hub:", "embedded:")) else _files(source)
    seen: dict[str, str] = {}
    for name in names:
        key = (
            name
            if name.startswith(("hub:", "embedded:"))
            else os.path.realpath(os.path.expanduser(name))
        )
        if key in seen:
            raise InputError(f"{name}: read twice by this source (also as {seen[key]}); drop one")
        seen[key] = name
    return names


def file_format_of(name: str, file_format: str = "", line_pattern: str = "") -> str:
    """What decides how a source is read: one of FILE_FORMATS, "hub" or "embedded".

    Raises:
        InputError: if neither the options nor the extension says it.

    Example:
        >>> file_format_of("r.csv.gz"), file_format_of("r.train", line_pattern="(?P<label>.*)")
        ('csv', 'txt')
    """
    if name.startswith(("hub:", "embedded:")):
        return name.partition(":")[0]
    return file_format or ("txt" if line_pattern else _format_of(name))


def _files(source: str) -> list[str]:
    if not source:
        raise InputError("the source is empty; name a file, a glob or hub:owner/name")
    if "://" in source:
        raise InputError(f"{source}: addresses are not read; download it and give the path")
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        raise InputError(f"{source}: a folder; name its files, for example {source}/*.jsonl")
    if os.path.exists(path):
        return [source]
    if not glob.has_magic(path):
        beside = os.listdir(os.path.dirname(path) or ".") if _has_folder(path) else []
        close = difflib.get_close_matches(os.path.basename(path), beside, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"looked from {os.getcwd()}"
        raise InputError(f"{source}: no such file; {hint}")
    found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not found:
        raise InputError(f"{source}: no file matches this pattern; looked from {os.getcwd()}")
    return found


def _has_folder(path: str) -> bool:
    return os.path.isdir(os.path.dirname(path) or ".")


def _stream(name: str, file_format: str, options: ReadOptions, subset: str, split: str) -> Rows:
    file_format = file_format_of(name, file_format, options.line_pattern)
    _check_options(name, file_format, options)
    if file_format == "embedded":
        return _embedded(name)
    if file_format == "hub":
        from ift_jax.data.hub import read_hub

        return read_hub(name, subset, split)
    return _not_empty(name, _READERS[file_format](name, options))


def _format_of(path: str) -> str:
    extension = split_extension(path)[0]
    if extension not in _EXTENSIONS:
        shown = f"the extension {extension!r}" if extension else "a name without extension"
        raise InputError(
            f"{path}: {shown} does not say the format; set file_format= to one of "
            f"{', '.join(FILE_FORMATS)}"
        )
    return _EXTENSIONS[extension]


def _check_options(name: str, file_format: str, options: ReadOptions) -> None:
    for option, formats in _OPTION_FORMATS.items():
        given = getattr(options, option) != getattr(ReadOptions(), option)
        if given and file_format not in formats:
            raise InputError(
                f"{name}: {option}= does not apply to {file_format}, only to {', '.join(formats)}"
            )


def _check_pattern(line_pattern: str) -> None:
    if not line_pattern:
        return
    try:
        groups = re.compile(line_pattern).groupindex
    except re.error as error:
        raise InputError(f"line_pattern={line_pattern!r}: {error}") from None
    if not groups:
        raise InputError(f"line_pattern={line_pattern!r}: names no group; write (?P<name>...)")


def _parallel(names: list[str], options: ReadOptions) -> Rows:
    shown = ", ".join(names)
    if len(options.columns) != len(names) or len(names) < 2:
        raise InputError(
            f"{shown}: file_format='parallel' needs at least two files and a name in columns= for "
            f"each; there are {len(names)} files and {len(options.columns)} columns"
        )
    _check_options(shown, "parallel", options)
    return _not_empty(names[0], readers.read_parallel(names, options))


def _not_empty(name: str, rows: Rows) -> Rows:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{name}: holds no records; give a file that does, or check its format")


def _embedded(name: str) -> Rows:
    from ift_jax.data.embedded_names import embedded_names
    from ift_jax.data.embedded_notes import embedded_notes
    from ift_jax.data.embedded_reviews import embedded_reviews

    known = {
        "embedded:reviews": embedded_reviews,
        "embedded:names": embedded_names,
        "embedded:notes": embedded_notes,
    }
    if name not in known:
        raise InputError(f"{name}: no such embedded data set; there are {', '.join(known)}")
    for number, fields in enumerate(known[name](), 1):
        yield Record(fields, f"{name}:{number}")
