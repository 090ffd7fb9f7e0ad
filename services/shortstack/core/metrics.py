"""Every metric of the stack, declared once. ``docs/metrics.md`` is written from this list.

A service exposes what is declared for ``all`` and for itself; the others' metrics exist as attributes, so that
shared code can count without asking where it runs, but stay off its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

__all__ = ["ALL", "DeclaredMetric", "Metrics", "metrics_table"]

ALL: Final = "all"
"""A metric of every service."""

_WORKERS: Final = "ingestion, formatting"
"""Services that are members of a consumer group; the others read whole topics."""

_PREFIX: Final = "shortstack_"
_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FIRST_TOKEN_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class DeclaredMetric:
    """One line of the list.

    Attributes:
        name: as Prometheus shows it, without the ``_total``, ``_bucket``, ``_sum`` and ``_count`` of samples.
        kind: counter, gauge or histogram.
        service: the services that expose it, joined by ", ", or ``all``.
        labels: label names.
        meaning: what one unit of it is.
    """

    name: str
    kind: str
    service: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """One attribute per metric, in a registry of its own.

    Args:
        service: name of the service, as in the table of the architecture.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.declared: list[DeclaredMetric] = []
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._declare_streams()
        self._declare_health()
        self._declare_records()
        self._declare_models()
        self._declare_chat()

    def _declare_streams(self) -> None:
        topic = ("topic",)
        self.deliveries = self._counter(_WORKERS, "deliveries", "Messages handled", "topic", "outcome")
        self.delivery_bytes = self._counter(
            _WORKERS, "delivery_bytes", "Bytes of the values of messages handled", *topic
        )
        self.produced = self._counter(_WORKERS, "produced", "Messages acknowledged by the broker", *topic)
        self.dead_letters = self._counter(ALL, "dead_letters", "Messages set aside on a dead-letter topic", *topic)
        self.retries = self._counter(_WORKERS, "retries", "Deliveries put back after a transient error", *topic)
        self.consumer_lag = self._gauge(_WORKERS, "consumer_lag", "Messages behind the end, over all held partitions")
        self.handle_seconds = self._histogram(_WORKERS, "handle_seconds", "Seconds to handle one message", *topic)
        self.commit_seconds = self._histogram(_WORKERS, "commit_seconds", "Seconds to flush outputs and commit offsets")
        self.rebalances = self._counter(_WORKERS, "rebalances", "Changes of the partitions held")

    def _declare_health(self) -> None:
        self.rpc_seconds = self._histogram(ALL, "rpc_seconds", "Seconds to answer one gRPC call", "method", "code")
        self.ready = self._gauge(ALL, "ready", "Whether every part is ready, 1 or 0: what /readyz says")
        self.last_progress_seconds = self._gauge(ALL, "last_progress_seconds", "Seconds since something last moved")
        self.storage_free_bytes = self._gauge(
            ALL, "storage_free_bytes", "Bytes free where the object store lies, or SHORTSTACK_VAR if that is remote"
        )
        self.waits = self._counter(ALL, "waits", "Times that a part waited for something that was away", "part")

    def _declare_records(self) -> None:
        self.publications = self._counter(
            "ingestion",
            "publications",
            "Publication requests",
            "outcome",
            known=[("everything",), ("accept",), ("failed",), ("refused",)],
        )
        self.pinned_bytes = self._counter("ingestion", "pinned_bytes", "Bytes of the sources of publications sent")
        self.items = self._counter(
            "ingestion", "items", "Items read from sources", "fate", known=[("used",), ("rejected",)]
        )
        self.batches_sent = self._counter("ingestion", "batches_sent", "Record batches sent to records.raw")
        self.records = self._counter(
            "formatting", "records", "Records through the steps", "verdict", "reason", known=[("kept", "")]
        )
        self.datasets = self._gauge("assembly", "datasets", "Datasets by state", "state")
        self.assembled_records = self._counter(
            "assembly",
            "assembled_records",
            "Records by fate in assembly",
            "fate",
            known=[("chosen",), ("duplicates",), ("mixed_in",)],
        )
        self.assemble_seconds = self._histogram("assembly", "assemble_seconds", "Seconds to write one version")

    def _declare_models(self) -> None:
        self.runs = self._gauge("training", "runs", "Runs by state", "state")
        self.jobs = self._gauge("training", "jobs", "Jobs by state", "state")
        self.train_steps = self._counter("training", "train_steps", "Optimizer steps seen")
        self.broken_attempts = self._counter("training", "broken_attempts", "Attempts that ended without a result")
        run = ("dataset", "run")
        self.train_loss = self._gauge("training", "train_loss", "Newest training loss of the newest runs", *run)
        self.train_step = self._gauge("training", "train_step", "Optimizer steps done, of the newest runs", *run)
        self.train_max_steps = self._gauge("training", "train_max_steps", "Steps to do, of the newest runs", *run)
        self.train_tokens_per_second = self._gauge(
            "training", "train_tokens_per_second", "Tokens trained per second; 0 once a run has ended", *run
        )
        self.models = self._gauge("serving", "models", "Models by state", "state")
        self.contract_tests = self._counter(
            "serving", "contract_tests", "Contract tests of exports", "outcome", known=[("passed",), ("refused",)]
        )
        self.rollout_seconds = self._histogram("serving", "rollout_seconds", "Seconds from model found to model served")

    def _declare_chat(self) -> None:
        self.http_seconds = self._histogram("gateway", "http_seconds", "Seconds to answer", "route", "status")
        self.answers = self._counter(
            "gateway",
            "answers",
            "Answers that had begun, by their end",
            "outcome",
            known=[("whole",), ("broken off",), ("client gone",)],
        )
        self.chat_tokens = self._counter("gateway", "chat_tokens", "Tokens by direction", "model", "direction")
        self.first_token_seconds = self._histogram(
            "gateway",
            "first_token_seconds",
            "Seconds to the first token of an answer",
            "model",
            buckets=_FIRST_TOKEN_SECONDS,
        )
        self.routes = self._gauge("gateway", "routes", "Routes known, by state", "state")

    def _registry_of(self, service: str) -> CollectorRegistry | None:
        return self.registry if service == ALL or self.service in service.split(", ") else None

    def _counter(
        self, service: str, name: str, meaning: str, *labels: str, known: Iterable[tuple[str, ...]] = ()
    ) -> Counter:
        """A counter; the ``known`` label values stand at 0 from the start, so that ``rate`` sees the first increase."""
        self.declared.append(DeclaredMetric(_PREFIX + name, "counter", service, labels, meaning))
        counter = Counter(_PREFIX + name, meaning, labels, registry=self._registry_of(service))
        for values in known:
            counter.labels(*values)
        return counter

    def _gauge(self, service: str, name: str, meaning: str, *labels: str) -> Gauge:
        self.declared.append(DeclaredMetric(_PREFIX + name, "gauge", service, labels, meaning))
        return Gauge(_PREFIX + name, meaning, labels, registry=self._registry_of(service))

    def _histogram(
        self, service: str, name: str, meaning: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        self.declared.append(DeclaredMetric(_PREFIX + name, "histogram", service, labels, meaning))
        return Histogram(_PREFIX + name, meaning, labels, registry=self._registry_of(service), buckets=buckets)


def metrics_table() -> list[DeclaredMetric]:
    """Every declared metric, in order of declaration."""
    return list(Metrics(ALL).declared)
