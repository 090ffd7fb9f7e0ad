"""The real broker: what it takes, what it keeps, and what it says when it cannot start."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from shortstack.core.errors import Fatal
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings


@pytest.fixture
def broker(settings: LocalSettings) -> Iterator[LocalBroker]:
    broker = LocalBroker(BrokerConfig.of(settings))
    broker.prepare()
    yield broker
    broker.kill()


def make_topic(broker: LocalBroker, name: str) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.create_topics([NewTopic(name, 1, 1)])


def send(broker: LocalBroker, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", max_request_size=4 * 2**20)
    try:
        for value in values:
            producer.send(topic, value).get(timeout=20)
    finally:
        producer.close(timeout=10)


def read(broker: LocalBroker, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    found: list[bytes] = []
    end = time.monotonic() + 20
    with closing(consumer):
        while len(found) < count and time.monotonic() < end:
            for batch in consumer.poll(timeout_ms=200).values():
                found += [message.value for message in batch]
    return found


@contextmanager
def listener(port: int) -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield


def test_what_was_written_is_there_after_a_clean_stop_and_after_kill_9(broker: LocalBroker) -> None:
    broker.start()
    make_topic(broker, "kept")
    send(broker, "kept", b"first", b"second")
    broker.stop()
    broker.start()
    assert read(broker, "kept", 2) == [b"first", b"second"]
    send(broker, "kept", b"third")
    broker.kill()
    broker.start()
    assert read(broker, "kept", 3) == [b"first", b"second", b"third"]
    broker.stop()


def test_a_stop_is_clean_and_a_topic_is_never_made_by_accident(broker: LocalBroker) -> None:
    broker.start()
    process = broker.process
    expected_refusal = pytest.raises(KafkaError)
    with closing(KafkaProducer(bootstrap_servers=broker.bootstrap, max_block_ms=1500)) as producer, expected_refusal:
        producer.send("misspelt", b"x").get(timeout=5)
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        assert "misspelt" not in admin.list_topics()
    broker.stop()
    assert process is not None
    assert process.returncode == 143  # the JVM's status after SIGTERM, its shutdown hooks done
    assert "shut down completed" in broker.config.log.read_text()


def test_messages_up_to_two_mebibytes_pass_and_larger_ones_do_not(broker: LocalBroker) -> None:
    with broker:
        make_topic(broker, "sizes")
        send(broker, "sizes", b"x" * (2 * 2**20 - 4096))
        with pytest.raises(KafkaError):
            send(broker, "sizes", b"x" * (2 * 2**20 + 4096))


def test_a_taken_port_is_named_with_what_to_do(broker: LocalBroker) -> None:
    with listener(broker.config.port), pytest.raises(Fatal, match=f"port {broker.config.port} is taken") as caught:
        broker.start()
    assert "SHORTSTACK_PORT_BASE" in caught.value.remedy


def test_a_second_broker_on_the_same_data_is_told_so(broker: LocalBroker, settings: LocalSettings) -> None:
    ports = settings.ports
    second = LocalBroker(replace(broker.config, port=ports.broker + 2, controller_port=ports.broker + 3))
    with broker, pytest.raises(Fatal, match="another broker runs on the same data"):
        second.start()


def test_the_reason_is_found_however_much_is_said_after_it(broker: LocalBroker) -> None:
    said = ["ERROR Failed to acquire lock on file .lock", *(f"INFO closing {n} of many things" for n in range(5000))]
    broker.config.log.parent.mkdir(parents=True, exist_ok=True)
    broker.config.log.write_text("\n".join(said))
    assert "another broker runs on the same data" in broker.explain("it ended with status 1").what


def test_no_java_is_one_clear_line(broker: LocalBroker, tmp_path: Path) -> None:
    broken = LocalBroker(replace(broker.config, java=str(tmp_path / "no-java")))
    with pytest.raises(Fatal, match="SHORTSTACK_JAVA: no Java at"):
        broken.start()


def test_a_full_disk_is_one_clear_line(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortstack.local.broker._BYTES_NEEDED", 2**62)
    with pytest.raises(Fatal, match="the disk is full") as caught:
        broker.start()
    assert "SHORTSTACK_VAR" in caught.value.remedy


def test_the_port_may_change_between_starts(broker: LocalBroker, settings: LocalSettings) -> None:
    with broker:
        make_topic(broker, "moved")
        send(broker, "moved", b"here")
    ports = settings.ports
    moved = LocalBroker(replace(broker.config, port=ports.broker + 2, controller_port=ports.broker + 3))
    with moved:
        assert read(moved, "moved", 1) == [b"here"]
