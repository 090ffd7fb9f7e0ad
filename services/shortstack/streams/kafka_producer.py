"""Sending to Apache Kafka."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import kafka.errors as kafka_errors
from kafka.producer.kafka import KafkaProducer as RawProducer

from shortstack.core.errors import Poison, ShortstackError
from shortstack.streams.broker import Outbound, Partition, Position
from shortstack.streams.kafka_errors import translate, translated
from shortstack.streams.limits import too_large
from shortstack.streams.topics import TOPICS

__all__ = ["DELIVERY_S", "KafkaProducer"]

DELIVERY_S: Final = 30.0
_MIB: Final = 1024 * 1024
_LARGEST: Final = 4 * _MIB
"""Above the largest declared topic; each topic's own size is checked before."""


class KafkaProducer:
    """See `Producer`. Idempotent, so in order and without doubles within one life.

    Args:
        settings: see `client_settings`.
        forget: told when it is closed.
        delivery_s: how long it tries to deliver a message.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        forget: Callable[[KafkaProducer], None],
        *,
        delivery_s: float = DELIVERY_S,
    ) -> None:
        # kafka-python's own condition: no request takes as long as its message may.
        request_ms = min(settings["request_timeout_ms"], int(delivery_s * 500))
        self._raw = RawProducer(
            **{**settings, "request_timeout_ms": request_ms},
            metrics_enabled=False,
            acks="all",
            enable_idempotence=True,
            linger_ms=20,
            batch_size=_MIB,
            max_request_size=_LARGEST,
            delivery_timeout_ms=int(delivery_s * 1000),
            max_block_ms=10_000,
            allow_auto_create_topics=False,
        )
        self._forget = forget
        self._lock = threading.Lock()
        self._failures: list[ShortstackError] = []

    def send(self, message: Outbound) -> Future[Position]:
        """See `Producer.send`. Blocks up to 10 s for a topic it has not met before."""
        future: Future[Position] = Future()
        topic = TOPICS.get(message.topic)
        problem = too_large(message, topic) if topic else None
        if problem is not None:
            future.set_exception(problem)
            return future
        try:
            sent = self._raw.send(message.topic, message.value, message.key, list(message.headers))
        except kafka_errors.KafkaError as error:
            self._fail(future, error, message.topic)
            return future
        sent.add_callback(_succeed, future)
        sent.add_errback(lambda error: self._fail(future, error, message.topic))
        return future

    def flush(self, timeout_s: float) -> None:
        """See `Producer.flush`."""
        with translated(f"flush within {timeout_s} s"):
            self._raw.flush(timeout_s)
        with self._lock:
            failures, self._failures = self._failures, []
        failed = next((error for error in failures if not isinstance(error, Poison)), None)
        if failed is not None:
            raise failed

    def close(self, timeout_s: float) -> None:
        """See `Producer.close`."""
        self._forget(self)
        try:
            with translated(f"close within {timeout_s} s"):
                self._raw.close(timeout_s)
        except ShortstackError:
            # close() gives up before it ends its thread, and would be called again when it is collected.
            self._raw._sender.force_close()
            self._raw._closed = True
            raise

    def _fail(self, future: Future[Position], error: BaseException, topic: str) -> None:
        problem = translate(error, f"topic {topic}")
        with self._lock:
            self._failures.append(problem)
        future.set_exception(problem)


def _succeed(future: Future[Position], sent: Any) -> None:
    future.set_result(Position(Partition(sent.topic, sent.partition), sent.offset, sent.timestamp))
