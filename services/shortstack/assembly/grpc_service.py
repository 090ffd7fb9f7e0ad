"""AssemblyService: reports, rejected records, and the three commands an operator has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import grpc
import orjson

from shortstack.assembly.controller import DatasetController
from shortstack.assembly.deletion import deletion_of
from shortstack.assembly.plan import FailedBatch
from shortstack.assembly.rejected import rejected_records
from shortstack.assembly.v1 import assembly_pb2 as pb
from shortstack.assembly.v1.assembly_pb2_grpc import AssemblyServiceServicer
from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, NotFound, did_you_mean
from shortstack.core.identity import DEFAULT_OWNER, begun_by
from shortstack.messages.v1.dataset_pb2 import (
    DATASET_STATE_DELETED,
    DATASET_STATE_FAILED,
    DATASET_STATE_HELD,
    DATASET_STATE_READY,
    DATASET_STATE_STALLED,
    DatasetSnapshot,
)
from shortstack.messages.v1.training_pb2 import JobSnapshot, TrainingRecord
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateReader

__all__ = ["AssemblyServicer"]

_ACK_S: Final = 10.0
_EFFECT_S: Final = 10.0
_TOPICS_FORGET: Final = timedelta(days=30)
_DEFAULT_REJECTED: Final = 100
_RETRIED: Final = (DATASET_STATE_STALLED, DATASET_STATE_FAILED, DATASET_STATE_DELETED)


class AssemblyServicer(AssemblyServiceServicer):
    """Answers from the controller's snapshots; commands go over ``datasets.commands`` like everybody's."""

    def __init__(
        self,
        controller: DatasetController,
        blobs: BlobStore,
        training: StateReader[TrainingRecord],
        producer: Producer,
        clock: Clock,
    ) -> None:
        self._controller, self._blobs, self._training = controller, blobs, training
        self._producer, self._clock = producer, clock

    def GetReport(self, request: pb.GetReportRequest, context: grpc.ServicerContext) -> pb.GetReportResponse:
        """The snapshot, and the manifest once there is one."""
        snapshot = self._find(request.owner, request.dataset)
        ready = snapshot.state == DATASET_STATE_READY
        manifest = self._blobs.get(snapshot.manifest).decode() if ready else ""
        return pb.GetReportResponse(dataset=snapshot, manifest_json=manifest)

    def ListRejected(self, request: pb.ListRejectedRequest, context: grpc.ServicerContext) -> pb.ListRejectedResponse:
        """The first ``limit`` (100) records that are not in the version, with the reason."""
        snapshot = self._find(request.owner, request.dataset)
        publication = snapshot.publication.publication
        if snapshot.state == DATASET_STATE_DELETED:
            raise Conflict(
                f'dataset "{request.dataset}" is deleted, and its records with it', remedy="Publish it again."
            )
        segments = [(e.segment, e.source) for e in self._controller.segments(publication) if e.segment]
        malformed, failed = self._controller.announcements(publication), self._controller.failed_batches(publication)
        if snapshot.state == DATASET_STATE_READY:
            manifest = orjson.loads(self._blobs.get(snapshot.manifest))
            segments = [(s["key"], s["source"]) for s in manifest["segments"]]
            malformed = manifest.get("malformed_objects", [])
            failed = [FailedBatch(**batch) for batch in manifest.get("failed_batches", [])]
        response = pb.ListRejectedResponse()
        for record in rejected_records(self._blobs, snapshot, segments, malformed, failed):
            if request.reason and record.reason != request.reason:
                continue
            response.records.append(record)
            if len(response.records) >= (request.limit or _DEFAULT_REJECTED):
                break
        return response

    def AcceptDataset(
        self, request: pb.AcceptDatasetRequest, context: grpc.ServicerContext
    ) -> pb.AcceptDatasetResponse:
        """Lets a held dataset through."""
        snapshot = self._find(request.owner, request.dataset)
        if snapshot.state != DATASET_STATE_HELD:
            raise Conflict(
                f'dataset "{request.dataset}" is not held',
                remedy=f"See where it stands with: shortstack datasets report {request.dataset}",
            )
        (after,) = self._command("accept", [snapshot], lambda s: s.state != DATASET_STATE_HELD)
        return pb.AcceptDatasetResponse(dataset=after)

    def RetryDataset(self, request: pb.RetryDatasetRequest, context: grpc.ServicerContext) -> pb.RetryDatasetResponse:
        """Has ingestion read the pinned sources again: what is missing, or all of it as a new attempt."""
        snapshot = self._find(request.owner, request.dataset)
        with_failures = snapshot.state == DATASET_STATE_HELD and snapshot.counts.failed
        if snapshot.state not in _RETRIED and not with_failures:
            raise Conflict(
                f'dataset "{request.dataset}" is neither stalled nor failed, nor held with records that failed',
                remedy=f"See where it stands with: shortstack datasets report {request.dataset}",
            )
        publication = snapshot.publication
        if not publication.sources:
            raise Conflict(
                "nothing of it was pinned, so there is nothing to read again",
                where=f"dataset {publication.dataset}",
                remedy="Publish it again.",
            )
        message = {"dataset": publication.dataset, "retry": publication.publication}
        self._send(topics.ingest_topic(publication.owner), publication.dataset, message, "shortstack.dataset.retry")
        return pb.RetryDatasetResponse(dataset=snapshot)

    def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: grpc.ServicerContext
    ) -> pb.DeleteDatasetResponse:
        """Drops the text of all publications of a name, or of the one whose id is given, unless a job uses it."""
        mine, named = self._named(request.owner, request.dataset)
        deletion = deletion_of(named, mine, self._jobs(request.owner), request.dataset)
        after = self._command("delete", deletion.publications, lambda s: s.state == DATASET_STATE_DELETED)
        remaining = [snapshot for snapshot in after if snapshot.state != DATASET_STATE_DELETED]
        return pb.DeleteDatasetResponse(
            dataset=_newest(remaining or after or named),
            forgotten_by=(self._clock.now() + _TOPICS_FORGET).isoformat(timespec="seconds"),
            models=deletion.models,
            publications=[snapshot.publication.publication for snapshot in deletion.publications],
            copies=deletion.copies,
        )

    def _jobs(self, owner: str) -> list[JobSnapshot]:
        self._training.wait_caught_up(_EFFECT_S)
        jobs = [record.job for record in self._training.values() if record.WhichOneof("record") == "job"]
        return [job for job in jobs if job.owner == (owner or DEFAULT_OWNER)]

    def _named(self, owner: str, dataset: str) -> tuple[list[DatasetSnapshot], list[DatasetSnapshot]]:
        """An owner's publications, and those of them that a name, a publication's id or its beginning stands for.

        Raises:
            NotFound: it stands for none.
        """
        mine = [s for s in self._controller.snapshots().values() if s.publication.owner == (owner or DEFAULT_OWNER)]
        named = [s for s in mine if dataset in (s.publication.dataset, s.publication.publication)]
        if not named:
            whole = begun_by(dataset, (s.publication.publication for s in mine), param="dataset")
            named = [s for s in mine if s.publication.publication == whole]
        if not named:
            raise NotFound(
                f'no dataset "{dataset}"', remedy=did_you_mean(dataset, {s.publication.dataset for s in mine})
            )
        return mine, named

    def _find(self, owner: str, dataset: str) -> DatasetSnapshot:
        """The newest publication of that name, or the one whose id is that, or alone begins so."""
        return _newest(self._named(owner, dataset)[1])

    def _command(
        self, kind: str, snapshots: Sequence[DatasetSnapshot], met: Callable[[DatasetSnapshot], bool]
    ) -> list[DatasetSnapshot]:
        """Sends a command about each and waits a little for its effect; the snapshots as they then stand."""
        for publication in (snapshot.publication for snapshot in snapshots):
            message = {
                "kind": kind,
                "owner": publication.owner,
                "publication": publication.publication,
                "attempt": publication.attempt,
                "at": self._clock.now().isoformat(timespec="seconds"),
            }
            self._send(topics.DATASETS_COMMANDS, publication.dataset, message, f"shortstack.dataset.{kind}")
        ids = [snapshot.publication.publication for snapshot in snapshots]
        self._controller.wait_for(lambda known: all(met(known[id_]) for id_ in ids), _EFFECT_S)
        known = self._controller.snapshots()
        return [known[id_] for id_ in ids]

    def _send(self, topic: topics.Topic, key: str, message: dict[str, Any], type_: str) -> None:
        event = outbound(topic, key, orjson.dumps(message), type=type_, source="assembly", clock=self._clock)
        self._producer.send(event).result(_ACK_S)


def _newest(snapshots: Sequence[DatasetSnapshot]) -> DatasetSnapshot:
    # Refused requests were never accepted: they are older than all that was, and their time is that of the refusal.
    return max(snapshots, key=lambda s: (s.publication.accepted_at.ToNanoseconds(), s.updated_at.ToNanoseconds()))
