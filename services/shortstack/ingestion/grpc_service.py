"""IngestionService: publishing, and what became of datasets, from the state topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import grpc

from shortstack.core.clock import Clock
from shortstack.core.errors import NotFound, did_you_mean
from shortstack.core.identity import DEFAULT_OWNER, begun_by, check_name
from shortstack.ingestion.preview import Previewer
from shortstack.ingestion.publishing.requests import Requests
from shortstack.ingestion.v1 import ingestion_pb2 as pb
from shortstack.ingestion.v1.ingestion_pb2_grpc import IngestionServiceServicer
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateReader
from shortstack.streams.topics import ingest_topic

__all__ = ["IngestionServicer"]

_ACK_S: Final = 30.0
_CAUGHT_UP_S: Final = 10.0
_PREVIEW: Final = 20
_PREVIEW_MAX: Final = 1000


class IngestionServicer(IngestionServiceServicer):
    """Checks and publishes requests; answers about datasets from a `StateReader`."""

    def __init__(
        self,
        requests: Requests,
        previewer: Previewer,
        state: StateReader[DatasetSnapshot],
        producer: Producer,
        clock: Clock,
    ) -> None:
        self._requests, self._previewer, self._state = requests, previewer, state
        self._producer, self._clock = producer, clock

    def PublishDataset(
        self, request: pb.PublishDatasetRequest, context: grpc.ServicerContext
    ) -> pb.PublishDatasetResponse:
        """Puts a checked request on the owner's ingest topic; answers once Kafka has it."""
        owner = _owner(request.owner)
        dataset = self._requests.check(request.request_json, owner).dataset
        topic = ingest_topic(owner)
        message = outbound(
            topic,
            dataset,
            request.request_json,
            type="shortstack.dataset.requested",
            source="ingestion",
            clock=self._clock,
        )
        sent = self._producer.send(message)
        self._producer.flush(_ACK_S)
        position = sent.result(_ACK_S)
        return pb.PublishDatasetResponse(
            owner=owner,
            dataset=dataset,
            topic=topic.name,
            partition=position.partition.number,
            offset=position.offset,
        )

    def GetDataset(self, request: pb.GetDatasetRequest, context: grpc.ServicerContext) -> pb.GetDatasetResponse:
        """The newest publication of a dataset, or a publication by its id or how that alone begins."""
        owner = _owner(request.owner)
        found = self._find(owner, request.dataset)
        if found is None:
            self._state.wait_caught_up(_CAUGHT_UP_S)
            found = self._find(owner, request.dataset)
        if found is None:
            names = {snapshot.publication.dataset for snapshot in self._of(owner)}
            raise NotFound(
                f'there is no dataset "{request.dataset}"',
                where=f"owner {owner}",
                remedy=did_you_mean(request.dataset, names),
                param="dataset",
            )
        return pb.GetDatasetResponse(dataset=found)

    def ListDatasets(self, request: pb.ListDatasetsRequest, context: grpc.ServicerContext) -> pb.ListDatasetsResponse:
        """The newest publication of every dataset of an owner, by name; or all of one name, oldest first."""
        self._state.wait_caught_up(_CAUGHT_UP_S)
        mine = self._of(_owner(request.owner))
        if request.dataset:
            return pb.ListDatasetsResponse(datasets=[s for s in mine if s.publication.dataset == request.dataset])
        newest = {snapshot.publication.dataset: snapshot for snapshot in mine}
        return pb.ListDatasetsResponse(datasets=[newest[name] for name in sorted(newest)])

    def WatchDataset(
        self, request: pb.WatchDatasetRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchDatasetResponse]:
        """Every matching snapshot, then each change, until the caller leaves."""
        owner = _owner(request.owner)
        for _, snapshot in self._state.watch(context.is_active):
            if snapshot is None or snapshot.publication.owner != owner:
                continue
            if request.dataset in ("", snapshot.publication.dataset, snapshot.publication.publication):
                yield pb.WatchDatasetResponse(dataset=snapshot)

    def PreviewSource(
        self, request: pb.PreviewSourceRequest, context: grpc.ServicerContext
    ) -> pb.PreviewSourceResponse:
        """The first records of a source; nothing is stored."""
        limit = min(request.limit or _PREVIEW, _PREVIEW_MAX)
        preview = self._previewer.preview(request.request_json, _owner(request.owner), limit)
        return pb.PreviewSourceResponse(
            file_format=preview.file_format,
            family=preview.family,
            records_json=preview.records,
            malformed=preview.malformed,
        )

    def _of(self, owner: str) -> list[DatasetSnapshot]:
        """An owner's publications, oldest first."""
        mine = [snapshot for snapshot in self._state.values() if snapshot.publication.owner == owner]
        return sorted(mine, key=_age)

    def _find(self, owner: str, dataset: str) -> DatasetSnapshot | None:
        mine = self._of(owner)
        for snapshot in reversed(mine):
            if dataset in (snapshot.publication.dataset, snapshot.publication.publication):
                return snapshot
        whole = begun_by(dataset, (snapshot.publication.publication for snapshot in mine), param="dataset")
        return next((snapshot for snapshot in mine if snapshot.publication.publication == whole), None)


def _age(snapshot: DatasetSnapshot) -> tuple[int, int, str]:
    """What was never accepted, a refused request for one, is older than all that was."""
    publication = snapshot.publication
    return publication.accepted_at.ToNanoseconds(), snapshot.updated_at.ToNanoseconds(), publication.publication


def _owner(given: str) -> str:
    return check_name(given, param="owner") if given else DEFAULT_OWNER
