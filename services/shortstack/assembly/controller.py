"""The dataset controller: one process that reads the ledger's topics whole and decides what each dataset is.

It assigns all partitions, joins no group and commits nothing. What it does follows from the difference between what
the ledgers say and what the snapshots say, never from the arrival of a message, so reading everything again from
the beginning changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC
from typing import Any, Final, Protocol

import orjson

from shortstack.assembly.config import AssemblyConfig
from shortstack.assembly.datasets import Dataset, Datasets
from shortstack.assembly.plan import AssembledVersion, AssemblyPlan, MixIn, Segment
from shortstack.core.clock import Clock
from shortstack.core.errors import Poison, Transient
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
from shortstack.streams.broker import Broker, Delivery, Producer, Reader
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateWriter

__all__ = ["Assembler", "ChildAssembler", "DatasetController", "publication_prefix"]

_SOURCE: Final = "assembly"


def publication_prefix(snapshot: DatasetSnapshot) -> str:
    """Object prefix of a publication; all its record text stands below."""
    publication = snapshot.publication
    return f"publications/{publication.owner}/{publication.publication}"


class Assembler(Protocol):
    """Makes a version from a plan."""

    def __call__(self, plan: AssemblyPlan) -> AssembledVersion:
        """Blocks until the version is there.

        Raises:
            Transient: the attempt broke off; the same plan may be tried again.
        """
        ...


class ChildAssembler:
    """Runs `shortstack.assembly.assemble` in a process of its own, so that its memory is its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __call__(self, plan: AssemblyPlan) -> AssembledVersion:
        """See `Assembler`."""
        command = [sys.executable, "-m", "shortstack.assembly.assemble"]
        try:
            done = subprocess.run(
                command, input=plan.to_json(), capture_output=True, timeout=self._timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Transient(f"assembling took longer than {self._timeout_s:.0f} s", where=plan.prefix) from error
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise Transient(
                f"the assembling process ended with {done.returncode}: {words[-1] if words else 'no message'}",
                where=plan.prefix,
                remedy="It is tried again; see the log of assembly if it goes on.",
            )
        return AssembledVersion.from_json(done.stdout)


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
        self._changed = threading.Condition()
        self._snapshots: dict[str, DatasetSnapshot] = {}
        self._reader: Reader | None = None
        self._producer: Producer | None = None

    # Turning.

    def open(self) -> None:
        """Claims the state topic, then reads the ledger's topics to their end before it decides anything."""
        self.close()
        self._datasets = Datasets()
        self._datasets.restore(self._writer.open().values(), self._clock.monotonic())
        for publication, dataset in self._datasets.by_publication.items():
            self._show(publication, dataset.snapshot)
        self._producer = self._broker.producer()
        self._reader = self._broker.reader(
            [t.name for t in (topics.DATASETS_PUBLICATIONS, topics.RECORDS_FORMATTED, topics.DATASETS_COMMANDS)]
        )
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
        if self._producer is not None:
            self._producer.close(self._config.shutdown_grace_s / 4)
        self._writer.close()
        self._reader = self._producer = None

    def _read(self, reader: Reader) -> None:
        for delivery in reader.poll(0.1):
            self._take(delivery)

    # For the API's threads.

    def snapshots(self) -> dict[str, DatasetSnapshot]:
        """Copies of all snapshots by publication, as last written."""
        with self._changed:
            return dict(self._snapshots)

    def segments(self, publication: str) -> list[BatchEntry]:
        """Ledger entries of a publication by source and place; empty once topics have forgotten them."""
        dataset = self._datasets.by_publication.get(publication)
        return dataset.ledger.entries() if dataset else []

    def announcements(self, publication: str) -> list[str]:
        """Objects that list a publication's malformed items."""
        dataset = self._datasets.by_publication.get(publication)
        if dataset is None:
            return []
        return [a.rejected_object for a in dataset.ledger.announced.values() if a.rejected_object]

    def wait_for(self, met: Callable[[dict[str, DatasetSnapshot]], bool], timeout_s: float) -> bool:
        """Waits until the snapshots meet a condition."""
        with self._changed:
            return self._changed.wait_for(lambda: met(self._snapshots), timeout_s)

    # Reading.

    def _take(self, delivery: Delivery) -> None:
        now = self._clock.monotonic()
        try:
            match delivery.partition.topic:
                case topics.DATASETS_PUBLICATIONS.name:
                    event = PublicationEvent.FromString(delivery.value or b"")
                    self._datasets.apply(event, now, self._clock.now())
                case topics.RECORDS_FORMATTED.name:
                    self._datasets.enter(BatchEntry.FromString(delivery.value or b""), now)
                case _:
                    self._command(orjson.loads(delivery.value or b"{}"))
        except (Poison, ValueError, KeyError, TypeError) as error:
            self._telemetry.log.error("message set aside", place=delivery.place, error=str(error))

    def _command(self, command: dict[str, Any]) -> None:
        dataset = self._datasets.by_publication.get(command["publication"])
        if dataset is None or dataset.ledger.publication.attempt != command["attempt"]:
            return
        if command["kind"] == "accept" and not dataset.snapshot.accepted_by_operator:
            dataset.snapshot.accepted_by_operator = True
            dataset.dirty = True
        elif command["kind"] == "delete" and dataset.snapshot.state != DATASET_STATE_DELETED:
            dataset.settle(DATASET_STATE_DELETED, f"deleted at {command['at']}")

    def _decide(self) -> None:
        now = self._clock.monotonic()
        for publication, dataset in self._datasets.by_publication.items():
            if dataset.snapshot.state == DATASET_STATE_DELETED and dataset.dirty:
                self._write(publication, dataset)
                self._blobs.delete_prefix(publication_prefix(dataset.snapshot))
                continue
            if not dataset.final and publication not in self._running and now >= self._not_before.get(publication, 0):
                ruling = self._datasets.judge(dataset)
                if ruling is not None and self._datasets.rule(dataset, ruling):
                    self._launch(publication, dataset)
                self._datasets.stall(dataset, now, self._config.assembly_stalled_after_s)
            self._write_if_due(publication, dataset, now)

    def _launch(self, publication: str, dataset: Dataset) -> None:
        try:
            plan = self._plan(dataset)
        except Poison as error:
            dataset.assembling = False
            dataset.settle(DATASET_STATE_FAILED, str(error), error.remedy, "cannot_assemble")
            return
        attempt = dataset.ledger.publication.attempt
        self._running[publication] = (attempt, self._pool.submit(self._assemble, plan))

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
                version = future.result()
                failpoint("assembly.before_snapshot")
                dataset.finish(version)
                for fate in ("chosen", "duplicates", "mixed_in"):
                    self._telemetry.metrics.assembled_records.labels(fate).inc(getattr(version, fate))
            else:
                self._telemetry.log.error("assembling broke off", publication=publication, error=str(error))
                dataset.settle(DATASET_STATE_ASSEMBLING, str(error), "It is tried again.", "retrying")
                self._not_before[publication] = self._clock.monotonic() + self._RETRY_S

    def _plan(self, dataset: Dataset) -> AssemblyPlan:
        publication, snapshot = dataset.ledger.publication, dataset.snapshot
        recipe = orjson.loads(publication.recipe_json)
        head = {
            "owner": publication.owner,
            "dataset": publication.dataset,
            "publication": publication.publication,
            "attempt": publication.attempt,
            "counts": {name: getattr(snapshot.counts, name) for name in ("items", "malformed", "rejected", "failed")},
            "reasons": [{"step": r.step, "reason": r.reason, "records": r.records} for r in snapshot.reasons],
            "license": publication.license,
            "prompt_format": publication.prompt_format,
            "recipe": recipe,
            "recipe_digest": publication.recipe_digest,
            "sources": [
                {"uri": s.uri, "revision": s.revision, "object": s.object, "sha256": s.sha256, "bytes": s.bytes}
                for s in publication.sources
            ],
            "malformed_objects": [a.rejected_object for a in dataset.ledger.announced.values() if a.rejected_object],
        }
        return AssemblyPlan(
            storage_url=self._config.storage_url,
            prefix=publication_prefix(snapshot),
            segments=[Segment(e.segment, e.sha256, e.source) for e in dataset.ledger.entries() if e.segment],
            deduplicate=recipe.get("deduplicate", "exact"),
            order=recipe.get("order", "shuffle"),
            seed=int(recipe.get("seed", 42)),
            validation=float(recipe.get("validation") or 0),
            mix=[self._mix_in(publication.owner, entry) for entry in recipe.get("mix") or ()],
            head=head,
        )

    def _mix_in(self, owner: str, entry: dict[str, Any]) -> MixIn:
        wanted = entry["dataset"]
        ready = [
            s
            for s in self._snapshots.values()
            if s.publication.owner == owner and s.publication.dataset == wanted and s.state == DATASET_STATE_READY
        ]
        if not ready:
            raise Poison(
                f'mix names dataset "{wanted}", which is not ready',
                remedy="Publish it first, or accept it if it is held; then publish this one again.",
            )
        newest = max(ready, key=lambda s: s.publication.accepted_at.ToDatetime(tzinfo=UTC))
        return MixIn(wanted, newest.version, newest.manifest, float(entry.get("factor", 1.0)))

    # Writing.

    def _write_if_due(self, publication: str, dataset: Dataset, now: float) -> None:
        if not dataset.dirty:
            return
        known = self._snapshots.get(publication)
        moved = known is None or _standing(known) != _standing(dataset.snapshot)
        if moved or now - self._written_at.get(publication, 0) >= self._config.assembly_progress_s:
            self._write(publication, dataset)

    def _write(self, publication: str, dataset: Dataset) -> None:
        dataset.snapshot.updated_at.FromDatetime(self._clock.now().astimezone(UTC).replace(tzinfo=None))
        known = self._snapshots.get(publication)
        self._writer.put(publication, dataset.snapshot)
        dataset.dirty = False
        self._written_at[publication] = self._clock.monotonic()
        self._notify(dataset.snapshot, topics.DATASETS_EVENTS)
        became_ready = known is None or known.state != DATASET_STATE_READY
        if dataset.snapshot.state == DATASET_STATE_READY and became_ready:
            failpoint("assembly.before_notice")
            self._notify(dataset.snapshot, topics.DATASETS_READY)
        self._show(publication, dataset.snapshot)

    def _show(self, publication: str, snapshot: DatasetSnapshot) -> None:
        copy = DatasetSnapshot()
        copy.CopyFrom(snapshot)
        with self._changed:
            self._snapshots[publication] = copy
            self._changed.notify_all()
            states = Counter(known.state for known in self._snapshots.values())
        for state in DatasetState.values()[1:]:
            name = DatasetState.Name(state).removeprefix("DATASET_STATE_").lower()
            self._telemetry.metrics.datasets.labels(name).set(states[state])

    def _notify(self, snapshot: DatasetSnapshot, topic: topics.Topic) -> None:
        assert self._producer is not None
        self._producer.send(
            outbound(
                topic,
                snapshot.publication.publication,
                snapshot.SerializeToString(),
                type=f"shortstack.{topic.name}",
                source=_SOURCE,
                clock=self._clock,
            )
        )


def _standing(snapshot: DatasetSnapshot) -> tuple[int, int, int, bool]:
    """What is written at once when it changes; the rest is progress."""
    return snapshot.state, snapshot.publication.attempt, len(snapshot.wishes), snapshot.accepted_by_operator
