"""Opens plain and compressed files, and splits them into decoded lines; replaces small ones.

Lines end at `\\n` only, with an optional `\\r` before it. `str.splitlines` and text mode would
also split at U+0085, U+2028 or a lone `\\r`, all of which stand inside real texts. But a file
without any `\\n` ends its lines with a `\\r`, as some spreadsheets for the Macintosh write it.
"""

import bz2
import codecs
import fcntl
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, cast

from ift_jax.data.records import Rejected
from ift_jax.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh9": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"PK\x03\x04": "a zip archive",
    b"PAR1\x15": ".parquet",
    b"ARROW1\x00\x00": ".arrow",
}
_CHUNK_BYTES = 1 << 17
LOCK = "lock"  # the file that `locked` locks


def split_extension(path: str) -> tuple[str, str]:
    """The extension that names the format, and the one that names the compression ("" if none).

    Example:
        >>> split_extension("data/Reviews.JSONL.gz"), split_extension("TREC.train")
        (('.jsonl', '.gz'), ('.train', ''))
    """
    stem, last = os.path.splitext(path.lower())
    if last in COMPRESSIONS:
        return os.path.splitext(stem)[1], last
    return last, ""


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed by its extension, as a context manager.

    Raises:
        InputError: If the file is empty, cannot be read, is cut off or not what its name says.
            Errors of reading inside the `with` block are turned into it too.
    """
    compression = split_extension(path)[1]
    try:
        with _open_bytes(os.path.expanduser(path), compression) as file:
            head = cast(Any, file).peek(8)[:8]
            if not head:
                raise InputError(f"{path}: the file is empty; give one that holds records")
            for magic, suffix in _MAGIC.items():
                if head.startswith(magic):
                    raise InputError(
                        f"{path}: holds {suffix.lstrip('.')} data, not what its name says; "
                        + (f"rename it to end in {suffix}" if suffix[0] == "." else "unpack it")
                    )
            yield file
    except EOFError:
        raise InputError(
            f"{path}: the {COMPRESSIONS[compression]} data is cut off; copy or download it again"
        ) from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, _NotZstd) as error:
        raise _broken(path, compression, error) from None
    except OSError as error:
        # bz2 reports broken data as a bare OSError("Invalid data stream"), without errno.
        if error.errno is None and compression:
            raise _broken(path, compression, error) from None
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


class _NotZstd(Exception):
    """A frame that zstandard refuses."""


def _broken(path: str, compression: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: not valid {COMPRESSIONS[compression]} data ({error}); "
        f"copy it again, or rename it if it is not compressed"
    )


def _open_bytes(path: str, compression: str) -> BinaryIO:
    if compression == ".gz":
        return cast(BinaryIO, io.BufferedReader(cast(Any, gzip.open(path)), _CHUNK_BYTES))
    if compression == ".bz2":
        return cast(BinaryIO, io.BufferedReader(cast(Any, bz2.open(path)), _CHUNK_BYTES))
    if compression == ".xz":
        return cast(BinaryIO, io.BufferedReader(cast(Any, lzma.open(path)), _CHUNK_BYTES))
    if compression == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), _CHUNK_BYTES))
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Decompresses frame after frame; unlike zstandard's stream_reader it sees a cut-off one."""

    def __init__(self, path: str) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._error = zstandard.ZstdError
        self._new_frame = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._frame: Any = None
        self._unused = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = self._unused or self._file.read(_CHUNK_BYTES)
            self._unused = b""
            if not compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._ready = self._frame.decompress(compressed)
            except self._error as error:
                raise _NotZstd(error) from None
            if self._frame.eof:
                self._unused, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def check_encoding(encoding: str) -> None:
    """Raises InputError for an encoding that Python does not know."""
    try:
        "".encode(encoding)
    except LookupError:
        raise InputError(
            f"encoding={encoding!r}: no such encoding; known are 'utf-8', 'latin-1', 'cp1252', "
            "'utf-16', 'gb18030', 'shift_jis' and Python's others"
        ) from None


def read_lines(path: str, encoding: str) -> Iterator[tuple[int, str] | Rejected]:
    """The file's lines with their numbers, counted from 1, without `\\n` but with a `\\r`.

    A line that the encoding cannot decode comes as a Rejected. A byte order mark is dropped.
    """
    with opened(path) as file:
        head = cast(Any, file).peek(2)[:2]
        codec = codecs.lookup(encoding).name.removesuffix("-sig")
        newline_is_a_byte = "\n".encode(codec) == b"\n"
        if codec == "utf-8" and head in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: looks like UTF-16; set encoding='utf-16'")
        if newline_is_a_byte:
            yield from _decoded_lines(path, file, codec)
            return
        # UTF-16, UTF-32, EBCDIC: a line's bytes cannot be cut out before they are decoded.
        try:
            with io.TextIOWrapper(file, encoding, newline="\n") as lines:
                for number, text in enumerate(_apart(lines, "\n", "\r"), 1):
                    yield number, text.removesuffix("\n")
        except UnicodeError as error:
            raise InputError(f"{path}: is not {encoding} ({error}); name its encoding") from None


def _apart(lines: Iterator[AnyStr], newline: AnyStr, old: AnyStr) -> Iterator[AnyStr]:
    """The lines; where no `newline` ends the first, and so any, what stands between `old` ones."""
    first = next(lines, None)
    if first is None:
        return
    yield from [first] if first.endswith(newline) else first.removesuffix(old).split(old)
    yield from lines


def _decoded_lines(
    path: str, file: BinaryIO, encoding: str
) -> Iterator[tuple[int, str] | Rejected]:
    for number, line in enumerate(_apart(file, b"\n", b"\r"), 1):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            yield Rejected(
                f"{path}:{number}",
                "bad_encoding",
                f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not {encoding}; "
                "name the file's own encoding, for example encoding='latin-1' or 'cp1252'",
            )
            continue
        if number == 1:
            text = text.removeprefix("\ufeff")
        yield number, text.removesuffix("\n")


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone works in a folder, as long as the block lasts.

    A process that ends, however it does, lets go of it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is either whole or not there; where a link leads, and into devices."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
