"""The process itself: how it starts, refuses to start, and stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.polling import until

from shortstack.core.errors import Fatal
from shortstack.inference.config import InferenceConfig
from shortstack.inference.main import run


@contextmanager
def process(model: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The server as `python -m`, stopped at the end."""
    settings = {"MODEL_ID": str(model), "PORT": "0", "DTYPE": "float32", "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "shortstack.inference.main"], env={**os.environ, **settings}, stderr=output
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait(30)


def address(running: subprocess.Popen[bytes], log: Path) -> str:
    """Where it says that it listens."""

    def look() -> str | None:
        found = re.search(r"listening on (http://[\d.:]+)", log.read_text("utf-8"))
        assert found or running.poll() is None, log.read_text("utf-8")
        return found and found[1]

    return until(look, lambda: log.read_text("utf-8"), deadline_s=120) or ""


def last_event(raw: bytes) -> dict[str, object]:
    event: dict[str, object] = json.loads(raw.split(b"\n\n")[-2].removeprefix(b"data: "))
    return event


@pytest.mark.parametrize(("grace", "whole"), [("60", True), ("0", False)])
def test_sigterm_refuses_newcomers_finishes_what_runs_and_exits_0(
    tiny_model: Path, tmp_path: Path, grace: str, whole: bool
) -> None:
    log = tmp_path / "log"
    with process(tiny_model, log, GRACEFUL_TERMINATION_TIMEOUT=grace) as running:
        url = address(running, log)
        begun, received = threading.Event(), bytearray()

        def read() -> None:
            request = {"inputs": "Once", "parameters": {"max_new_tokens": 2000}}
            with httpx.stream("POST", f"{url}/generate_stream", json=request, timeout=60) as reply:
                for chunk in reply.iter_raw():
                    received.extend(chunk)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(60)
        running.send_signal(signal.SIGTERM)
        refused = False
        while not refused and running.poll() is None:
            try:
                httpx.get(f"{url}/info", timeout=5)
            except httpx.TransportError:
                refused = True
        reader.join(60)
        assert running.wait(60) == 0, log.read_text("utf-8")
    assert refused
    last = last_event(bytes(received))
    assert ("generated_text" in last) is whole
    assert (last.get("error_type") == "incomplete_generation") is not whole


def test_a_taken_port_is_one_clear_line(tiny_model: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with process(tiny_model, tmp_path / "log", PORT=port) as running:
            assert running.wait(60) == 1
    line = (tmp_path / "log").read_text("utf-8").splitlines()[-1]
    assert f"PORT {port}" in line
    assert "Free the port or choose another" in line


def test_a_folder_that_is_no_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="tokenizer"):
        run(InferenceConfig(model_id=tmp_path, port=0))
    shutil.copy(tiny_model / "tokenizer.json", tmp_path)
    with pytest.raises(Fatal, match=r"no config\.json"):
        run(InferenceConfig(model_id=tmp_path, port=0))


def test_limits_beyond_the_models_positions_are_refused(tiny_model: Path) -> None:
    with pytest.raises(Fatal, match="2048 positions"):
        run(InferenceConfig(model_id=tiny_model, port=0, max_total_tokens=4096))


def test_an_adapter_at_start_that_cannot_be_read_stops_the_start(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="LORA_ADAPTERS"):
        run(InferenceConfig(model_id=tiny_model, port=0, dtype="float32", lora_adapters={"a": tmp_path}))
