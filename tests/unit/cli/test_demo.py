"""``demo``: what it says when the gateway refuses, and what it shows of answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import grpc
import psutil
import pytest
from tests.unit.cli.test_commands import Gateway, gateway

from shortstack.cli import demo
from shortstack.cli.main import main
from shortstack.local.processes import ProcessRecord, write_record
from shortstack.local.settings import LocalSettings
from shortstack.serving.v1 import serving_pb2 as srv
from shortstack.serving.v1 import serving_pb2_grpc

__all__ = ["gateway"]


class Serving(serving_pb2_grpc.ServingServiceServicer):
    """Serves a base model, and another under the alias of the main job."""

    def ListModels(self, request: srv.ListModelsRequest, context: grpc.ServicerContext) -> srv.ListModelsResponse:
        answer = srv.ListModelsResponse()
        answer.models.add(name="base")
        answer.aliases.add(alias="persona@prod")
        return answer


@pytest.fixture
def found_up(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A stack that is up already, of which only serving and gateway are asked."""
    server = grpc.server(ThreadPoolExecutor(2))
    serving_pb2_grpc.add_ServingServiceServicer_to_server(Serving(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    named = gateway.environment | {"SHORTSTACK_SERVING_ADDRESS": f"127.0.0.1:{port}", "SHORTSTACK_VAR": str(tmp_path)}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(demo, "kept_up", lambda *_: nullcontext(False))
    monkeypatch.setattr(sys, "argv", ["shortstack", "demo", "--exit"])
    yield gateway
    server.stop(0).wait()


@pytest.mark.parametrize(("status", "exit_code"), [(403, 77), (404, 66)])
def test_a_gateway_that_refuses_is_one_line_and_an_exit_code(
    found_up: Gateway, capsys: pytest.CaptureFixture[str], status: int, exit_code: int
) -> None:
    found_up.status, found_up.body = status, json.dumps({"error": {"message": "said so"}}).encode()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exit_code
    assert "said so" in capsys.readouterr().err


def test_an_answer_with_brackets_is_shown_as_it_is(
    found_up: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found_up.body = json.dumps({"object": "list", "data": [{"id": "persona@prod", "object": "model"}]}).encode()
    answers = [{"question": "Close it?", "before": "A tag: [/b]", "after": "[bold]Yes[/bold] :smile:"}]
    fates = dict.fromkeys(("records_in", "kept", "rejected", "duplicates", "failed"), 1)
    summary = {**fates, "answers": answers, "train_seconds": 1, "total_seconds": 2, "peak_memory_mb": 3}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    (row,) = [line for line in said.out.splitlines() if "Close it?" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == list(answers[0].values())


def test_what_the_start_of_the_stack_takes_counts_for_the_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken, looked, peaks = [900.0], threading.Event(), []

    def look(_: object) -> float:
        looked.set()
        return taken[0]

    @contextmanager
    def starting(*_: object) -> Iterator[bool]:
        assert looked.wait(20), "nobody looks before the stack is up"
        taken[0] = 100.0
        yield False

    monkeypatch.setenv("SHORTSTACK_VAR", str(tmp_path))
    monkeypatch.setattr(demo, "resident_mb", look)
    monkeypatch.setattr(demo, "kept_up", starting)
    monkeypatch.setattr(demo, "_run", lambda *given: peaks.append(given[-1].stop()))
    demo.demo(exit_=True)
    assert peaks == [900.0]


def test_it_ends_when_the_stack_is_stopped_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHORTSTACK_VAR", str(tmp_path))
    monkeypatch.setattr(demo, "kept_up", lambda *_: nullcontext(True))
    monkeypatch.setattr(demo, "_interrupted_once", nullcontext)  # signals are the main thread's
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        created = psutil.Process(supervisor.pid).create_time()
        record = ProcessRecord("supervisor", supervisor.pid, created, "ready", created)
        write_record(LocalSettings().run_folder, record)
        monkeypatch.setattr(demo, "_run", lambda *_: supervisor.kill())
        serving = threading.Thread(target=demo.demo, daemon=True)
        serving.start()
        serving.join(30)
        assert not serving.is_alive()
    assert "stopped from elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_only_the_first_signal_ends_it_and_all_are_as_before_afterwards(kind: signal.Signals) -> None:
    kinds = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(each) for each in kinds]
    stopped = False

    def ended_in_a_block() -> None:
        nonlocal stopped
        with demo._interrupted_once():
            try:
                os.kill(os.getpid(), kind)
                signal.pause()
            finally:
                for each in kinds:
                    os.kill(os.getpid(), each)
                stopped = True

    with pytest.raises(KeyboardInterrupt):
        ended_in_a_block()
    assert stopped
    assert [signal.getsignal(each) for each in kinds] == before
