"""The ledger of one publication: what was announced, what has arrived, whether it tiles.

Pure: it is told what stood on the topics, in log order, and says what follows. Any order of arrival and any number
of deliveries give the same ledger, because an interval of a source is taken once, from the first entry that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shortstack.assembly.plan import FailedBatch
from shortstack.messages.v1.dataset_pb2 import BatchEntry, Publication, ReasonCount, SourceAnnounced

__all__ = ["Gap", "PublicationLedger", "Totals"]

_ERRORS: Final = 3


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Records of a source that no entry accounts for: [first, last], both inside."""

    source: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"source {self.source} records {self.first}-{self.last}"


@dataclass(slots=True)
class Totals:
    """Sums over the sources and entries of one attempt; all are counts of items or records.

    Laws: items = malformed + used; records = kept + rejected + failed once it tiles; the reasons' sum is rejected and
    failed. ``errors`` are the first words about batches that failed whole; each names its place, so none is a reason.
    """

    items: int = 0
    malformed: int = 0
    announced: int = 0
    formatted: int = 0
    kept: int = 0
    rejected: int = 0
    failed: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def reason_counts(self) -> list[ReasonCount]:
        """Reasons with the most frequent first."""
        return [
            ReasonCount(step=step, reason=reason, records=count)
            for (step, reason), count in sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        ]


class PublicationLedger:
    """What is known of one attempt at one publication."""

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.announced: dict[int, SourceAnnounced] = {}
        self._entries: dict[tuple[int, int], BatchEntry] = {}
        self._totals = Totals()

    def announce(self, announced: SourceAnnounced) -> bool:
        """Takes the announcement of one source; the first wins. Whether it was news."""
        if announced.source in self.announced:
            return False
        self.announced[announced.source] = announced
        self._totals.items += announced.items
        self._totals.malformed += announced.rejected
        self._totals.announced += announced.records
        return True

    def enter(self, entry: BatchEntry) -> bool:
        """Takes a batch's entry; the first of an interval wins. Whether it was news."""
        key = (entry.source, entry.first)
        if key in self._entries:
            return False
        self._entries[key] = entry
        totals = self._totals
        totals.formatted += entry.count
        totals.kept += entry.kept
        totals.rejected += entry.rejected
        totals.failed += entry.failed
        for reason in entry.reasons:
            totals.reasons[reason.step, reason.reason] += reason.records
        if entry.error and len(totals.errors) < _ERRORS:
            totals.errors.append(entry.error)
        return True

    @property
    def totals(self) -> Totals:
        """Sums so far."""
        return self._totals

    def entries(self) -> list[BatchEntry]:
        """Entries by source and first record."""
        return [self._entries[key] for key in sorted(self._entries)]

    def failed_batches(self) -> list[FailedBatch]:
        """Batches that failed whole, by source and first record."""
        return [
            FailedBatch(e.source, e.first, e.count, next((r.reason for r in e.reasons), ""), e.error)
            for e in self.entries()
            if not e.segment
        ]

    def malformed_objects(self) -> list[str]:
        """Objects that list the malformed items, by source."""
        announced = dict(self.announced)  # asked by other threads too
        return [announced[source].rejected_object for source in sorted(announced) if announced[source].rejected_object]

    def all_announced(self) -> bool:
        """Whether every source of the publication has been compiled to its end."""
        return all(source.ordinal in self.announced for source in self.publication.sources)

    def gaps(self) -> Iterator[Gap]:
        """What is missing of the announced sources, in order."""
        for ordinal in sorted(self.announced):
            yield from self._gaps_of(ordinal, self.announced[ordinal].records)

    def _gaps_of(self, source: int, records: int) -> Iterator[Gap]:
        reached = 0
        for (_, first), entry in sorted(item for item in self._entries.items() if item[0][0] == source):
            if first > reached:
                yield Gap(source, reached, first - 1)
            reached = max(reached, first + entry.count)
        if reached < records:
            yield Gap(source, reached, records - 1)

    def complete(self) -> bool:
        """Whether the intervals tile [0, announced) of every source exactly."""
        if not self.all_announced() or self._totals.formatted != self._totals.announced:
            return False
        return next(self.gaps(), None) is None
