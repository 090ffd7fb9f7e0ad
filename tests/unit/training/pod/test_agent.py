"""The end of an attempt while the object store is away or full: it is waited for, and somebody is told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal, Transient
from shortstack.core.telemetry import Telemetry
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.agent import _work
from shortstack.training.attempt import Attempt
from shortstack.training.launcher import STOPPED, AttemptOrder
from shortstack.training.pod.agent import _Companion
from shortstack.training.pod.folder import PodConfig, PodFolder
from shortstack.training.pod.objects import result_key
from shortstack.training.processes import attempt_paths
from shortstack.training.torchrun import Torchrun
from shortstack.training.trainer.events import read_lines

HOURS_S = 7200.0


class FullStore(MemoryBlobStore):
    """Full, until an hour of the clock."""

    def __init__(self, clock: FakeClock, until_s: float) -> None:
        super().__init__()
        self.clock, self.until_s = clock, until_s

    def put_file(self, key: str, path: Path) -> None:
        if self.clock.monotonic() < self.until_s:
            raise Fatal("No space left on device", where="/blobs", remedy="Free space there.")
        super().put_file(key, path)


class Trainer:
    """Torchrun that has trained."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def run(self) -> int:
        return 0


def trained(folder: Path, blobs: MemoryBlobStore) -> Attempt:
    """An attempt whose trainer has left an export."""
    blobs.put("manifest.json", b'{"dataset": "faq", "version": "v1", "splits": {}}')
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "adapter.bin").write_bytes(b"weights")
    manifest = {"digest": "a" * 64, "files": {"adapter.bin": {}}, "prompt_format": "base"}
    (folder / "export" / "export.manifest.json").write_bytes(orjson.dumps(manifest))
    first = {"seq": 7, "attempt": 1, "type": "finished", "time": 1.0}
    (folder / "events.jsonl").write_bytes(orjson.dumps(first) + b"\n")
    plan = {"base_model": {"name": "tiny", "path": "/x", "digest": "b" * 64}}
    return Attempt(AttemptOrder("run-1", 1, "manifest.json", 1, plan), folder, blobs)


def waits(folder: Path) -> list[tuple[int, str]]:
    return [
        (event["seq"], event["waits"]) for event in read_lines(folder / "events.jsonl") if event["type"] == "waiting"
    ]


def test_a_finished_training_in_a_pod_outlasts_a_full_store(tmp_path: Path) -> None:
    clock, folder = FakeClock(), PodFolder(tmp_path)
    blobs = FullStore(clock, HOURS_S)
    attempt = trained(folder.run, blobs)
    folder.next_stored.write_text("1")
    folder.exit.write_text("0")
    with Telemetry.start("training", PodConfig(run="run-1", attempt=1)) as telemetry:
        assert _Companion(attempt, folder, clock, telemetry.log, threading.Event()).conclude() == 0
    assert clock.monotonic() >= HOURS_S
    assert orjson.loads(blobs.get(result_key("run-1", 1)))["export"]["digest"] == "a" * 64
    words = "cannot store the export: /blobs: No space left on device. Free space there."
    assert waits(folder.run) == [(8, words), (9, "")]


@pytest.mark.parametrize("takes_words", [True, False])
def test_a_pod_that_is_told_to_end_while_it_waits_was_asked_to_stop(tmp_path: Path, takes_words: bool) -> None:
    clock, folder, stopping = FakeClock(), PodFolder(tmp_path), threading.Event()

    class Stopped(FullStore):
        def put_file(self, key: str, path: Path) -> None:
            if self.clock.monotonic() > 100:
                stopping.set()
            super().put_file(key, path)

        def put(self, key: str, data: bytes) -> None:
            if stopping.is_set() and not takes_words:
                raise Transient("the object store does not answer")
            super().put(key, data)

    blobs = Stopped(clock, HOURS_S)
    attempt = trained(folder.run, blobs)
    folder.next_stored.write_text("1")
    folder.exit.write_text("0")
    with Telemetry.start("training", PodConfig(run="run-1", attempt=1)) as telemetry:
        companion = _Companion(attempt, folder, clock, telemetry.log, stopping)
        with pytest.raises(Fatal, match="No space left"):
            companion.conclude()
    assert 100 < clock.monotonic() < 200
    assert blobs.exists(result_key("run-1", 1)) == takes_words
    if takes_words:
        assert orjson.loads(blobs.get(result_key("run-1", 1)))["code"] == STOPPED


def test_a_finished_training_on_one_machine_outlasts_a_full_store(tmp_path: Path) -> None:
    clock = FakeClock()
    blobs = FullStore(clock, HOURS_S)
    paths = attempt_paths(tmp_path, "run-1", 1)
    attempt = trained(paths.folder, blobs)
    with Telemetry.start("training", PodConfig(run="run-1", attempt=1)) as telemetry:
        assert _work(attempt, paths, cast(Torchrun, Trainer()), clock, telemetry.log) == 0
    assert orjson.loads(paths.result.read_bytes())["export"]["digest"] == "a" * 64
    assert [words != "" for _, words in waits(paths.folder)] == [True, False]


def test_an_agent_that_is_told_to_end_while_it_waits_was_asked_to_stop(tmp_path: Path) -> None:
    clock, trainer = FakeClock(), Trainer()

    class Away(MemoryBlobStore):
        def put_file(self, key: str, path: Path) -> None:
            trainer.stopping.set()
            raise Transient("the object store does not answer")

    paths = attempt_paths(tmp_path, "run-1", 1)
    attempt = trained(paths.folder, Away())
    with Telemetry.start("training", PodConfig(run="run-1", attempt=1)) as telemetry:
        _work(attempt, paths, cast(Any, trainer), clock, telemetry.log)
    assert orjson.loads(paths.result.read_bytes())["code"] == STOPPED
    assert clock.monotonic() < 5  # long before the launcher kills what has not ended
