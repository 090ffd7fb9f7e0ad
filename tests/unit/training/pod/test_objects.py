"""Last words and papers: written once, and not given up while the object store is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Transient
from shortstack.core.telemetry import Telemetry
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.launcher import AttemptPhase, AttemptStatus
from shortstack.training.pod.__main__ import main
from shortstack.training.pod.folder import PodConfig
from shortstack.training.pod.objects import patiently, put_papers, result_key, say


def test_the_first_word_stands() -> None:
    blobs = MemoryBlobStore()
    say(blobs, "run-1", 1, {"exit_code": 1, "code": "no_rows", "message": "nothing", "final": True})
    say(blobs, "run-1", 1, {"exit_code": 0, "export": {}})
    told = AttemptStatus.told(blobs.get(result_key("run-1", 1)))
    assert told == AttemptStatus(AttemptPhase.FAILED, code="no_rows", message="nothing", final=True)


def test_papers_are_kept_by_attempt_and_weights_are_not(tmp_path: Path) -> None:
    blobs = MemoryBlobStore()
    for name in ("metrics.jsonl", "loss.png", "plan.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    put_papers(blobs, "run-1", 2, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("more")
    put_papers(blobs, "run-1", 2, tmp_path)
    assert blobs.keys() == ["runs/run-1/attempt-2/loss.png", "runs/run-1/attempt-2/metrics.jsonl"]


def test_an_object_store_that_is_away_is_waited_for_ten_minutes() -> None:
    clock, asked = FakeClock(), []

    def act() -> str:
        asked.append(clock.monotonic())
        if len(asked) < 4:
            raise Transient("away")
        return "done"

    with Telemetry.start("training", PodConfig(run="r", attempt=1)) as telemetry:
        assert patiently(act, clock, telemetry.log, "test") == "done"
        assert asked == [0.0, 2.0, 4.0, 6.0]

        def never() -> None:
            raise Transient("away for good")

        with pytest.raises(Transient, match="away for good"):
            patiently(never, clock, telemetry.log, "test")
    assert clock.monotonic() > 600


@pytest.mark.parametrize("arguments", [[], ["other"], ["train", "agent"]])
def test_an_unknown_container_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    assert "prepare | train | agent" in capsys.readouterr().err
