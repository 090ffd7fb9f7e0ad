"""What an operator asks of datasets, answered by the service as it runs."""

from __future__ import annotations

from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.assembly.ledgers import RECIPE, accepted, announced, publication, segment
from tests.unit.assembly.worlds import DEADLINE_S, World, publish, state_is

from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.v1 import assembly_pb2 as pb
from shortstack.core.errors import Conflict
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1.training_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED
from shortstack.streams import topics

CALL = cast(Any, None)
"""No method asks its call for anything."""


@pytest.fixture
def world() -> World:
    return World()


def report(servicer: AssemblyServicer, dataset: str = "faq") -> pb.GetReportResponse:
    return servicer.GetReport(pb.GetReportRequest(dataset=dataset), CALL)


def wait_for(servicer: AssemblyServicer, state: ds.DatasetState.ValueType, name: str = "pub-faq") -> None:
    assert servicer._controller.wait_for(state_is(state, name), DEADLINE_S), servicer._controller.snapshots()


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


def delete(servicer: AssemblyServicer, dataset: str) -> pb.DeleteDatasetResponse:
    return servicer.DeleteDataset(pb.DeleteDatasetRequest(dataset=dataset), CALL)


def texts(world: World) -> list[str]:
    """Objects that hold records."""
    stored: list[str] = world.blobs.keys()
    return [key for key in stored if key.startswith("publications/")]


def test_a_name_is_deleted_with_all_that_was_published_under_it(world: World) -> None:
    for number, answers in enumerate((["a"], ["b"], ["c"])):
        publish(world, answers, id=f"pub-{number}", accepted_at=Timestamp(seconds=number))
    with world.serving() as servicer:
        for number in range(3):
            wait_for(servicer, ds.DATASET_STATE_READY, f"pub-{number}")
        one = delete(servicer, "pub-1")
        assert list(one.publications) == ["pub-1"]
        assert not [key for key in texts(world) if "pub-1" in key]
        rest = delete(servicer, "faq")
        assert sorted(rest.publications) == ["pub-0", "pub-2"]
        assert rest.dataset.state == ds.DATASET_STATE_DELETED
        assert not texts(world)
        again = delete(servicer, "faq")
        assert (list(again.publications), again.dataset.state) == ([], ds.DATASET_STATE_DELETED)


def test_a_name_stands_for_what_was_asked_for_last(world: World) -> None:
    """A, then B by mistake, then A again, which was made before: nothing is assembled, yet the name means A."""
    with world.serving() as servicer:
        for number, name in enumerate("ab"):
            publish(world, [name], id=f"pub-{name}", accepted_at=Timestamp(seconds=number))
            wait_for(servicer, ds.DATASET_STATE_READY, f"pub-{name}")
        assert report(servicer).dataset.publication.publication == "pub-b"
        for _ in range(2):
            world.event(accepted(publication(id="pub-a", accepted_at=Timestamp(seconds=2))))
            again = publication(id="pub-a", accepted_at=Timestamp(seconds=1, nanos=5))
            world.event(accepted(again))  # what is read late is not newer
        servicer._controller.wait_for(lambda known: known["pub-a"].publication.accepted_at.seconds == 2, DEADLINE_S)
        found = report(servicer).dataset
    assert (found.publication.publication, found.state) == ("pub-a", ds.DATASET_STATE_READY)
    assert (found.publication.accepted_at.seconds, found.opened_at.seconds) == (2, 0)
    assert len(world.assembled) == 2


def test_what_is_mixed_into_others_is_not_forgotten(world: World) -> None:
    """A job on B sees A's text too, and B's shards keep it; C has it by way of B."""
    publish(world, ["a"], name="a")
    with world.serving() as servicer:
        wait_for(servicer, ds.DATASET_STATE_READY, "pub-a")
        b = publish(world, ["b"], name="b", recipe=RECIPE | {"mix": [{"dataset": "a"}]})
        wait_for(servicer, ds.DATASET_STATE_READY, "pub-b")
        c = publish(world, ["c"], name="c", recipe=RECIPE | {"mix": [{"dataset": "b"}]})
        wait_for(servicer, ds.DATASET_STATE_READY, "pub-c")
        world.job(c, JOB_STATE_RUNNING)
        with pytest.raises(Conflict, match="used by ftjob-c"):
            delete(servicer, "a")
        world.job(c, JOB_STATE_SUCCEEDED, "ft:c")
        world.job(b, JOB_STATE_SUCCEEDED, "ft:b")
        answer = delete(servicer, "a")
        versions = {name: report(servicer, name).dataset.version[:12] for name in ("b", "c")}
    assert answer.dataset.state == ds.DATASET_STATE_DELETED
    assert list(answer.models) == ["ft:b", "ft:c"]
    assert list(answer.copies) == [f"b version {versions['b']}", f"c version {versions['c']}"]


def test_what_is_still_to_be_mixed_in_is_not_deleted(world: World) -> None:
    publish(world, ["a"], name="a")
    with world.serving() as servicer:
        wait_for(servicer, ds.DATASET_STATE_READY, "pub-a")
        world.event(accepted(publication(name="b", recipe=RECIPE | {"mix": [{"dataset": "a"}]})))
        servicer._controller.wait_for(lambda known: "pub-b" in known and bool(known["pub-b"].mix), DEADLINE_S)
        with pytest.raises(Conflict, match="to be mixed into b"):
            delete(servicer, "a")
