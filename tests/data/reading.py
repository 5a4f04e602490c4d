"""Short ways for the tests of this folder to write files and to read records from them."""

from pathlib import Path

import pytest

from ift_jax.data.sources import Record, Rejected, read_records
from ift_jax.errors import InputError

LINES = '{"a": 1}\n{"a": 2}\n'


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def fields(path, **options):
    rows = list(read_records(path, **options))
    assert all(isinstance(row, Record) for row in rows), rows
    return [row.fields for row in rows]


def only_rejected(path, **options) -> Rejected:
    [rejected] = [row for row in read_records(path, **options) if isinstance(row, Rejected)]
    return rejected


def message(source, **options) -> str:
    """The one-line message of the InputError that reading `source` raises."""
    with pytest.raises(InputError) as caught:
        list(read_records(source, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)
