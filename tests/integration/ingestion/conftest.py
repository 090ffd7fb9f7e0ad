"""Ingestion and formatting as they run, around a broker in memory and a store on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.health import Health
from shortstack.core.lifecycle import Component
from shortstack.core.telemetry import Telemetry
from shortstack.formatting.config import FormattingConfig
from shortstack.formatting.worker import formatting_worker
from shortstack.ingestion.composition import IngestionParts
from shortstack.ingestion.config import IngestionConfig
from shortstack.messages.v1.dataset_pb2 import (
    BatchEntry,
    DatasetSnapshot,
    DatasetState,
    Publication,
    PublicationEvent,
    PublicationFailed,
    SourceAnnounced,
)
from shortstack.storage.blobs import BlobStore
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateWriter
from shortstack.streams.topics import DATASETS_INGEST, DATASETS_STATE

_DEADLINE_S = 30.0


@dataclass(slots=True)
class Stack:
    """Both services around one broker; questions about what stands on the topics."""

    broker: MemoryBroker
    blobs: BlobStore
    folder: Path
    telemetry: Telemetry
    clock: SystemClock = field(default_factory=SystemClock)
    running: list[Component] = field(default_factory=list)
    parts: IngestionParts | None = None

    @property
    def config(self) -> IngestionConfig:
        """Settings with the sources below the test's folder."""
        return IngestionConfig(
            source_roots=str(self.folder / "sources"),
            var=self.folder / "var",
            storage_url=f"file://{self.folder}/blobs",
        )

    def start_ingestion(self) -> IngestionParts:
        """Starts ingestion; `stop` ends it."""
        health = Health(60, self.clock)
        parts = IngestionParts.build(self.config, self.broker, self.blobs, health, self.telemetry, self.clock)
        self._start([parts.state, parts.backlog, parts.uploads, parts.worker])
        self.parts = parts
        return parts

    def start_formatting(self) -> None:
        """Starts one formatting worker."""
        health = Health(60, self.clock)
        config = FormattingConfig()
        worker = formatting_worker(config, self.broker, self.blobs, health, self.telemetry, self.clock)
        self._start([worker])

    def _start(self, components: list[Component]) -> None:
        for component in components:
            component.start()
            self.running.append(component)

    def stop(self) -> None:
        """Stops everything that was started."""
        while self.running:
            self.running.pop().stop(10)

    def source(self, name: str, data: bytes) -> str:
        """Writes a file below the declared root; its address."""
        path = self.folder / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def publish(self, message: dict[str, Any] | bytes) -> None:
        """Puts a message on ``datasets.ingest``, as any Kafka client would."""
        value = message if isinstance(message, bytes) else orjson.dumps(message)
        key = message["dataset"] if isinstance(message, dict) and "dataset" in message else "unknown"
        self.broker.producer().send(
            outbound(DATASETS_INGEST, str(key), value, type="test", source="test", clock=self.clock)
        )

    def set_state(self, publication: Publication, state: DatasetState) -> None:
        """Writes a dataset's snapshot, as assembly does."""
        writer = StateWriter(self.broker, DATASETS_STATE, DatasetSnapshot, self.clock)
        writer.open()
        writer.put(publication.publication, DatasetSnapshot(publication=publication, state=state))
        writer.close()

    def events(self) -> list[PublicationEvent]:
        """Everything on ``datasets.publications``."""
        return [PublicationEvent.FromString(m.value or b"") for m in self.broker.messages("datasets.publications")]

    def accepted(self) -> list[Publication]:
        """Accepted publications, in log order."""
        return [event.accepted for event in self.events() if event.HasField("accepted")]

    def announced(self) -> list[SourceAnnounced]:
        """Announced sources, in log order."""
        return [event.announced for event in self.events() if event.HasField("announced")]

    def failed(self) -> list[PublicationFailed]:
        """Failed publications, in log order."""
        return [event.failed for event in self.events() if event.HasField("failed")]

    def entries(self) -> list[BatchEntry]:
        """The ledger's entries, in log order."""
        return [BatchEntry.FromString(m.value or b"") for m in self.broker.messages("records.formatted")]

    def dead(self) -> list[dict[str, str]]:
        """Headers of what was dead-lettered from ``datasets.ingest``."""
        return [
            {name: value.decode() for name, value in m.headers} for m in self.broker.messages("datasets.ingest.dlq")
        ]

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until ``condition`` holds; fails with what there is after a deadline."""

        def look() -> bool:
            if condition():
                return True
            for component in self.running:
                failed = getattr(component, "failed", None)
                if failed is not None:
                    raise failed
            return False

        until(look, lambda: f"events: {self.events()}; dead: {self.dead()}", deadline_s=_DEADLINE_S)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that nothing runs in yet."""
    clock = SystemClock()
    (tmp_path / "sources").mkdir()
    with Telemetry.start("test", ServiceConfig(log_level="ERROR")) as telemetry:
        stack = Stack(MemoryBroker(clock), BlobStore.open(f"file://{tmp_path}/blobs"), tmp_path, telemetry, clock)
        try:
            yield stack
        finally:
            stack.stop()
