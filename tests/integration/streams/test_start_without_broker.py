"""Services that start before their broker: alive and not ready, and at work once it is there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest
from tests.polling import until

from shortstack.core.config import ServiceConfig
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import TOPICS

pytestmark = pytest.mark.timeout(900)
SERVICES = ("ingestion", "formatting", "assembly", "training", "serving")
DEADLINE_S = 300


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in found]


def page(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Status and content of a health page; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, orjson.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, orjson.loads(error.read())
    except OSError:
        return 0, {}


@contextmanager
def services(folder: Path, bootstrap: str, ports: dict[str, int]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of them as processes, with no base model."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    environment = {
        **os.environ,
        "SHORTSTACK_KAFKA_BOOTSTRAP": bootstrap,
        "SHORTSTACK_KAFKA_BOOTSTRAP_TIMEOUT_S": "0.5",
        "SHORTSTACK_STORAGE_URL": f"file://{folder / 'blobs'}",
        "SHORTSTACK_VAR": str(folder),
        "SHORTSTACK_BASE_MODELS": "{}",
        "SHORTSTACK_MODEL_ALIASES": "{}",
    }
    try:
        for name, port in ports.items():
            with (folder / f"{name}.log").open("wb") as log:
                started[name] = subprocess.Popen(
                    [sys.executable, "-m", f"shortstack.{name}.main"],
                    env={**environment, "SHORTSTACK_HTTP_PORT": str(port)},
                    stdout=log,
                    stderr=log,
                )
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_services_wait_for_their_broker_alive_and_not_ready(tmp_path: Path, repository: Path) -> None:
    kafka, controller, *rest = free_ports(2 + len(SERVICES))
    ports = dict(zip(SERVICES, rest, strict=True))
    bootstrap = f"127.0.0.1:{kafka}"

    def ended() -> dict[str, str]:
        return {
            name: (tmp_path / f"{name}.log").read_text()[-2000:]
            for name, process in started.items()
            if process.poll() is not None
        }

    def all_say(path: str, status: int) -> bool:
        assert ended() == {}
        return all(page(port, path)[0] == status for port in ports.values())

    with services(tmp_path, bootstrap, ports) as started:
        until(lambda: all_say("/livez", 200), "all alive", deadline_s=DEADLINE_S)
        for name in SERVICES:
            log = tmp_path / f"{name}.log"
            until(lambda: log.read_text().count("cannot reach") >= 3, log.read_text, deadline_s=DEADLINE_S)  # noqa: B023
        assert all_say("/readyz", 503)

        libs = Path(os.environ.get("SHORTSTACK_VAR", repository / "var")) / "kafka" / "libs"
        config = BrokerConfig(tmp_path / "kafka", tmp_path / "kafka.log", kafka, controller, libs)
        broker = LocalBroker(config)
        broker.prepare()
        with broker:
            admin = KafkaBroker.connect(ServiceConfig(kafka_bootstrap=bootstrap))
            admin.apply(TOPICS.values())
            admin.close()
            until(
                lambda: all_say("/readyz", 200),
                lambda: {n: page(p, "/readyz") for n, p in ports.items()},
                deadline_s=DEADLINE_S,
            )
