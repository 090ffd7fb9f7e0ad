"""Apache Kafka behind the `Broker` interface, by kafka-python. Every call has a timeout.

What the client does wrong, and what was done about it: docs/decisions/0009-the-kafka-client-and-its-repairs.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import kafka.errors as kafka_errors
from kafka.admin import KafkaAdminClient

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Transient
from shortstack.streams.broker import Partition
from shortstack.streams.decoding import bound_decompression
from shortstack.streams.kafka_consumer import KafkaConsumer, KafkaReader
from shortstack.streams.kafka_errors import client_settings, translate
from shortstack.streams.kafka_fetching import mend_fetching
from shortstack.streams.kafka_joining import mend_joining
from shortstack.streams.kafka_producer import DELIVERY_S, KafkaProducer
from shortstack.streams.kafka_security import check_security, unreachable
from shortstack.streams.kafka_sockets import mend_connections
from shortstack.streams.kafka_topics import apply_topics, group_lag
from shortstack.streams.topics import Topic

__all__ = ["KafkaBroker"]

_CLOSE_S: Final = 3.0

Made = TypeVar("Made", KafkaProducer, KafkaConsumer, KafkaReader)


class KafkaBroker:
    """A connection to Apache Kafka; nothing is sent before it is asked for something.

    Args:
        config: gives addresses, credentials and certificates.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._settings = client_settings(config)
        self._made: set[KafkaProducer | KafkaConsumer | KafkaReader] = set()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._admin_kept: KafkaAdminClient | None = None  # lag is asked for several times a second

    @classmethod
    def connect(cls, config: ServiceConfig) -> KafkaBroker:
        """A broker for ``config``. Mends kafka-python for the whole process: see decision 0009.

        Raises:
            Fatal: a setting of its security is wrong or missing.
        """
        check_security(config)
        bound_decompression()
        mend_connections()
        mend_fetching()
        mend_joining()
        return cls(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def producer(self, *, delivery_s: float = DELIVERY_S) -> KafkaProducer:
        """See `Broker.producer`.

        Args:
            delivery_s: how long it tries to deliver a message.
        """
        with self._reached():
            return self._keep(KafkaProducer(self._settings, self._forget, delivery_s=delivery_s))

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callable[[frozenset[Partition]], None] | None = None,
        on_revoked: Callable[[frozenset[Partition]], None] | None = None,
    ) -> KafkaConsumer:
        """See `Broker.consumer`."""
        with self._reached():
            return self._keep(KafkaConsumer(self._settings, group, topics, on_assigned, on_revoked, self._forget))

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> KafkaReader:
        """See `Broker.reader`."""
        with self._reached():
            return self._keep(KafkaReader(self._settings, topics, from_end, self._forget))

    def apply(self, topics: Iterable[Topic], *, replication: int = 1) -> list[str]:
        """See `Broker.apply`."""
        with self._admin() as admin:
            return apply_topics(admin, list(topics), replication)

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """See `Broker.lag`."""
        with self._asking, self._reached():
            if self._admin_kept is None:
                self._admin_kept = KafkaAdminClient(**self._settings)
            try:
                return group_lag(self._admin_kept, group, topics)
            except kafka_errors.KafkaError:
                self._drop_admin()
                raise

    def ready(self, timeout_s: float) -> None:
        """See `Broker.ready`."""
        with self._admin(bootstrap_timeout_ms=int(timeout_s * 1000)):
            pass

    def close(self) -> None:
        """See `Broker.close`. Callers close what they made with a deadline of their own; this is for what is left."""
        with self._asking:
            self._drop_admin()
        with self._lock:
            left = list(self._made)
        for made in left:
            with suppress(Transient):
                made.close(_CLOSE_S) if isinstance(made, KafkaProducer) else made.close()

    def _drop_admin(self) -> None:
        if self._admin_kept is not None:
            self._admin_kept.close()
            self._admin_kept = None

    def _keep(self, made: Made) -> Made:
        with self._lock:
            self._made.add(made)
        return made

    def _forget(self, made: KafkaProducer | KafkaConsumer | KafkaReader) -> None:
        with self._lock:
            self._made.discard(made)

    @contextmanager
    def _admin(self, **settings: Any) -> Iterator[KafkaAdminClient]:
        with self._reached():
            admin = KafkaAdminClient(**(self._settings | settings))
            try:
                yield admin
            finally:
                admin.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """kafka-python says the same, that it could not bootstrap, whatever the reason; here it is looked for."""
        try:
            yield
        except kafka_errors.KafkaError as error:
            if "bootstrap" in str(error):
                raise unreachable(self._config, self._settings) from error
            raise translate(error, f"Kafka at {self._config.kafka_bootstrap}") from error
