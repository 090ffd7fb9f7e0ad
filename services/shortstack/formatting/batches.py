"""One batch of ``records.raw`` in; one immutable segment and one ledger entry on ``records.formatted`` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from shortstack.core.clock import Clock
from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Invalid, Poison
from shortstack.core.failpoints import failpoint
from shortstack.core.identity import BatchId, check_name
from shortstack.core.metrics import Metrics
from shortstack.formatting.pipeline import FAILED, KEPT, REJECTED, Formatted
from shortstack.formatting.recipes import Recipes
from shortstack.messages.v1.dataset_pb2 import BatchEntry, ReasonCount
from shortstack.records.schema import read_table, write_table
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.envelope import header, outbound
from shortstack.streams.topics import RECORDS_FORMATTED

__all__ = ["GROUP", "OWNER_HEADER", "RECIPE_HEADER", "FormatBatches", "publication_of", "segment_key"]

GROUP: Final = "formatting"
"""Consumer group of the service."""

RECIPE_HEADER: Final = "shortstack-recipe"
OWNER_HEADER: Final = "shortstack-owner"


def segment_key(owner: str, batch: BatchId, sha256: str) -> str:
    """Object key of a batch's segment."""
    return f"publications/{owner}/{batch.publication}/segments/{batch}-{sha256}.arrow"


def publication_of(delivery: Delivery) -> str | None:
    """The publication that a batch belongs to; None if its key does not say."""
    try:
        return _batch_id(delivery).publication
    except Poison:
        return None


class FormatBatches:
    """The handler of formatting's worker (see `streams.worker.Handler`).

    The order is the guarantee: the segment is put under its batch and digest, never overwritten; then the entry is
    produced and confirmed; offsets come last. Until then a crash only repeats, and the first entry of a batch wins.
    """

    def __init__(self, blobs: BlobStore, recipes: Recipes, metrics: Metrics, clock: Clock) -> None:
        self._blobs, self._recipes = blobs, recipes
        self._metrics, self._clock = metrics, clock

    def handle(self, delivery: Delivery) -> Sequence[Outbound]:
        """Formats one batch; the messages to send.

        Raises:
            Poison: the batch is not what its key and headers say, or its recipe cannot run.
        """
        batch = _batch_id(delivery)
        owner = check_name(_required(delivery, OWNER_HEADER), param=OWNER_HEADER)
        recipe = _required(delivery, RECIPE_HEADER)
        table = read_table(delivery.value or b"")
        _check_rows(table, batch)
        formatted = self._recipes.pipeline(recipe).run(table)
        data = write_table(formatted.segment)
        sha256 = sha256_hex(data)
        key = segment_key(owner, batch, sha256)
        self._blobs.put(key, data)
        failpoint("formatting.before_flush")
        self._count(formatted)
        entry = _entry(batch, recipe)
        entry.segment, entry.sha256 = key, sha256
        entry.kept, entry.rejected, entry.failed = formatted.kept, formatted.rejected, formatted.failed
        entry.reasons.extend(
            ReasonCount(step=step, reason=reason, records=count) for (step, reason), count in formatted.reasons.items()
        )
        return [self._outbound(batch, entry)]

    def poison(self, delivery: Delivery, error: Poison, attempts: int) -> Sequence[Outbound]:
        """The ledger entry of a batch that cannot be formatted: no segment, every record failed."""
        try:
            batch = _batch_id(delivery)
        except Poison:
            return []  # no batch at all, so no ledger waits for it; the dead letter has the bytes
        entry = _entry(batch, header(delivery, RECIPE_HEADER) or "")
        entry.failed, entry.error = batch.count, f"{type(error).__name__}: {error} (attempt {attempts})"
        entry.reasons.append(ReasonCount(step="batch", reason="poison", records=batch.count))
        self._metrics.records.labels(FAILED, "poison").inc(batch.count)
        return [self._outbound(batch, entry)]

    def _outbound(self, batch: BatchId, entry: BatchEntry) -> Outbound:
        return outbound(
            RECORDS_FORMATTED,
            batch.publication,
            entry.SerializeToString(deterministic=True),
            type="shortstack.batch.formatted",
            source="formatting",
            clock=self._clock,
            id=str(batch),
            extra={"ce_subject": str(batch)},
        )

    def _count(self, formatted: Formatted) -> None:
        records = self._metrics.records
        records.labels(KEPT, "").inc(formatted.kept)
        for (step, reason), count in formatted.reasons.items():
            records.labels(REJECTED, f"{step}/{reason}").inc(count)


def _entry(batch: BatchId, recipe: str) -> BatchEntry:
    return BatchEntry(
        publication=batch.publication,
        attempt=batch.attempt,
        source=batch.source,
        first=batch.first,
        count=batch.count,
        recipe_digest=recipe,
    )


def _batch_id(delivery: Delivery) -> BatchId:
    return BatchId.parse((delivery.key or b"").decode("utf-8", "replace"))


def _required(delivery: Delivery, name: str) -> str:
    value = header(delivery, name)
    if not value:
        raise Invalid(f"header {name} is missing", where=delivery.place, remedy="Only ingestion writes records.raw.")
    return value


def _check_rows(table: pa.Table, batch: BatchId) -> None:
    """The rows of a batch are those that its id names, in order.

    Raises:
        Invalid: they are not.
    """
    if len(table) != batch.count:
        raise Invalid(f"{len(table)} records where the batch id says {batch.count}", where=str(batch))
    expected = pa.array(range(batch.first, batch.first + batch.count), type=pa.int64())
    if batch.count and not pc.all(pc.equal(table.column("seq").combine_chunks(), expected)).as_py():
        raise Invalid(f"records are not numbered from {batch.first} on", where=str(batch))
