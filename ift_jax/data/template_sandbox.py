"""Keeps one `template_worker` process alive and sends it records.

Separate processes, because nothing else bounds time and memory: a thread cannot be stopped,
and Jinja's sandbox counts neither seconds nor bytes. Started with `subprocess`, never forked,
since JAX has threads. The worker ends itself when a record takes too long, so that there is no
watchdog here: the pipe closes, the record at its head is to blame, and a new worker goes on
with the one after it.
"""

import atexit
import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, BinaryIO, NamedTuple, cast

from ift_jax.data import template_worker
from ift_jax.errors import InputError

MAX_CHUNK_RECORDS = 256
MAX_CHUNK_BYTES = 2**20
MAX_RECORD_BYTES = 8 * 2**20
MAX_REPLY_BYTES = 2**26
MAX_TIMEOUTS_IN_A_ROW = 3
MAX_TIMEOUTS = 10  # of one template in a build


class Success(NamedTuple):
    """What a record rendered to."""

    parts: list[str]
    answer_choices: list[str] | None


class Failure(NamedTuple):
    """Why a record did not render: a slug to count by, and a line for a person."""

    reason: str
    message: str


Reply = Success | Failure
Source = tuple[str, str | None, bool]  # jinja, answer_choices, strict
Timeouts = Counter[Source]  # records that ran out of time

Shorten = Callable[[Success], Reply]


def render_records(
    jinja: str,
    answer_choices: str | None,
    strict: bool,
    records: Sequence[Mapping[str, Any]],
    shorten: Shorten = lambda reply: reply,
    timeouts: Timeouts | None = None,
) -> list[Reply]:
    """Renders each record in this process's worker; replies in the records' order.

    After three records in a row that ran out of time, or ten in all, the rest are not tried: a
    data set of 100,000 would otherwise take a day to be rejected.

    Args:
        timeouts: of earlier calls, to which this one's are added; without them it starts anew.
        shorten: what to keep of a reply, as soon as it has come: replies are bounded in size one
            by one only.
    """
    # A forked child must not write into its parent's pipes, so renderers go by process.
    renderer = _RENDERERS.setdefault(os.getpid(), Renderer())
    with renderer.lock:
        return renderer.render((jinja, answer_choices, strict), records, shorten, timeouts)


