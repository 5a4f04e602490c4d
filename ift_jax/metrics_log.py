"""A run's metrics as JSON lines and as TensorBoard event files, and its samples."""

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ift_jax.data.files import replace_text


class MetricsLog:
    """Writes metrics.jsonl, samples.jsonl and tensorboard/ of a workdir.

    A run that goes on from step `first` drops the lines of later steps, which it makes again; one
    that begins drops all. TensorBoard is told to.
    """

    def __init__(self, workdir: Path, first: int):
        self._file = _open_at(workdir / "metrics.jsonl", first)
        self._samples = _open_at(workdir / "samples.jsonl", first)
        if not first:
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # TensorBoard drops what other files say of this step and later ones.
        started = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=time.time(), step=first + 1, session_log=started))

    @staticmethod
    def lines(path: Path) -> list[dict[str, Any]]:
        """The whole lines of such a file; a line cut off by a crash is left out."""
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One object for a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def write_samples(self, step: int, samples: Iterable[Mapping[str, str]]) -> None:
        """One object for each sample of a step."""
        for sample in samples:
            line = json.dumps({"step": step, **sample}, ensure_ascii=False)
            self._samples.write(line + "\n")
        self._samples.flush()

    def close(self) -> None:
        """Flushes all."""
        self._file.close()
        self._samples.close()
        self._events.close()


def _open_at(path: Path, first: int) -> TextIO:
    kept = [line for line in MetricsLog.lines(path) if first and line["step"] <= first]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
    replace_text(path, text)
    return path.open("a", encoding="utf-8")
