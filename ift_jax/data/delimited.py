"""Rows of comma- or tab-separated files, going on after a broken one.

Python's csv module reads the same rows, but an opening quote that never closes makes it
swallow the rest of the file, and it cannot say which line was at fault.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from ift_jax.data.records import Record, Rejected, Unusable
from ift_jax.errors import InputError

# A quoted cell may hold line breaks; one of more lines than this was never closed.
MAX_CELL_LINES = 10_000

Line = tuple[int, str] | Rejected


def read_delimited(
    path: str, lines: Iterable[Line], delimiter: str, columns: Sequence[str], *, quoted: bool
) -> Iterator[Record | Rejected]:
    """One record a row; the names are `columns`, or else the cells of the first row.

    Raises:
        InputError: If the first row cannot be read or names a column twice.
    """
    names = list(columns)
    for row in _rows(path, iter(lines), delimiter, quoted):
        if isinstance(row, Rejected):
            if not names:
                raise InputError(f"{row.origin}: the header cannot be read: {row.detail}")
            yield row
            continue
        number, cells = row
        if not names:
            names = _checked_header(path, cells)
        elif len(cells) != len(names):
            yield Rejected(
                f"{path}:{number}",
                "wrong_columns",
                f"{len(cells)} cells where there are {len(names)} columns ({', '.join(names)})",
            )
        else:
            yield Record(dict(zip(names, cells, strict=True)), f"{path}:{number}")


def _checked_header(path: str, cells: list[str]) -> list[str]:
    if (twice := named_twice(cells)) is not None:
        raise InputError(
            f"{path}:1: the header names {twice!r} twice; rename one, "
            "or give columns=(...) if the file has no header"
        )
    return cells


def named_twice(names: Sequence[str]) -> str | None:
    """The first of the names that come twice, if any does; it may be empty."""
    return min((name for name, count in Counter(names).items() if count > 1), default=None)


def _rows(
    path: str, lines: Iterator[Line], delimiter: str, quoted: bool
) -> Iterator[tuple[int, list[str]] | Rejected]:
    """Numbered rows; a row has the number of its first line. Blank lines are skipped."""
    put_back: deque[Line] = deque()

    def take() -> Line | None:
        return put_back.popleft() if put_back else next(lines, None)

    while (line := take()) is not None:
        if isinstance(line, Rejected):
            yield line
            continue
        number, text = line
        if text in ("", "\r"):
            continue
        if not quoted or '"' not in text:
            yield number, text.removesuffix("\r").split(delimiter)
            continue
        used: list[Line] = []
        try:
            yield number, _quoted_row(text, delimiter, take, used)
        except Unusable as unusable:
            put_back.extendleft(reversed(used))
            yield unusable.at(f"{path}:{number}")


def _quoted_row(
    text: str, delimiter: str, take: Callable[[], Line | None], used: list[Line]
) -> list[str]:
    """The cells of the row that begins with `text`; lines it takes are added to `used`."""
    cells: list[str] = []
    open_cell = _scan(text, delimiter, cells, None)
    while open_cell is not None:
        line = take()
        if line is not None:
            used.append(line)
        if line is None or len(used) > MAX_CELL_LINES:
            raise Unusable("broken_quotes", f"a quote is never closed; {_QUOTES_HINT}")
        if isinstance(line, Rejected):
            raise Unusable("bad_encoding", f"inside a quoted cell: {line.detail}")
        open_cell.append("\n")
        open_cell = _scan(line[1], delimiter, cells, open_cell)
    return cells


_QUOTES_HINT = "if the file does not quote its cells, set quoted=False"


def _scan(
    text: str, delimiter: str, cells: list[str], open_cell: list[str] | None
) -> list[str] | None:
    """Adds the cells of one line; returns the parts of a quoted cell that is still open."""
    position = 0
    while True:
        if open_cell is None:
            if not text.startswith('"', position):
                end = text.find(delimiter, position)
                if end < 0:
                    cells.append(text[position:].removesuffix("\r"))
                    return None
                cells.append(text[position:end])
                position = end + len(delimiter)
                continue
            open_cell = []
            position += 1
        end = text.find('"', position)
        if end < 0:
            open_cell.append(text[position:])
            return open_cell
        if text.startswith('""', end):
            open_cell.append(text[position : end + 1])
            position = end + 2
            continue
        open_cell.append(text[position:end])
        cells.append("".join(open_cell))
        if text[end + 1 :] in ("", "\r"):
            return None
        if not text.startswith(delimiter, end + 1):
            raise Unusable("broken_quotes", f"text after a closing quote; {_QUOTES_HINT}")
        open_cell = None
        position = end + 1 + len(delimiter)
