"""metrics.jsonl and tensorboard/: every step once, also after a crash and a restart."""

import json
import time
from pathlib import Path

import pytest

from ift_jax.metrics_log import MetricsLog


def steps(workdir):
    return [line["step"] for line in MetricsLog.lines(workdir / "metrics.jsonl")]


def log_steps(workdir, first, numbers):
    log = MetricsLog(workdir, first)
    for step in numbers:
        log.write(step, {"loss": 1.0 / step})
    log.close()


def test_each_step_is_a_line_of_its_own(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 2.5, "tokens": 7.0})
    # Readable at once, not when the run is over.
    assert MetricsLog.lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5, "tokens": 7.0}]
    log.write(2, {"validation_loss": 1.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 1, "loss": 2.5, "tokens": 7.0},
        {"step": 2, "validation_loss": 1.5},
    ]


def test_a_run_that_goes_on_keeps_earlier_lines_and_drops_later_ones(tmp_path):
    log_steps(tmp_path, 0, range(1, 8))
    log_steps(tmp_path, 5, range(6, 9))
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    log_steps(tmp_path, 0, [1])
    assert steps(tmp_path) == [1]


def test_validation_of_the_step_that_is_gone_on_from_stays(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step, values in ((5, {"loss": 1.0}), (5, {"validation_loss": 0.5}), (6, {"loss": 0.9})):
        log.write(step, values)
    log.close()
    log_steps(tmp_path, 5, [6])
    lines = MetricsLog.lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], *(k for k in line if k != "step")) for line in lines] == [
        (5, "loss"), (5, "validation_loss"), (6, "loss"),
    ]  # fmt: skip


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    log_steps(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert steps(tmp_path) == [1, 2]
    log_steps(tmp_path, 2, [3])
    assert steps(tmp_path) == [1, 2, 3]


def test_a_missing_file_has_no_lines(tmp_path):
    assert MetricsLog.lines(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_the_same_values(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    log_steps(tmp_path, 0, [1, 2, 4])
    [file] = (tmp_path / "tensorboard").iterdir()
    found = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert found == [(s, "loss", pytest.approx(1 / s)) for s in (1, 2, 4)]


def test_a_kill_while_a_run_is_taken_up_again_loses_no_line(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 2.0})
    log.close()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            MetricsLog(tmp_path, 2)
    assert steps(tmp_path) == [1, 2, 3]
    MetricsLog(tmp_path, 2).close()
    assert steps(tmp_path) == [1, 2]


def test_tensorboard_shows_a_step_once_whatever_was_stopped_and_begun_anew(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown():
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return [(event.step, round(event.value, 3)) for event in events.Scalars("loss")]

    log_steps(tmp_path, 0, range(1, 6))
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in their names
    log = MetricsLog(tmp_path, 3)
    for step in (4, 5, 6):
        log.write(step, {"loss": float(step)})
    log.close()
    assert shown() == [(1, 1.0), (2, 0.5), (3, 0.333), (4, 4.0), (5, 5.0), (6, 6.0)]
    log_steps(tmp_path, 0, [1])
    assert shown() == [(1, 1.0)]
