"""What an operator asks of datasets, answered by the service as it runs."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.unit.assembly.ledgers import accepted, announced, publication, segment
from tests.unit.assembly.worlds import DEADLINE_S, World

from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.v1 import assembly_pb2 as pb
from shortstack.core.errors import Conflict
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.streams import topics

CALL = cast(Any, None)
"""No method asks its call for anything."""


@pytest.fixture
def world() -> World:
    return World()


def report(servicer: AssemblyServicer, dataset: str = "faq") -> pb.GetReportResponse:
    return servicer.GetReport(pb.GetReportRequest(dataset=dataset), CALL)


def wait_for(servicer: AssemblyServicer, state: ds.DatasetState.ValueType, dataset: str = "faq") -> None:
    met = servicer._controller.wait_for(
        lambda known: any(s.publication.dataset == dataset and s.state == state for s in known.values()), DEADLINE_S
    )
    assert met, servicer._controller.snapshots()


def poison(made: ds.Publication, first: int, count: int) -> ds.BatchEntry:
    """What formatting says of a batch that it gave up."""
    return ds.BatchEntry(
        publication=made.publication,
        attempt=made.attempt,
        first=first,
        count=count,
        failed=count,
        error="Fatal: out of memory (attempt 5)",
        reasons=[ds.ReasonCount(step="batch", reason="poison", records=count)],
    )


def test_records_that_failed_are_named_and_can_be_read_again(world: World) -> None:
    made = publication()
    world.event(accepted(made))
    world.event(announced(made, 0, 5))
    world.entry(segment(world.blobs, made, 0, 0, ["a", "b"]))
    world.entry(poison(made, 2, 3))
    with world.serving() as servicer:
        wait_for(servicer, ds.DATASET_STATE_HELD)
        assert "shortstack datasets retry faq" in report(servicer).dataset.remedy
        (failed,) = servicer.ListRejected(pb.ListRejectedRequest(dataset="faq"), CALL).records
        assert (failed.fate, failed.place, failed.reason) == ("failed", "faq-0.jsonl records 2-4", "poison")
        assert "out of memory" in failed.evidence
        servicer.RetryDataset(pb.RetryDatasetRequest(dataset="faq"), CALL)
        assert world.count(topics.DATASETS_INGEST) == 1

        servicer.AcceptDataset(pb.AcceptDatasetRequest(dataset="faq"), CALL)
        wait_for(servicer, ds.DATASET_STATE_READY)
        (still,) = servicer.ListRejected(pb.ListRejectedRequest(dataset="faq"), CALL).records
        assert still == failed
        with pytest.raises(Conflict, match="neither stalled nor failed"):
            servicer.RetryDataset(pb.RetryDatasetRequest(dataset="faq"), CALL)