class Renderer:
    """A worker that is started when needed and replaced when it has died."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._worker: _Worker | None = None
        self._timeouts_in_a_row = 0
        self._timeouts: Timeouts = Counter()

    def render(
        self,
        source: Source,
        records: Sequence[Mapping[str, Any]],
        shorten: Shorten = lambda reply: reply,
        timeouts: Timeouts | None = None,
    ) -> list[Reply]:
        replies: list[Reply] = []
        self._timeouts_in_a_row = 0
        self._timeouts = Counter() if timeouts is None else timeouts
        for chunk in _chunks(records):
            if isinstance(chunk, Failure):
                replies.append(chunk)
            else:
                replies += self._render_chunk(source, chunk, shorten)
            if given_up := self._given_up(source):
                message = f"not tried: {given_up} ran out of time"
                replies += [Failure("timeout", message)] * (len(records) - len(replies))
                break
        return replies

    def _given_up(self, source: Source) -> str:
        """The records because of which a template is tried no longer, or ""."""
        if self._timeouts[source] >= MAX_TIMEOUTS:
            return f"{MAX_TIMEOUTS} records"
        if self._timeouts_in_a_row >= MAX_TIMEOUTS_IN_A_ROW:
            return f"{MAX_TIMEOUTS_IN_A_ROW} records in a row"
        return ""

    def close(self) -> None:
        if self._worker:
            self._worker.end()
            self._worker = None

    def _render_chunk(
        self, source: Source, chunk: Sequence[bytes], shorten: Shorten
    ) -> list[Reply]:
        """Fewer replies than records only where the template is given up."""
        replies: list[Reply] = []
        died_at = -1
        while len(replies) < len(chunk) and not self._given_up(source):
            answered, exit_status = self._exchange(source, chunk[len(replies) :], shorten)
            replies += answered
            if answered:
                self._timeouts_in_a_row = 0
            if exit_status == -signal.SIGPROF:
                limit_s = template_worker.MAX_CPU_SECONDS
                replies.append(Failure("timeout", f"rendering took more than {limit_s:g} s"))
                self._timeouts_in_a_row += 1
                self._timeouts[source] += 1
            elif exit_status is not None and died_at < len(replies):
                died_at = len(replies)  # perhaps somebody else killed it: try the record again
            elif exit_status is not None:
                message = f"rendering ended the worker twice (exit status {exit_status})"
                replies.append(Failure("template_error", message))
        return replies

    def _exchange(
        self, source: Source, chunk: Sequence[bytes], shorten: Shorten
    ) -> tuple[list[Reply], int | None]:
        """The replies that came, and the exit status of a worker that died over the next one."""
        if self._worker is None or self._worker.process.poll() is not None:
            self.close()
            self._worker = _Worker()
        replies: list[Reply] = []
        try:
            self._worker.send(pickle.dumps((*source, list(chunk)), protocol=5))
            for _ in chunk:
                reply = _parse(self._worker.receive())
                replies.append(shorten(reply) if isinstance(reply, Success) else reply)
        except (ValueError, OSError, RecursionError):
            # The pipe closed, or what came is no reply, after which nothing is to be trusted.
            exit_status = self._worker.end()
            self._worker = None
            return replies, exit_status
        except BaseException:  # such as Ctrl-C: the replies to come would answer the next request
            self.close()
            raise
        return replies, None


class _Worker:
    """A running worker process, and its pipes."""

    def __init__(self) -> None:
        if os.name != "posix":
            raise InputError(
                "templates are rendered under POSIX resource limits, which this system lacks: "
                "use Linux, macOS or the Windows Subsystem for Linux"
            )
        # None of the parent's secrets; and one hash seed, so that sets always have one order.
        kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment["PYTHONHASHSEED"] = "0"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", template_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        if self.receive() != template_worker.READY:
            raise RuntimeError(f"the template worker did not start (exit status {self.end()})")

    def send(self, request: bytes) -> None:
        pipe = cast(BinaryIO, self.process.stdin)
        pipe.write(template_worker.REQUEST_LENGTH.pack(len(request)) + request)
        pipe.flush()

    def receive(self) -> bytes:
        return cast(BinaryIO, self.process.stdout).readline(MAX_REPLY_BYTES)

    def end(self) -> int:
        """Ends the process unless it has ended by itself; returns its exit status."""
        for pipe in (self.process.stdout, self.process.stdin):
            with contextlib.suppress(OSError):  # unsent bytes for a reader that is gone
                cast(BinaryIO, pipe).close()
        try:
            # A worker that its timer ended is on its way out; let it report the signal.
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _chunks(records: Sequence[Mapping[str, Any]]) -> Iterator[list[bytes] | Failure]:
    """The records pickled, in requests of bounded size; a failure for one that cannot be sent."""
    chunk: list[bytes] = []
    num_bytes = 0
    for record in records:
        pickled = _pickle(record)
        failed = isinstance(pickled, Failure)
        full = len(chunk) == MAX_CHUNK_RECORDS or num_bytes + len(pickled) > MAX_CHUNK_BYTES
        if chunk and (failed or full):
            yield chunk
            chunk, num_bytes = [], 0
        if isinstance(pickled, Failure):
            yield pickled
        else:
            chunk.append(pickled)
            num_bytes += len(pickled)
    if chunk:
        yield chunk


class _PlainPickler(pickle.Pickler):
    """Sends what columnar files hold as values of the standard library.

    The worker has no NumPy, no pandas and no data of time zones: arrays and scalars become the
    Python values they hold, and points in time keep their zone's offset and name, to microseconds.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, datetime):
            return _plain_datetime(obj)
        if isinstance(obj, timedelta):
            return timedelta, (obj.days, obj.seconds, obj.microseconds)
        if not isinstance(obj, type) and hasattr(obj, "tolist"):
            value = obj.tolist()
            return type(value), (value,)
        return NotImplemented


def _plain_datetime(value: datetime) -> tuple[Any, tuple[Any, ...]]:
    """How to make the value anew; pandas' "not a time" is None."""
    if value != value:
        return type(None), ()
    offset = value.utcoffset()
    zone = None if offset is None else timezone(offset, value.tzname() or "")
    date, time = (value.year, value.month, value.day), (value.hour, value.minute, value.second)
    return datetime, (*date, *time, value.microsecond, zone)


def _pickle(record: Mapping[str, Any]) -> bytes | Failure:
    buffer = io.BytesIO()
    try:
        _PlainPickler(buffer, protocol=5).dump(dict(record))
    except Exception as error:
        return Failure("template_error", f"the record holds more than plain values: {error}")
    if buffer.tell() > MAX_RECORD_BYTES:
        return Failure("too_large", f"the record has more than {MAX_RECORD_BYTES >> 20} MiB")
    return buffer.getvalue()


def _parse(line: bytes) -> Reply:
    """Raises ValueError for anything that the worker does not say by itself."""
    if not line.endswith(b"\n"):
        raise ValueError("cut off")
    match json.loads(line):
        case [None, [*parts], None] if _are_texts(parts):
            return Success(parts, None)
        case [None, [*parts], [*choices]] if _are_texts(parts) and _are_texts(choices):
            return Success(parts, choices)
        case [str(reason), str(message)]:
            return Failure(reason, message)
    raise ValueError("not a reply")


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


_RENDERERS: dict[int, Renderer] = {}


@atexit.register
def end_worker() -> None:
    """Ends this process's worker; the next record to render would start another."""
    if renderer := _RENDERERS.get(os.getpid()):
        renderer.close()
