"""The dataset controller: one process that reads the ledger's topics whole and decides what each dataset is.

It assigns all partitions, joins no group and commits nothing. What it does follows from the difference between what
the ledgers say and what the snapshots say, never from the arrival of a message, so reading everything again from
the beginning changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC
from typing import Final

from google.protobuf.message import DecodeError

from shortstack.assembly.child import Assembler
from shortstack.assembly.commands import parse_command
from shortstack.assembly.config import AssemblyConfig
from shortstack.assembly.datasets import Dataset, Datasets
from shortstack.assembly.plan import AssembledVersion, AssemblyPlan, FailedBatch
from shortstack.assembly.planning import mix_of, plan_of, publication_prefix
from shortstack.core.clock import Clock
from shortstack.core.errors import NotFound, Poison, ShortstackError, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1.dataset_pb2 import (
    DATASET_STATE_ASSEMBLING,
    DATASET_STATE_DELETED,
    DATASET_STATE_FAILED,
    DATASET_STATE_READY,
    BatchEntry,
    DatasetSnapshot,
    DatasetState,
    PublicationEvent,
)
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.broker import Broker, Delivery, Reader
from shortstack.streams.decoding import UNREADABLE
from shortstack.streams.envelope import header, outbound
from shortstack.streams.notices import Notices
from shortstack.streams.outbox import Outbox
from shortstack.streams.set_aside import SetAside
from shortstack.streams.shown import Shown
from shortstack.streams.state import StateWriter

__all__ = ["DatasetController"]

_SOURCE: Final = "assembly"
_POLL_S: Final = 0.25
_TRIES: Final = 5
"""Failures of an assembly, beside those of an object store that is away, after which the dataset fails."""


class DatasetController:
    """Driven by a `Loop`, whose thread owns ledgers and snapshots; everyone else reads `snapshots`."""

    _RETRY_S = 5.0

    def __init__(
        self,
        broker: Broker,
        blobs: BlobStore,
        assembler: Assembler,
        *,
        config: AssemblyConfig,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._broker, self._blobs, self._assembler = broker, blobs, assembler
        self._config, self._telemetry, self._clock = config, telemetry, clock
        self._writer = StateWriter(broker, topics.DATASETS_STATE, DatasetSnapshot, clock, source=_SOURCE)
        self._datasets = Datasets()
        self._pool = ThreadPoolExecutor(config.assembly_workers, thread_name_prefix="assemble")
        self._running: dict[str, tuple[int, Future[AssembledVersion]]] = {}
        self._not_before: dict[str, float] = {}
        self._written_at: dict[str, float] = {}
        self._shown: Shown[DatasetSnapshot] = Shown()
        self._reader: Reader | None = None
        self._events: Outbox | None = None
        self._ready: Notices | None = None
        self._failures: dict[str, int] = {}
        self._aside: dict[str, SetAside] = {}
        self._readers: dict[str, Callable[[bytes], None]] = {
            topics.DATASETS_PUBLICATIONS.name: self._publication_event,
            topics.RECORDS_FORMATTED.name: self._entry,
            topics.DATASETS_COMMANDS.name: self._command,
        }

    # Turning.

    def open(self) -> None:
        """Claims the state topic, then reads the ledger's topics to their end before it decides anything."""
        self.close()
        self._datasets = Datasets()
        self._datasets.restore(self._writer.open().values(), self._clock.monotonic())
        for publication, dataset in self._datasets.by_publication.items():
            self._show(publication, dataset.snapshot)
        self._events = Outbox(self._broker)
        self._ready = Notices(self._broker, topics.DATASETS_READY, _SOURCE, self._clock)
        for dataset in self._datasets.by_publication.values():
            self._tell_ready(dataset.snapshot)
        for name in self._readers:
            self._aside[name] = SetAside(self._broker, topics.TOPICS[name], _SOURCE, self._telemetry, self._clock)
        self._reader = self._broker.reader(list(self._readers))
        while not self._reader.caught_up():
            self._read(self._reader)

    def turn(self) -> None:
        """Takes what has come, then decides about every dataset."""
        assert self._reader is not None
        self._read(self._reader)
        self._collect()
        self._decide()

    def close(self) -> None:
        """Children under way end with the process or go on to no harm: what they write is named by its content."""
        if self._reader is not None:
            self._reader.close()
        for sending in (self._events, self._ready, *self._aside.values()):
            if sending is not None:
                sending.close(self._config.shutdown_grace_s / 4)
        self._writer.close()
        self._reader = self._events = self._ready = None
        self._aside = {}

    def _read(self, reader: Reader) -> None:
        for delivery in reader.poll(_POLL_S):
            self._take(delivery)

    # For the API's threads.

    def snapshots(self) -> dict[str, DatasetSnapshot]:
        """Copies of all snapshots by publication, as last written."""
        return self._shown.all()

    def segments(self, publication: str) -> list[BatchEntry]:
        """Ledger entries of a publication by source and place; none of one that is ready, whose manifest has them."""
        dataset = self._datasets.by_publication.get(publication)
        return dataset.ledger.entries() if dataset else []

    def failed_batches(self, publication: str) -> list[FailedBatch]:
        """Batches of a publication that failed whole; of a ready one the manifest has them."""
        dataset = self._datasets.by_publication.get(publication)
        return dataset.ledger.failed_batches() if dataset else []

    def announcements(self, publication: str) -> list[str]:
        """Objects that list a publication's malformed items."""
        dataset = self._datasets.by_publication.get(publication)
        return dataset.ledger.malformed_objects() if dataset else []

    def wait_for(self, met: Callable[[Mapping[str, DatasetSnapshot]], bool], timeout_s: float) -> bool:
        """Waits until the snapshots meet a condition."""
        return self._shown.wait(met, timeout_s)

    # Reading.

    def _take(self, delivery: Delivery) -> None:
        """One message; what cannot be understood is set aside, so that the next one flows."""
        topic = delivery.partition.topic
        try:
            unreadable = header(delivery, UNREADABLE)
            if unreadable is not None:
                raise Poison(unreadable, where=delivery.place)
            self._readers[topic](delivery.value or b"")
        except (Poison, DecodeError) as error:
            self._aside[topic].put(delivery, error)

    def _publication_event(self, value: bytes) -> None:
        event = PublicationEvent.FromString(value)
        if event.WhichOneof("event") is None:
            raise Poison("a publication event without content", remedy="Only ingestion writes this topic.")
        self._datasets.apply(event, self._clock.monotonic())

    def _entry(self, value: bytes) -> None:
        entry = BatchEntry.FromString(value)
        if not entry.publication:
            raise Poison("a ledger entry of no publication", remedy="Only formatting writes this topic.")
        self._datasets.enter(entry, self._clock.monotonic())

    def _command(self, value: bytes) -> None:
        self._datasets.command(parse_command(value), self._clock.monotonic())

    # Deciding.

    def _decide(self) -> None:
        now = self._clock.monotonic()
        for publication, dataset in self._datasets.by_publication.items():
            busy = publication in self._running
            if dataset.snapshot.state == DATASET_STATE_DELETED:
                if not busy:  # a child under way would write after the text is gone
                    self._erase(publication, dataset)
                continue
            if not dataset.final and not busy and now >= self._not_before.get(publication, 0):
                self._fix_mix(dataset)
                ruling = self._datasets.judge(dataset)
                if ruling is not None and self._datasets.rule(dataset, ruling):
                    self._launch(publication, dataset)
                self._datasets.stall(dataset, now, self._config.assembly_stalled_after_s)
            self._write_if_due(publication, dataset, now)

    def _erase(self, publication: str, dataset: Dataset) -> None:
        """Drops the text first, then says so: whoever dies between the two finds it still to be done."""
        if dataset.dirty:
            self._blobs.delete_prefix(publication_prefix(dataset.snapshot))
            self._write(publication, dataset)
        while dataset.late:  # formatting was not done with it
            self._blobs.delete_prefix(dataset.late[-1])
            dataset.late.pop()

    def _fix_mix(self, dataset: Dataset) -> None:
        """Fixes what is mixed in as soon as it is there, at acceptance if it can be, and never again."""
        if dataset.snapshot.mix:
            return
        with suppress(NotFound):  # asked again later; `_launch` is where it has to be there
            dataset.snapshot.mix.extend(mix_of(dataset.ledger.publication, self._shown.all().values()))
            dataset.dirty = dataset.dirty or bool(dataset.snapshot.mix)

    def _launch(self, publication: str, dataset: Dataset) -> None:
        try:
            if not dataset.snapshot.mix:
                dataset.snapshot.mix.extend(mix_of(dataset.ledger.publication, self._shown.all().values()))
            if dataset.snapshot.mix:
                self._write(publication, dataset)  # fixed before anything is made of it
        except Poison as error:
            dataset.settle(DATASET_STATE_FAILED, error.what, error.remedy, "cannot_assemble")
            return
        if dataset.final:  # it could not even be written down
            return
        plan = plan_of(dataset, self._config.storage_url)
        attempt = dataset.ledger.publication.attempt
        self._running[publication] = (attempt, self._pool.submit(self._assemble, plan))
        dataset.assembling = True  # from here on; what raised before is tried again with the next turn

    def _assemble(self, plan: AssemblyPlan) -> AssembledVersion:
        with self._telemetry.metrics.assemble_seconds.time():
            return self._assembler(plan)

    def _collect(self) -> None:
        for publication, (attempt, future) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[publication]
            dataset = self._datasets.by_publication[publication]
            dataset.assembling = False
            if dataset.ledger.publication.attempt != attempt or dataset.snapshot.state != DATASET_STATE_ASSEMBLING:
                continue
            error = future.exception()
            if error is None:
                self._failures.pop(publication, None)
                version = future.result()
                failpoint("assembly.before_snapshot")
                dataset.finish(version)
                for fate in ("chosen", "duplicates", "mixed_in"):
                    self._telemetry.metrics.assembled_records.labels(fate).inc(getattr(version, fate))
            else:
                self._broke_off(publication, dataset, error)

    def _broke_off(self, publication: str, dataset: Dataset, error: BaseException) -> None:
        """Waits for what is away; tries anything else a few times; gives up on bad input at once."""
        self._telemetry.log.error("assembling broke off", publication=publication, error=str(error))
        failures = self._failures.get(publication, 0) + (not isinstance(error, Transient))
        self._failures[publication] = failures
        if isinstance(error, Poison) or failures >= _TRIES:
            what, remedy = (error.what, error.remedy) if isinstance(error, ShortstackError) else (str(error), "")
            name = dataset.snapshot.publication.dataset
            remedy = remedy or f"Read its sources again: shortstack datasets retry {name}"
            dataset.settle(DATASET_STATE_FAILED, what, remedy, "cannot_assemble")
            del self._failures[publication]
            return
        dataset.settle(DATASET_STATE_ASSEMBLING, str(error), "It is tried again.", "retrying")
        self._not_before[publication] = self._clock.monotonic() + self._RETRY_S * 2 ** max(0, failures - 1)

    # Writing.

    def _write_if_due(self, publication: str, dataset: Dataset, now: float) -> None:
        if not dataset.dirty:
            return
        known = self._shown.get(publication)
        moved = known is None or _standing(known) != _standing(dataset.snapshot)
        if moved or now - self._written_at.get(publication, 0) >= self._config.assembly_progress_s:
            self._write(publication, dataset)

    def _write(self, publication: str, dataset: Dataset) -> None:
        dataset.snapshot.updated_at.FromDatetime(self._clock.now().astimezone(UTC).replace(tzinfo=None))
        try:
            self._writer.put(publication, dataset.snapshot)
        except Poison as error:
            self._telemetry.log.error("too much to remember", publication=publication, error=str(error))
            dataset.shed(error)
            self._writer.put(publication, dataset.snapshot)
        dataset.dirty = False
        dataset.forget()
        self._written_at[publication] = self._clock.monotonic()
        self._notify(dataset.snapshot, topics.DATASETS_EVENTS)
        if dataset.snapshot.state == DATASET_STATE_READY:
            failpoint("assembly.before_notice")
            self._tell_ready(dataset.snapshot)
        self._show(publication, dataset.snapshot)

    def _show(self, publication: str, snapshot: DatasetSnapshot) -> None:
        self._shown.show(publication, snapshot)
        states = Counter(known.state for known in self._shown.all().values())
        for state in DatasetState.values()[1:]:
            name = DatasetState.Name(state).removeprefix("DATASET_STATE_").lower()
            self._telemetry.metrics.datasets.labels(name).set(states[state])

    def _tell_ready(self, snapshot: DatasetSnapshot) -> None:
        """One notice an attempt."""
        assert self._ready is not None
        if snapshot.state == DATASET_STATE_READY:
            publication = snapshot.publication
            name = f"{publication.publication}/{publication.attempt}"
            self._ready.tell(name, publication.publication, snapshot.SerializeToString(), snapshot.updated_at)

    def _notify(self, snapshot: DatasetSnapshot, topic: topics.Topic) -> None:
        assert self._events is not None
        self._events.send(
            outbound(
                topic,
                snapshot.publication.publication,
                snapshot.SerializeToString(),
                type=f"shortstack.{topic.name}",
                source=_SOURCE,
                clock=self._clock,
            )
        )


def _standing(snapshot: DatasetSnapshot) -> tuple[int, int, int, int, bool]:
    """What is written at once when it changes; the rest is progress."""
    publication, asked = snapshot.publication, len(snapshot.wishes)
    newest = publication.accepted_at.ToNanoseconds()
    return snapshot.state, publication.attempt, newest, asked, snapshot.accepted_by_operator
