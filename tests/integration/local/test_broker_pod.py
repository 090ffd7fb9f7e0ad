"""The broker's container's process with a real JVM: it serves, ends cleanly at SIGTERM, and keeps what it held."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from tests.polling import until

from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings

JVM_ENDED_BY_SIGTERM = 143


@contextmanager
def container(folder: Path, config: BrokerConfig) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "SHORTSTACK_BROKER_DIR": str(folder),
        "SHORTSTACK_BROKER_LIBS": str(config.libs),
        "SHORTSTACK_BROKER_PORT": str(config.port),
        "SHORTSTACK_BROKER_CONTROLLER_PORT": str(config.controller_port),
        "SHORTSTACK_BROKER_ADVERTISED": f"localhost:{config.port}",
    }
    process = subprocess.Popen([sys.executable, "-m", "shortstack.local.broker_pod"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def topics(port: int, process: subprocess.Popen[bytes]) -> set[str]:
    """The broker's topics, once it takes connections."""

    def answers() -> bool:
        assert process.poll() is None, f"it ended with status {process.returncode}"
        with socket.socket() as probe:
            return probe.connect_ex(("localhost", port)) == 0

    until(answers, "it takes connections")
    with closing(KafkaAdminClient(bootstrap_servers=f"localhost:{port}")) as admin:
        return set(admin.list_topics())


def test_it_becomes_the_broker_ends_cleanly_and_keeps_what_it_held(tmp_path: Path, settings: LocalSettings) -> None:
    config = BrokerConfig.of(settings)
    LocalBroker(config).prepare()
    folder = tmp_path / "claim"

    with container(folder, config) as process:
        assert topics(config.port, process) == set()
        assert "kafka.Kafka" in psutil.Process(process.pid).cmdline()
        with closing(KafkaAdminClient(bootstrap_servers=f"localhost:{config.port}")) as admin:
            admin.create_topics([NewTopic("kept", 1, 1)])
        process.terminate()
        assert process.wait(30) == JVM_ENDED_BY_SIGTERM

    with container(folder, config) as process:
        assert topics(config.port, process) == {"kept"}
