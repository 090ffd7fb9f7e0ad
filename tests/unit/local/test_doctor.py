"""What `doctor` says of the ports of a stack that has another beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shortstack.local.doctor import CHECKS, Finding
from shortstack.local.processes import ProcessRecord, created_at, write_record
from shortstack.local.settings import LocalSettings


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[LocalSettings]:
    """A stack at whose broker's port something listens."""
    with socket.socket() as broker:
        for port in range(20_092, 32_000, 100):
            with suppress(OSError):
                broker.bind(("127.0.0.1", port))
                break
        broker.listen()
        port = broker.getsockname()[1]
        yield LocalSettings(var=tmp_path, port_base=port - 92, kafka_bootstrap=None)


def looked_at(settings: LocalSettings) -> dict[str, Finding]:
    return {name: CHECKS[name](settings) for name in ("broker", "ports")}


def test_a_broker_of_another_stack_is_not_called_our_own(listening: LocalSettings) -> None:
    found = looked_at(listening)
    assert f"{listening.ports.broker} (kafka)" in found["ports"].what
    assert not found["broker"].ok
    assert "our own, at" not in found["broker"].what
    assert "SHORTSTACK_PORT_BASE" in found["broker"].remedy


def test_our_own_broker_that_listens_is_our_own(listening: LocalSettings) -> None:
    ports = listening.ports.taken_by("kafka")
    write_record(
        listening.run_folder, ProcessRecord("kafka", os.getpid(), created_at(os.getpid()), "ready", 1.0, ports=ports)
    )
    found = looked_at(listening)
    assert found["broker"] == Finding("broker", ok=True, what=f"our own, at {listening.bootstrap}")
    assert f"{listening.ports.broker} (kafka)" not in found["ports"].what
