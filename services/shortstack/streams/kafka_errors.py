"""kafka-python's settings from ours, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import kafka.errors as kafka_errors

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, Poison, ShortstackError, Transient

__all__ = ["CALL_MS", "LOST", "client_settings", "translate", "translated"]

_REQUEST_MS: Final = 10_000
CALL_MS: Final = 10_000

_HOPELESS: Final = (
    kafka_errors.AuthorizationError,
    kafka_errors.KafkaConfigurationError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.UnsupportedCodecError,
    kafka_errors.SaslAuthenticationFailedError,
)
"""Errors that trying again does not mend."""

_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

LOST: Final = (
    kafka_errors.CommitFailedError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
)
"""What a commit meets when a rebalance has taken, or is taking, the partition."""


def client_settings(config: ServiceConfig) -> dict[str, Any]:
    """What producers, consumers and admin clients share."""
    return {
        "bootstrap_servers": [server.strip() for server in config.kafka_bootstrap.split(",")],
        "bootstrap_timeout_ms": int(config.kafka_bootstrap_timeout_s * 1000),
        "request_timeout_ms": _REQUEST_MS,
        "reconnect_backoff_max_ms": 1000,
        "security_protocol": config.kafka_security_protocol,
        "sasl_mechanism": config.kafka_sasl_mechanism,
        "sasl_plain_username": config.kafka_sasl_username,
        "sasl_plain_password": config.kafka_sasl_password,
        "ssl_cafile": _text(config.kafka_ssl_cafile),
        "ssl_certfile": _text(config.kafka_ssl_certfile),
        "ssl_keyfile": _text(config.kafka_ssl_keyfile),
    }


def _text(path: object) -> str | None:
    return None if path is None else str(path)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns kafka-python's errors into ours, with ``doing`` as the place."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise translate(error, doing) from error


def translate(error: BaseException, doing: str) -> ShortstackError:
    """The error of our tree that ``error`` of kafka-python stands for."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, _TOO_LARGE):
        return Poison(text, where=doing, remedy="Put the content in the object store and send its key.")
    if isinstance(error, _HOPELESS):
        return Fatal(text, where=doing, remedy="Check the Kafka credentials, ACLs and SHORTSTACK_KAFKA_* settings.")
    return Transient(text, where=doing)
