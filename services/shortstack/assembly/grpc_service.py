"""AssemblyService: reports, rejected records, and the three commands an operator has."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import grpc
import orjson

from shortstack.assembly.controller import DatasetController
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
from shortstack.messages.v1.training_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    JobSnapshot,
    TrainingRecord,
)
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
_ENDED: Final = (JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED)


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
        malformed = self._controller.announcements(publication)
        if snapshot.state == DATASET_STATE_READY:
            manifest = orjson.loads(self._blobs.get(snapshot.manifest))
            segments = [(s["key"], s["source"]) for s in manifest["segments"]]
            malformed = manifest.get("malformed_objects", [])
        response = pb.ListRejectedResponse()
        for record in rejected_records(self._blobs, snapshot, segments, malformed):
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
        after = self._command("accept", snapshot, lambda s: s.state != DATASET_STATE_HELD)
        return pb.AcceptDatasetResponse(dataset=after)

    def RetryDataset(self, request: pb.RetryDatasetRequest, context: grpc.ServicerContext) -> pb.RetryDatasetResponse:
        """Has ingestion read the pinned sources again: what is missing, or all of it as a new attempt."""
        snapshot = self._find(request.owner, request.dataset)
        if snapshot.state not in (DATASET_STATE_STALLED, DATASET_STATE_FAILED, DATASET_STATE_DELETED):
            raise Conflict(
                f'dataset "{request.dataset}" is neither stalled nor failed',
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
        """Drops a dataset's text, unless a job uses it."""
        snapshot = self._find(request.owner, request.dataset)
        jobs = self._jobs(snapshot.publication.publication)
        using = [job.job for job in jobs if job.state not in _ENDED]
        if using:
            raise Conflict(
                f'dataset "{request.dataset}" is used by {", ".join(using)}',
                remedy="Wait until it has ended, or cancel it with: shortstack runs cancel JOB",
            )
        after = self._command("delete", snapshot, lambda s: s.state == DATASET_STATE_DELETED)
        return pb.DeleteDatasetResponse(
            dataset=after,
            forgotten_by=(self._clock.now() + _TOPICS_FORGET).isoformat(timespec="seconds"),
            models=sorted({job.model for job in jobs if job.model}),
        )

    def _jobs(self, publication: str) -> list[JobSnapshot]:
        self._training.wait_caught_up(_EFFECT_S)
        records = self._training.values()
        return [r.job for r in records if r.WhichOneof("record") == "job" and r.job.publication == publication]

    def _find(self, owner: str, dataset: str) -> DatasetSnapshot:
        """The newest publication of that name, or the one whose id is that, or alone begins so."""
        mine = [s for s in self._controller.snapshots().values() if s.publication.owner == (owner or DEFAULT_OWNER)]
        named = [s for s in mine if dataset in (s.publication.dataset, s.publication.publication)]
        if not named:
            whole = begun_by(dataset, (s.publication.publication for s in mine), param="dataset")
            named = [s for s in mine if s.publication.publication == whole]
        if not named:
            raise NotFound(
                f'no dataset "{dataset}"', remedy=did_you_mean(dataset, {s.publication.dataset for s in mine})
            )
        # Refused requests were never accepted: they are older than all that was, and their time is that of the refusal.
        return max(named, key=lambda s: (s.publication.accepted_at.ToNanoseconds(), s.updated_at.ToNanoseconds()))

    def _command(self, kind: str, snapshot: DatasetSnapshot, met: Callable[[DatasetSnapshot], bool]) -> DatasetSnapshot:
        """Sends a command and waits a little for its effect; the snapshot as it then stands."""
        publication = snapshot.publication
        message = {
            "kind": kind,
            "owner": publication.owner,
            "publication": publication.publication,
            "attempt": publication.attempt,
            "at": self._clock.now().isoformat(timespec="seconds"),
        }
        self._send(topics.DATASETS_COMMANDS, publication.dataset, message, f"shortstack.dataset.{kind}")
        self._controller.wait_for(lambda all_: met(all_[publication.publication]), _EFFECT_S)
        return self._controller.snapshots()[publication.publication]

    def _send(self, topic: topics.Topic, key: str, message: dict[str, Any], type_: str) -> None:
        event = outbound(topic, key, orjson.dumps(message), type=type_, source="assembly", clock=self._clock)
        self._producer.send(event).result(_ACK_S)
