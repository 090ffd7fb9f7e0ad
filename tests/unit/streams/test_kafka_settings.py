"""What is set for Kafka reaches its client, and what the client says comes back in our words."""

from __future__ import annotations

from pathlib import Path

import kafka.errors
import pytest

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, Poison, ShortstackError, Transient
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.kafka_errors import client_settings, translate


def test_security_settings_are_passed_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BOOTSTRAP": "b1:9093, b2:9093",
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-512",
        "SASL_USERNAME": "shortstack",
        "SASL_PASSWORD": "hidden",
        "SSL_CAFILE": "/certs/ca.pem",
        "SSL_CERTFILE": "/certs/client.pem",
        "SSL_KEYFILE": "/certs/client.key",
    }.items():
        monkeypatch.setenv(f"SHORTSTACK_KAFKA_{name}", value)
    config = ServiceConfig()
    assert client_settings(config) | {"request_timeout_ms": 0, "reconnect_backoff_max_ms": 0} == {
        "bootstrap_servers": ["b1:9093", "b2:9093"],
        "bootstrap_timeout_ms": 10_000,
        "request_timeout_ms": 0,
        "reconnect_backoff_max_ms": 0,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "shortstack",
        "sasl_plain_password": "hidden",
        "ssl_cafile": str(Path("/certs/ca.pem")),
        "ssl_certfile": str(Path("/certs/client.pem")),
        "ssl_keyfile": str(Path("/certs/client.key")),
    }
    assert "hidden" not in repr(config)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (kafka.errors.KafkaTimeoutError(), Transient),
        (kafka.errors.NotLeaderForPartitionError(), Transient),
        (kafka.errors.KafkaConnectionError(), Transient),
        (kafka.errors.MessageSizeTooLargeError(), Poison),
        (kafka.errors.TopicAuthorizationFailedError(), Fatal),
        (kafka.errors.SaslAuthenticationFailedError(), Fatal),
    ],
)
def test_errors_come_as_ours(raised: kafka.errors.KafkaError, kind: type[ShortstackError]) -> None:
    error = translate(raised, "topic x")
    assert type(error) is kind
    assert error.where == "topic x"
    assert type(raised).__name__ in error.what


def test_a_broker_that_is_not_there_is_named_with_the_likely_cause() -> None:
    broker = KafkaBroker.connect(ServiceConfig(kafka_bootstrap="127.0.0.1:1", kafka_bootstrap_timeout_s=0.2))
    with pytest.raises(Transient, match=r"cannot reach 127\.0\.0\.1:1.*SHORTSTACK_KAFKA_BOOTSTRAP"):
        broker.ready(0.2)


USER = {"kafka_sasl_username": "u", "kafka_sasl_password": "hidden"}


@pytest.mark.parametrize(
    ("settings", "where", "says"),
    [
        ({"kafka_security_protocol": "SASL-SSL"}, "SECURITY_PROTOCOL", 'Did you mean "SASL_SSL"?'),
        ({"kafka_security_protocol": "SASL_SSL", **USER}, "SASL_MECHANISM", "SCRAM-SHA-512"),
        (
            {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "SCRAM-SHA512", **USER},
            "SASL_MECHANISM",
            'Did you mean "SCRAM-SHA-512"?',
        ),
        (
            {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "PLAIN", **USER, "kafka_sasl_password": ""},
            "SASL_PASSWORD",
            "Set SHORTSTACK_KAFKA_SASL_PASSWORD",
        ),
        ({"kafka_security_protocol": "SSL", "kafka_ssl_cafile": "/no/such/file"}, "SSL_CAFILE", "No such file"),
        ({"kafka_security_protocol": "SSL", "kafka_ssl_cafile": __file__}, "SSL_CAFILE", "PEM file"),
        ({"kafka_security_protocol": "SSL", "kafka_ssl_certfile": __file__}, "SSL_CERTFILE", "SSL_KEYFILE"),
    ],
)
def test_security_that_cannot_work_is_refused_by_variable(settings: dict[str, str], where: str, says: str) -> None:
    with pytest.raises(Fatal) as raised:
        KafkaBroker.connect(ServiceConfig(**settings))
    assert raised.value.where == f"SHORTSTACK_KAFKA_{where}"
    assert says in str(raised.value)
    assert "hidden" not in str(raised.value)
