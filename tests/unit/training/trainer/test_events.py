from __future__ import annotations

import json
from pathlib import Path

import pytest

from shortstack.core.errors import Invalid
from shortstack.training.trainer.events import EventLog, MetricLog, read_lines


def test_numbers_go_on_over_attempts_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path, 1, lambda: 10.0) as log:
        log.write("started", run="r")
        log.write("step", step=1)
    with path.open("a") as out:
        out.write('{"seq": 3, "type": "st')
    with EventLog(path, 2, lambda: 20.0) as log:
        log.write("step", step=2)
    events = read_lines(path)
    assert [(event["seq"], event["attempt"], event["type"]) for event in events] == [
        (1, 1, "started"),
        (2, 1, "step"),
        (3, 2, "step"),
    ]
    assert events[0] == {"seq": 1, "attempt": 1, "type": "started", "time": 10.0, "run": "r"}


def test_an_unknown_event_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e", 1, lambda: 0.0) as log, pytest.raises(Invalid, match='Did you mean "step"'):
        log.write("steps")


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    metrics = MetricLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.write(step, loss=1.0 / step)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "lo')
    metrics.resume_at(2)
    metrics.write(3, loss=0.3)
    assert [line["step"] for line in metrics.read()] == [1, 2, 3]
    assert metrics.read()[-1]["loss"] == 0.3


def test_whole_lines_alone_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps({"a": 1}) + "\n" + '{"a"')
    assert read_lines(path) == [{"a": 1}]
