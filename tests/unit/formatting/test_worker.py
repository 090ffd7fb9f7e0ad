"""Formatting's worker: a recipe that cannot run costs its own publication, and no other."""

from __future__ import annotations

import io

from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal
from shortstack.core.health import Health
from shortstack.core.identity import BatchId
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.recipe import Recipe, parse_recipe, recipe_object
from shortstack.formatting.batches import GROUP, OWNER_HEADER, RECIPE_HEADER
from shortstack.formatting.config import FormattingConfig
from shortstack.formatting.worker import formatting_worker
from shortstack.messages.v1.dataset_pb2 import BatchEntry
from shortstack.records.message import Message
from shortstack.records.schema import Record, table_of, write_table
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import RECORDS_FORMATTED, RECORDS_RAW, dead_letters

BATCHES = 1000
"""More than the run of poison at which a worker stops, and than it looks back at."""

# As a stack froze it that had no check of patterns yet.
BROKEN = parse_recipe({"steps": [{"step": "regex", "pattern": "(?=x)y"}]})


def publish(broker: MemoryBroker, blobs: MemoryBlobStore, publication: str, recipe: Recipe, batches: int) -> None:
    """Batches of one record on ``records.raw``, as ingestion puts them there."""
    blobs.put(recipe_object(recipe.digest()), recipe.json_bytes())
    producer = broker.producer()
    for number in range(batches):
        record = Record(number, (Message("user", "Why?"), Message("assistant", "Because it is so.")))
        headers = {RECIPE_HEADER: recipe.digest(), OWNER_HEADER: "default"}
        key = str(BatchId(publication, 1, 0, number, 1))
        data = write_table(table_of([record]))
        producer.send(
            outbound(RECORDS_RAW, key, data, type="t", source="s", clock=SystemClock(), extra=headers)
        ).result(5)


def test_a_recipe_that_cannot_run_stops_nobody_else() -> None:
    broker, blobs = raw()
    publish(broker, blobs, "0" * 32, BROKEN, BATCHES)
    publish(broker, blobs, "1" * 32, parse_recipe("default"), 1)
    assert run(broker, blobs) is None
    entries = [BatchEntry.FromString(message.value or b"") for message in broker.messages(RECORDS_FORMATTED.name)]
    assert sum(entry.failed for entry in entries) == BATCHES
    assert sum(entry.kept for entry in entries) == 1
    assert len(broker.messages(f"{RECORDS_RAW.name}.dlq")) == BATCHES


def test_batches_that_are_poison_whosever_they_are_stop_the_service() -> None:
    """As after an update that reads no recipe any more: going on would fail every dataset."""
    broker, blobs = raw()
    for number in range(10):
        publish(broker, blobs, f"{number:032x}", BROKEN, 50)
    failed = run(broker, blobs)
    assert isinstance(failed, Fatal)
    assert "origins are poison" in str(failed)
    assert broker.lag(GROUP, [RECORDS_RAW.name]) > 0


def raw() -> tuple[MemoryBroker, MemoryBlobStore]:
    broker = MemoryBroker(SystemClock())
    broker.apply([RECORDS_RAW, RECORDS_FORMATTED, dead_letters(RECORDS_RAW)])
    return broker, MemoryBlobStore()


def run(broker: MemoryBroker, blobs: MemoryBlobStore) -> Exception | None:
    """The worker until it has handled everything, or failed; what it failed of."""
    config, clock = FormattingConfig(), SystemClock()
    with Telemetry.start(GROUP, config, io.StringIO()) as telemetry:
        worker = formatting_worker(config, broker, blobs, Health(60, clock), telemetry, clock)
        worker.start()
        until(
            lambda: worker.failed is not None or broker.lag(GROUP, [RECORDS_RAW.name]) == 0,
            "everything is handled",
            deadline_s=60,
        )
        worker.stop(10)
        return worker.failed
