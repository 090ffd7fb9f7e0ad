"""Checkpoints in the object store: whole, found without a listing, and gone when the run is over."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.core.errors import Fatal, Transient
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.training.pod.stored import StoredCheckpoints, drop_stored
from shortstack.training.trainer.checkpoints import Checkpoint, newest_sealed, newest_whole, seal


class Interrupted(MemoryBlobStore):
    """Goes away after a number of puts, as a pod does in mid-upload."""

    def __init__(self, puts: int) -> None:
        super().__init__()
        self.puts = puts

    def put(self, key: str, data: bytes) -> None:
        if self.puts == 0:
            raise Transient("away")
        self.puts -= 1
        super().put(key, data)


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.told.append(f"{event}: {fields['error']}")


class KeepsAll(MemoryBlobStore):
    """Denies deletes, as a bucket's policy may."""

    def delete_prefix(self, prefix: str) -> int:
        raise Fatal("deletes are denied")


def checkpoint(run: Path, step: int, text: bytes = b"state") -> Checkpoint:
    folder = run / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(bytes([step % 256]) + text)
    (folder / "global_step" / "optimizer.pt").write_bytes(text)
    seal(folder, step=step, ranks=1, attempt=1)
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, step + 1)))
    found = newest_sealed(run)
    assert found is not None
    return found


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_a_new_pod_finds_the_newest_with_its_metrics(tmp_path: Path) -> None:
    blobs, first, second = MemoryBlobStore(), folder(tmp_path, "one"), folder(tmp_path, "two")
    stored = StoredCheckpoints(blobs, "run-1", Log())
    assert stored.next_number() == 1
    assert stored.restore(second, 1) is None
    number = 1
    for step in (10, 20, 30):
        number = stored.store(checkpoint(first, step), first, 1, number)
    assert stored.next_number() == number == 4
    assert StoredCheckpoints(blobs, "run-1", Log()).restore(second, number) == 30
    whole = newest_whole(second)
    assert whole is not None
    assert whole.step == 30
    assert (second / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    assert not any("/10.a1/" in key for key in blobs.keys())  # noqa: SIM118
    assert StoredCheckpoints(blobs, "run-2", Log()).next_number() == 1


def test_restoring_twice_is_restoring_once(tmp_path: Path) -> None:
    blobs, first, second = MemoryBlobStore(), folder(tmp_path, "one"), folder(tmp_path, "two")
    stored = StoredCheckpoints(blobs, "run-1", Log())
    stored.store(checkpoint(first, 10), first, 1, 1)
    for _ in range(2):
        assert stored.restore(second, 2) == 10
    assert newest_whole(second) is not None


def test_a_damaged_newest_costs_steps_and_not_the_run(tmp_path: Path) -> None:
    blobs, first, second, log = MemoryBlobStore(), folder(tmp_path, "one"), folder(tmp_path, "two"), Log()
    stored = StoredCheckpoints(blobs, "run-1", log)
    for number, step in enumerate((10, 20), start=1):
        stored.store(checkpoint(first, step), first, 1, number)
    key = "runs/run-1/checkpoints/20.a1/checkpoint/adapter.safetensors"
    blobs.delete_prefix(key)
    blobs.put(key, b"other bytes")
    assert stored.restore(second, 3) == 10
    assert [words for words in log.told if "passed over" in words and "adapter.safetensors" in words]
    blobs.delete_prefix("runs/run-1/checkpoints")
    assert stored.restore(folder(tmp_path, "three"), 3) is None


def test_another_attempt_may_reach_the_same_step_with_other_bytes(tmp_path: Path) -> None:
    blobs, first, second, third = MemoryBlobStore(), *(folder(tmp_path, name) for name in ("one", "two", "three"))
    stored = StoredCheckpoints(blobs, "run-1", Log())
    stored.store(checkpoint(first, 10), first, 1, 1)
    assert stored.store(checkpoint(second, 10, b"other"), second, 2, 1) == 3  # number 1 was taken meanwhile
    assert stored.restore(third, 3) == 10
    assert (third / "checkpoint-10" / "global_step" / "optimizer.pt").read_bytes() == b"other"


def test_what_the_trainer_has_rotated_away_is_said_to_be_gone(tmp_path: Path) -> None:
    blobs, run = MemoryBlobStore(), folder(tmp_path, "one")
    found = checkpoint(run, 10)
    (found.path / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        StoredCheckpoints(blobs, "run-1", Log()).store(found, run, 1, 1)
    assert blobs.keys() == []
    assert not (run / ".storing").exists()


def test_a_checkpoint_is_stored_though_older_ones_cannot_be_dropped(tmp_path: Path) -> None:
    """The agent goes on to the next one, and does not store it anew with every look."""
    blobs, run, log, number = KeepsAll(), folder(tmp_path, "one"), Log(), 1
    stored = StoredCheckpoints(blobs, "run-1", log)
    for step in (10, 20, 30):
        number = stored.store(checkpoint(run, step), run, 1, number)
    assert number == 4
    assert sum("/stored/" in key for key in blobs.keys()) == 3  # noqa: SIM118
    assert log.told == ["an older checkpoint is still there: deletes are denied"]
    assert stored.restore(folder(tmp_path, "two"), number) == 30


def test_storing_again_what_is_stored_makes_no_second_entry(tmp_path: Path) -> None:
    """The store took the entry, and its answer was lost: the trainer's metrics have gone on since."""
    blobs, run = MemoryBlobStore(), folder(tmp_path, "one")
    stored, found = StoredCheckpoints(blobs, "run-1", Log()), checkpoint(run, 10)
    assert stored.store(found, run, 1, 1) == 2
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 15)))
    assert stored.store(found, run, 1, 1) == 2
    assert [key for key in blobs.keys() if "/stored/" in key] == ["runs/run-1/stored/1.json"]  # noqa: SIM118


@settings(deadline=None, max_examples=40)  # a busy disk takes its time
@given(st.integers(0, 12), st.integers(0, 12))
def test_wherever_storing_breaks_off_the_newest_whole_one_is_found(first_puts: int, more_puts: int) -> None:
    """A checkpoint of an attempt that dies in mid-upload, then one of the next: restored is what was whole, or none."""
    with tempfile.TemporaryDirectory() as temporary:
        tmp_path, blobs = Path(temporary), Interrupted(first_puts)
        whole: list[int] = []
        for attempt, (step, puts) in enumerate(((10, 0), (20, more_puts)), start=1):
            run = folder(tmp_path, f"pod-{attempt}")
            blobs.puts += puts
            stored = StoredCheckpoints(blobs, "run-1", Log())
            try:
                stored.store(checkpoint(run, step), run, attempt, stored.next_number())
            except Transient:
                continue
            whole.append(step)
        target = folder(tmp_path, "last")
        found = StoredCheckpoints(blobs, "run-1", Log())
        assert found.restore(target, found.next_number()) == (whole[-1] if whole else None)
        assert (newest_whole(target) is not None) == bool(whole)


def test_nothing_of_a_run_that_is_over_stays(tmp_path: Path) -> None:
    blobs, run = MemoryBlobStore(), folder(tmp_path, "one")
    StoredCheckpoints(blobs, "run-1", Log()).store(checkpoint(run, 10), run, 1, 1)
    blobs.put("runs/run-1/attempt-1.result.json", b"{}")
    drop_stored(blobs, "run-1")
    assert blobs.keys() == ["runs/run-1/attempt-1.result.json"]
