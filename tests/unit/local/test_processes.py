from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.processes import ProcessRecord, created_at, last_lines, launch, read_record, write_record

OURSELVES = ProcessRecord("gateway", os.getpid(), created_at(os.getpid()), "ready", 1.0, {"http": 8080}, 2, "")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "run", OURSELVES)
    assert read_record(tmp_path / "run", "gateway") == OURSELVES
    assert read_record(tmp_path / "run", "serving") is None
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["gateway.json"]


def test_a_reused_pid_is_not_taken_for_the_process() -> None:
    assert OURSELVES.process() is not None
    assert replace(OURSELVES, created=OURSELVES.created - 100).process() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "gateway.json").write_text(content)
    assert read_record(tmp_path, "gateway") is None


def test_a_command_that_does_not_exist_is_a_fatal_error(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="does not start"):
        launch([tmp_path / "nothing"], log=tmp_path / "log", environment={})


def test_the_last_lines_of_a_log_are_those_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old 1\nold 2\n")
    start = log.stat().st_size
    log.write_text("old 1\nold 2\nnew 1\nnew 2\n")
    assert last_lines(log, 5, since=start) == ["new 1", "new 2"]
    assert last_lines(tmp_path / "none") == []


def test_a_state_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shortstack.local.processes.json.dump", full)
    with pytest.raises(Fatal, match="No space left"):
        write_record(tmp_path, ProcessRecord("kafka", 1, 0.0, "ready", 0.0))
    assert list(tmp_path.iterdir()) == []
