"""The first container: what it does when there is nothing to fetch yet."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shortstack.core.clock import FakeClock
from shortstack.storage.blobs import BlobStore
from shortstack.training.pod import prepare
from shortstack.training.pod.__main__ import main
from shortstack.training.pod.objects import result_key

RUN = "run-1"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """The clock of a pod whose shared folder and object store are folders here."""
    clock, before = FakeClock(), signal.getsignal(signal.SIGTERM)
    told = {"RUN": RUN, "ATTEMPT": "1", "WORK": tmp_path / "work", "STORAGE_URL": (tmp_path / "blobs").as_uri()}
    for name, value in told.items():
        monkeypatch.setenv(f"SHORTSTACK_{name}", str(value))
    monkeypatch.setattr(prepare, "SystemClock", lambda: clock)
    yield clock
    signal.signal(signal.SIGTERM, before)


def test_an_order_that_does_not_come_is_no_last_word(
    tmp_path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The controller was away for longer than the pod waits: coming back, it tries again, and the run goes on."""
    assert main(["prepare"]) == 75
    assert clock.monotonic() >= 600
    assert f"runs/{RUN}/attempt-1.order.json" in capsys.readouterr().err
    assert not BlobStore.open((tmp_path / "blobs").as_uri()).exists(result_key(RUN, 1))
