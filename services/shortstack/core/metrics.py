"""Every metric of the stack, declared once. ``docs/metrics.md`` is written from this list.

A service exposes what is declared for ``all`` and for itself; the others' metrics exist as attributes, so that
shared code can count without asking where it runs, but stay off its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

__all__ = ["ALL", "DeclaredMetric", "Metrics", "metrics_table"]

ALL: Final = "all"
"""A metric of every service."""

_PREFIX: Final = "shortstack_"
_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class DeclaredMetric:
    """One line of the list.

    Attributes:
        name: as Prometheus shows it, without the ``_total``, ``_bucket``, ``_sum`` and ``_count`` of samples.
        kind: counter, gauge or histogram.
        service: the service that exposes it, or ``all``.
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
        self._declare_rpc()
        self._declare_records()
        self._declare_models()
        self._declare_chat()

    def _declare_streams(self) -> None:
        topic = ("topic",)
        self.deliveries = self._counter(ALL, "deliveries", "Messages handled", "topic", "outcome")
        self.delivery_bytes = self._counter(ALL, "delivery_bytes", "Bytes of the values of messages handled", *topic)
        self.produced = self._counter(ALL, "produced", "Messages acknowledged by the broker", *topic)
        self.dead_letters = self._counter(ALL, "dead_letters", "Messages set aside on a dead-letter topic", *topic)
        self.retries = self._counter(ALL, "retries", "Deliveries put back after a transient error", *topic)
        self.consumer_lag = self._gauge(ALL, "consumer_lag", "Messages behind the end, over all held partitions")
        self.handle_seconds = self._histogram(ALL, "handle_seconds", "Seconds to handle one message", *topic)
        self.commit_seconds = self._histogram(ALL, "commit_seconds", "Seconds to flush outputs and commit offsets")
        self.rebalances = self._counter(ALL, "rebalances", "Changes of the partitions held")
        self.state_snapshots = self._counter(
            ALL, "state_snapshots", "Snapshots read from state topics", "topic", "fate"
        )

    def _declare_rpc(self) -> None:
        self.rpc_seconds = self._histogram(ALL, "rpc_seconds", "Seconds to answer one gRPC call", "method", "code")
        self.last_progress_seconds = self._gauge(ALL, "last_progress_seconds", "Seconds since something last moved")

    def _declare_records(self) -> None:
        self.publications = self._counter("ingestion", "publications", "Publication requests", "outcome")
        self.pinned_bytes = self._counter("ingestion", "pinned_bytes", "Bytes of sources pinned")
        self.items = self._counter("ingestion", "items", "Items read from sources", "fate")
        self.batches_sent = self._counter("ingestion", "batches_sent", "Record batches sent to records.raw")
        self.records = self._counter("formatting", "records", "Records through the steps", "verdict", "reason")
        self.step_seconds = self._histogram("formatting", "step_seconds", "Seconds of one step on one batch", "step")
        self.datasets = self._gauge("assembly", "datasets", "Datasets by state", "state")
        self.assembled_records = self._counter("assembly", "assembled_records", "Records by fate in assembly", "fate")
        self.assemble_seconds = self._histogram("assembly", "assemble_seconds", "Seconds to write one version")

    def _declare_models(self) -> None:
        self.runs = self._gauge("training", "runs", "Runs by state", "state")
        self.jobs = self._gauge("training", "jobs", "Jobs by state", "state")
        self.train_steps = self._counter("training", "train_steps", "Optimizer steps seen")
        self.train_loss = self._gauge("training", "train_loss", "Newest training loss", "run")
        self.models = self._gauge("serving", "models", "Models by state", "state")
        self.contract_tests = self._counter("serving", "contract_tests", "Contract tests of exports", "outcome")
        self.rollout_seconds = self._histogram("serving", "rollout_seconds", "Seconds from model found to model served")

    def _declare_chat(self) -> None:
        self.http_seconds = self._histogram("gateway", "http_seconds", "Seconds to answer", "route", "status")
        self.chat_tokens = self._counter("gateway", "chat_tokens", "Tokens by direction", "model", "direction")
        self.first_token_seconds = self._histogram(
            "gateway", "first_token_seconds", "Seconds to the first token of an answer", "model", buckets=_TOKEN_SECONDS
        )
        self.routes = self._gauge("gateway", "routes", "Routes known, by state", "state")
        self.generated_tokens = self._counter("inference", "generated_tokens", "Tokens generated", "adapter")
        self.batch_slots = self._gauge("inference", "batch_slots", "Requests in the running batch")
        self.queued_requests = self._gauge("inference", "queued_requests", "Requests waiting for a slot")
        self.decode_step_seconds = self._histogram(
            "inference", "decode_step_seconds", "Seconds of one step of the batch", buckets=_TOKEN_SECONDS
        )

    def _registry_of(self, service: str) -> CollectorRegistry | None:
        return self.registry if service in (ALL, self.service) else None

    def _counter(self, service: str, name: str, meaning: str, *labels: str) -> Counter:
        self.declared.append(DeclaredMetric(_PREFIX + name, "counter", service, labels, meaning))
        return Counter(_PREFIX + name, meaning, labels, registry=self._registry_of(service))

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
