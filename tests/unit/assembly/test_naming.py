"""Which dataset a caller of AssemblyService means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.v1 import assembly_pb2 as pb
from shortstack.core.errors import Invalid, NotFound
from shortstack.messages.v1 import dataset_pb2 as ds

NOTHING = cast(Any, None)


def of(dataset: str, publication: str, accepted_s: int, updated_s: int = 0) -> ds.DatasetSnapshot:
    """A dataset under way; one that was never accepted is a refused request."""
    made = ds.DatasetSnapshot(state=ds.DATASET_STATE_FORMATTING)
    made.publication.publication, made.publication.dataset, made.publication.owner = publication, dataset, "default"
    made.updated_at.seconds = updated_s
    if accepted_s:
        made.publication.accepted_at.seconds = accepted_s
    return made


KNOWN = [
    of("faq", "aaaaaaaa" + "0" * 24, 1),
    of("faq", "aaaaaaaa" + "1" * 24, 2),
    of("faq", "b" * 32, 0, 9),
    of("new", "c" * 32, 0, 4),
    of("new", "d" * 32, 0, 3),
    of("eeeeeeee", "1" * 32, 1),
    of("other", "e" * 32, 1),
]


def meant(dataset: str) -> str:
    controller = SimpleNamespace(snapshots=lambda: {s.publication.publication: s for s in KNOWN})
    servicer = AssemblyServicer(cast(Any, controller), NOTHING, NOTHING, NOTHING, NOTHING)
    return servicer.GetReport(pb.GetReportRequest(dataset=dataset), NOTHING).dataset.publication.publication


@pytest.mark.parametrize(
    ("given", "publication"),
    [
        ("faq", "aaaaaaaa" + "1" * 24),
        ("aaaaaaaa" + "0" * 24, "aaaaaaaa" + "0" * 24),
        ("aaaaaaaa0000", "aaaaaaaa" + "0" * 24),
        ("bbbbbbbb", "b" * 32),
        ("new", "c" * 32),
        ("eeeeeeee", "1" * 32),
    ],
)
def test_a_dataset_is_its_newest_publication_or_the_one_whose_id_begins_so(given: str, publication: str) -> None:
    assert meant(given) == publication


def test_what_several_ids_begin_with_is_refused_naming_them() -> None:
    with pytest.raises(Invalid, match="2 ids begin with") as caught:
        meant("aaaaaaaa")
    assert "aaaaaaaa" + "0" * 24 in caught.value.remedy


@pytest.mark.parametrize("given", ["faqs", "bbbb", "bbbbbbbc"])
def test_what_begins_no_id_is_not_found(given: str) -> None:
    with pytest.raises(NotFound):
        meant(given)
