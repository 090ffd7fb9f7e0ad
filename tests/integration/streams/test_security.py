"""A real broker with SASL and TLS: the settings that open it do, and a wrong one is named, with what to do."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.integration.streams.conftest import GUEST, GUEST_PASSWORD, PASSWORD, PLAIN, Secured
from tests.polling import until

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, Transient
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import Topic, TopicKind

WRONG_S = 15
"""Seconds within which a wrong setting is said; the bootstrap's time limit of these tests is 0.5 s."""


def connect(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **changes: str | None) -> KafkaBroker:
    """A connection by variables alone; a change to None leaves the variable out."""
    for name, value in (environment | changes).items():
        if value is not None:
            monkeypatch.setenv(f"SHORTSTACK_KAFKA_{name}", value)
    return KafkaBroker.connect(ServiceConfig())


def refusal(broker: KafkaBroker, kind: type[Fatal] | type[Transient] = Fatal) -> str:
    """What is said to someone who is not let in, which must not take long."""
    began = time.monotonic()
    with broker, pytest.raises(kind) as raised:
        broker.ready(0.5)
    assert time.monotonic() - began < WRONG_S
    assert PASSWORD not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [("SASL_PLAINTEXT", {}), ("SASL_PLAINTEXT", {"SASL_MECHANISM": PLAIN}), ("SASL_SSL", {}), ("SSL", {})],
)
def test_topics_are_applied_written_and_read(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, protocol: str, changes: dict[str, str]
) -> None:
    topic = Topic(f"records.raw.{uuid.uuid4().hex}", "k", "bytes", TopicKind.PIPE, 2, 7, 100_000)
    with connect(monkeypatch, secured.environment(protocol), **changes) as broker:
        assert broker.apply([topic]) == [f"created {topic.name} (2 partitions, 1 replicas)"]
        producer = broker.producer()
        for number in range(5):
            producer.send(Outbound(topic.name, b"k%d" % number, b"v%d" % number))
        producer.flush(10)
        producer.close(5)
        consumer = broker.consumer("group", [topic.name])
        found: list[Delivery] = []
        until(lambda: found.extend(consumer.poll(0.2)) or len(found) >= 5, lambda: found)
        assert consumer.commit({d.partition: (d.offset + 1, "") for d in found})
        consumer.close()
        assert sorted(d.value for d in found) == [b"v%d" % number for number in range(5)]
        assert broker.lag("group", [topic.name]) == 0


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("changes", [{"SASL_PASSWORD": "wrong"}, {"SASL_USERNAME": "nobody"}])
def test_a_wrong_user_or_password_is_named(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, protocol: str, changes: dict[str, str]
) -> None:
    said = refusal(connect(monkeypatch, secured.environment(protocol), **changes))
    assert f'refuses user "{changes.get("SASL_USERNAME", "shortstack")}" by SCRAM-SHA-512' in said
    assert "Check SHORTSTACK_KAFKA_SASL_USERNAME, SHORTSTACK_KAFKA_SASL_PASSWORD" in said
    assert "wrong" not in said


def test_a_mechanism_that_the_broker_does_not_take_is_named(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(connect(monkeypatch, secured.environment("SASL_SSL"), SASL_MECHANISM=PLAIN))
    assert "does not take PLAIN" in said
    assert "SHORTSTACK_KAFKA_SASL_MECHANISM" in said


def test_a_broker_signed_by_another_authority_is_not_trusted(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Authority.make(tmp_path, "another authority")
    for cafile in (str(other.path), None):
        said = refusal(connect(monkeypatch, secured.environment("SASL_SSL"), SSL_CAFILE=cafile))
        assert "certificate verify failed" in said
        assert "Set SHORTSTACK_KAFKA_SSL_CAFILE to the authority that signed its certificate." in said
        monkeypatch.delenv("SHORTSTACK_KAFKA_SSL_CAFILE", raising=False)


def test_a_client_without_a_certificate_is_told_so(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    right = secured.environment("SSL")
    said = refusal(connect(monkeypatch, right, SSL_CERTFILE=None, SSL_KEYFILE=None))
    assert "Set SHORTSTACK_KAFKA_SSL_CERTFILE and SHORTSTACK_KAFKA_SSL_KEYFILE." in said


@pytest.mark.parametrize(
    ("listener", "protocol"),
    [
        ("SASL_PLAINTEXT", "SASL_SSL"),
        ("SASL_SSL", "SASL_PLAINTEXT"),
        ("SASL_PLAINTEXT", "PLAINTEXT"),
        ("SSL", "PLAINTEXT"),
    ],
)
def test_another_protocol_than_the_listeners_is_named(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, listener: str, protocol: str
) -> None:
    right = secured.environment("SASL_SSL") | {"BOOTSTRAP": secured.environment(listener)["BOOTSTRAP"]}
    said = refusal(connect(monkeypatch, right, SECURITY_PROTOCOL=protocol), Transient)  # it hangs up without a word
    assert "SHORTSTACK_KAFKA_SECURITY_PROTOCOL" in said


def test_a_handshake_that_nobody_answers_has_an_end(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortstack.streams.kafka_sockets._HANDSHAKE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        refusal(connect(monkeypatch, secured.environment("SASL_SSL"), BOOTSTRAP=address), Transient)


def test_a_user_without_rights_is_told_so(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    right = secured.environment("SASL_SSL")
    topic = Topic(f"records.raw.{uuid.uuid4().hex}", "k", "bytes", TopicKind.PIPE, 1, 7, 100_000)
    with connect(monkeypatch, right) as broker:
        broker.apply([topic])
    with connect(monkeypatch, right, SASL_USERNAME=GUEST, SASL_PASSWORD=GUEST_PASSWORD) as broker:
        other = Topic("records.raw.more", "k", "bytes", TopicKind.PIPE, 1, 7, 100_000)
        with pytest.raises(Fatal, match=r"Authorization.*ACLs"):
            broker.apply([other])
