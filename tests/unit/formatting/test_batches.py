"""One batch in; one immutable segment and one entry out, whatever happens in between."""

from __future__ import annotations

import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Invalid, NotFound, Poison
from shortstack.core.identity import BatchId
from shortstack.core.metrics import Metrics
from shortstack.declarations.recipe import RECIPES, recipe_object
from shortstack.formatting.batches import FormatBatches
from shortstack.formatting.recipes import Recipes
from shortstack.messages.v1.dataset_pb2 import BatchEntry
from shortstack.records.message import Message
from shortstack.records.schema import SEGMENT_SCHEMA, Record, read_table, table_of, write_table
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.streams.broker import Delivery, Partition

RECIPE = RECIPES["default"]
BATCH = BatchId("ab" * 16, 1, 0, 5, 3)


@pytest.fixture
def blobs() -> MemoryBlobStore:
    blobs = MemoryBlobStore()
    blobs.put(recipe_object(RECIPE.digest()), RECIPE.json_bytes())
    return blobs


@pytest.fixture
def handler(blobs: MemoryBlobStore) -> FormatBatches:
    return FormatBatches(blobs, Recipes(blobs), Metrics("formatting"), FakeClock())


def delivery(
    key: str = str(BATCH),
    value: bytes | None = None,
    *,
    first: int = 5,
    recipe: str = RECIPE.digest(),
    owner: str = "o",
) -> Delivery:
    """A message of records.raw: a good record, a refusal, an empty answer."""
    answers = ("Paris.", "I'm sorry, but I can't help with that.", "")
    records = [Record(first + n, (Message("user", "q"), Message("assistant", a))) for n, a in enumerate(answers)]
    headers = (("shortstack-recipe", recipe.encode()), ("shortstack-owner", owner.encode()))
    data = write_table(table_of(records)) if value is None else value
    return Delivery(Partition("records.raw", 0), 9, 0, key.encode(), data, headers)


def entry_of(outputs: object) -> BatchEntry:
    (message,) = outputs  # type: ignore[misc]
    assert message.topic == "records.formatted"
    assert message.key == BATCH.publication.encode()
    return BatchEntry.FromString(message.value)


def test_the_entry_names_the_segment_and_counts_every_record(handler: FormatBatches, blobs: MemoryBlobStore) -> None:
    entry = entry_of(handler.handle(delivery()))
    assert (entry.first, entry.count, entry.kept, entry.rejected, entry.failed) == (5, 3, 1, 2, 0)
    assert {(r.step, r.reason, r.records) for r in entry.reasons} == {
        ("empty", "empty_answer", 1),
        ("refusal", "refusal", 1),
    }
    assert entry.segment == f"publications/o/{BATCH.publication}/segments/{BATCH}-{entry.sha256}.arrow"
    segment = read_table(blobs.get(entry.segment), SEGMENT_SCHEMA)
    assert segment.column("verdict").to_pylist() == ["kept", "rejected", "rejected"]


def test_a_redelivery_gives_the_same_bytes_and_the_same_entry(handler: FormatBatches) -> None:
    assert entry_of(handler.handle(delivery())) == entry_of(handler.handle(delivery()))


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (delivery(value=b"no arrow"), Poison),
        (delivery(value=b""), Poison),
        (delivery(first=6), Invalid),
        (delivery(key=str(BatchId(BATCH.publication, 1, 0, 5, 4))), Invalid),
        (delivery(recipe="0" * 32), NotFound),
        (delivery(owner="No Owner"), Invalid),
        (delivery(owner=""), Invalid),
        (delivery(key="no batch"), Invalid),
    ],
)
def test_a_batch_that_is_not_what_it_says_is_poison(handler: FormatBatches, bad: Delivery, kind: type[Poison]) -> None:
    with pytest.raises(kind):
        handler.handle(bad)


def test_poison_leaves_an_entry_in_which_every_record_failed(handler: FormatBatches) -> None:
    entry = entry_of(handler.poison(delivery(value=b"x"), Poison("not a valid Arrow stream"), 1))
    assert (entry.segment, entry.count, entry.failed, entry.kept, entry.rejected) == ("", 3, 3, 0, 0)
    assert "not a valid Arrow stream" in entry.error


def test_poison_without_a_batch_id_leaves_none(handler: FormatBatches) -> None:
    assert list(handler.poison(delivery(key="no batch"), Poison("x"), 1)) == []


def test_a_recipe_frozen_by_other_steps_is_refused(handler: FormatBatches, blobs: MemoryBlobStore) -> None:
    blobs.put(recipe_object("f" * 32), RECIPE.json_bytes())
    with pytest.raises(Poison, match="reads as"):
        handler.handle(delivery(recipe="f" * 32))
