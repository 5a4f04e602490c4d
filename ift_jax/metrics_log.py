"""A run's metrics as JSON lines and as TensorBoard event files."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class MetricsLog:
    """Writes metrics.jsonl and tensorboard/ of a workdir.

    A run that goes on from step `first` drops the lines of later steps, which it makes again.
    """

    def __init__(self, workdir: Path, first: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in self.lines(self._path) if line["step"] <= first]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._events = EventFileWriter(str(workdir / "tensorboard"))

    @staticmethod
    def lines(path: Path) -> list[dict[str, float]]:
        """The whole lines of a metrics.jsonl; a line cut off by a crash is left out."""
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One object for a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()
