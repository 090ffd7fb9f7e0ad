"""The broker's container: what it writes, what it becomes, and what it says when something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.broker_pod import BrokerPodSettings, main, serve
from shortstack.local.jars import Jar
from shortstack.local.java import Java


class Replacement:
    """Stands for ``os.execv``: keeps what this process would have become."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []

    def __call__(self, _: str, command: Sequence[str]) -> None:
        self.commands.append(command)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Java that notes how it is called and formats in name only, no jars to look for, and free ports."""
    called = tmp_path / "calls"
    java = tmp_path / "java"
    data = tmp_path / "kafka" / "data"
    java.write_text(f'#!/bin/sh\necho "$@" >> "{called}"\nmkdir -p "{data}" && touch "{data}/meta.properties"\n')
    java.chmod(0o755)
    monkeypatch.setattr("shortstack.local.broker.find_java", lambda _: Java(java, 25, "25.0.2", "test"))
    monkeypatch.setattr("shortstack.local.broker.declared_jars", list)
    monkeypatch.setattr("shortstack.local.broker.require_free", lambda *_: None)
    monkeypatch.setenv("SHORTSTACK_BROKER_DIR", str(tmp_path / "kafka"))
    monkeypatch.setenv("SHORTSTACK_BROKER_ADVERTISED", "team-kafka:9092")
    return called


@pytest.mark.usefixtures("calls")
def test_clients_come_in_from_anywhere_and_back_by_the_service_while_the_controller_keeps_to_itself(
    tmp_path: Path,
) -> None:
    serve(Replacement())

    lines = (tmp_path / "kafka" / "server.properties").read_text().splitlines()
    assert "listeners=PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093" in lines
    assert "advertised.listeners=PLAINTEXT://team-kafka:9092" in lines
    assert "controller.quorum.voters=1@127.0.0.1:9093" in lines


def test_it_becomes_the_jvm_with_the_heap_that_was_set(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTSTACK_BROKER_HEAP_MB", "300")
    replacement = Replacement()

    serve(replacement)

    [command] = replacement.commands
    assert command[0] == str(calls.with_name("java"))
    assert "-Xmx300m" in command
    assert list(command[-2:]) == ["kafka.Kafka", str(tmp_path / "kafka" / "server.properties")]


def test_the_volume_is_formatted_the_first_time_only(calls: Path) -> None:
    for _ in range(3):
        serve(Replacement())

    [formatted] = calls.read_text().splitlines()
    assert "kafka.tools.StorageTool format" in formatted


@pytest.mark.usefixtures("calls")
def test_a_jar_that_the_image_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = Jar("org.apache.kafka", "kafka_2.13", "4.4.0", "0" * 64)
    monkeypatch.setattr("shortstack.local.broker.declared_jars", lambda: [jar])
    monkeypatch.setenv("SHORTSTACK_BROKER_LIBS", str(tmp_path / "libs"))
    replacement = Replacement()

    with pytest.raises(Fatal, match="1 of the broker's jars") as caught:
        serve(replacement)
    assert "kafka_2.13:4.4.0" in str(caught.value)
    assert replacement.commands == []


@pytest.mark.usefixtures("calls")
def test_a_volume_that_cannot_be_written_is_named_with_what_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "kafka").write_text("a file where the volume should be")

    with pytest.raises(Fatal, match="volume") as caught:
        serve(Replacement())
    assert str(tmp_path / "kafka") in str(caught.value)


@pytest.mark.usefixtures("calls")
def test_a_wrong_setting_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHORTSTACK_BROKER_ADVERTISED", "team-kafka")

    assert main([]) != 0
    assert "SHORTSTACK_BROKER_ADVERTISED" in capsys.readouterr().err


def test_a_wrong_call_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 64
    assert "broker_pod [fetch FOLDER]" in capsys.readouterr().err


def test_the_readme_lists_every_setting_as_it_is(repository: Path) -> None:
    readme = (repository / "services" / "shortstack" / "local" / "README.md").read_text(encoding="utf-8")
    for name, field in BrokerPodSettings.model_fields.items():
        assert f"| `SHORTSTACK_BROKER_{name.upper()}` | `{field.default}` | {field.description} |" in readme
