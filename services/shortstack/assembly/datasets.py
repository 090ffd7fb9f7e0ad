"""The datasets that the controller knows: their ledgers, their snapshots, and what is to be done about each.

Pure: events go in, snapshots come out; the clock's readings are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson

from shortstack.assembly.commands import DatasetCommand
from shortstack.assembly.gates import Gates, Ruling
from shortstack.assembly.ledger import PublicationLedger
from shortstack.assembly.plan import AssembledVersion
from shortstack.core.errors import Poison
from shortstack.core.identity import job_id
from shortstack.messages.v1.dataset_pb2 import (
    DATASET_STATE_ACCEPTED,
    DATASET_STATE_ASSEMBLING,
    DATASET_STATE_DELETED,
    DATASET_STATE_FAILED,
    DATASET_STATE_FORMATTING,
    DATASET_STATE_HELD,
    DATASET_STATE_READY,
    DATASET_STATE_STALLED,
    BatchEntry,
    DatasetSnapshot,
    DatasetState,
    Publication,
    PublicationEvent,
    PublicationFailed,
    TrainWish,
)

__all__ = ["FINAL", "Dataset", "Datasets"]

FINAL: Final = frozenset({DATASET_STATE_READY, DATASET_STATE_FAILED, DATASET_STATE_DELETED})
"""States that no entry changes any more; a new attempt does."""

_MAX_GAPS_NAMED: Final = 5
_MAX_WISHES: Final = 200
"""Jobs that a snapshot remembers, the newest; the training service has taken up older ones long ago."""


_Early = PublicationEvent | BatchEntry | DatasetCommand


@dataclass(slots=True)
class Dataset:
    """One publication as the controller sees it.

    Attributes:
        touched: when something last came in, on the controller's monotonic clock.
        assembling: a child is at work on it.
        dirty: the snapshot differs from what the state topic holds.
        late: objects with text that came after its deletion, to be dropped.
    """

    snapshot: DatasetSnapshot
    ledger: PublicationLedger
    touched: float
    assembling: bool = False
    dirty: bool = True
    late: list[str] = field(default_factory=list)

    @property
    def final(self) -> bool:
        """Whether only a new attempt can change it."""
        return self.snapshot.state in FINAL

    def settle(self, state: DatasetState.ValueType, message: str = "", remedy: str = "", code: str = "") -> None:
        """Moves to ``state``."""
        self.snapshot.state = state
        self.snapshot.message, self.snapshot.remedy, self.snapshot.code = message, remedy, code
        self.dirty = True

    @property
    def closed(self) -> bool:
        """Whether its ledger is of no more use: the manifest has it all, or nothing may be left of it."""
        return self.snapshot.state in (DATASET_STATE_READY, DATASET_STATE_DELETED)

    def forget(self) -> None:
        """Lets a ledger go that is of no more use; a service runs for years."""
        if self.closed:
            self.ledger = PublicationLedger(self.ledger.publication)

    def count(self) -> None:
        """Writes the ledger's sums into the snapshot."""
        totals, counts = self.ledger.totals, self.snapshot.counts
        counts.items, counts.malformed = totals.items, totals.malformed
        counts.records = totals.announced
        counts.kept, counts.rejected, counts.failed = totals.kept, totals.rejected, totals.failed
        self.snapshot.announced, self.snapshot.formatted = totals.announced, totals.formatted
        del self.snapshot.reasons[:]
        self.snapshot.reasons.extend(totals.reason_counts())
        self.dirty = True

    def shed(self, error: Poison) -> None:
        """Fails a dataset whose snapshot no message can carry, and lets go of all that may have made it so large."""
        whole = self.snapshot.publication
        self.snapshot.publication.CopyFrom(
            Publication(
                publication=whole.publication,
                attempt=whole.attempt,
                owner=whole.owner,
                dataset=whole.dataset,
                job=whole.job,
                accepted_at=whole.accepted_at,
            )
        )
        del self.snapshot.mix[:], self.snapshot.reasons[:], self.snapshot.wishes[:-1]
        for wish in self.snapshot.wishes:
            wish.train_json, wish.deploy_json = "{}", ""
        self.settle(
            DATASET_STATE_FAILED,
            f"what is to be remembered of it is too much: {error.what}",
            "Publish it in parts, or as fewer and larger files.",
            "too_large",
        )

    def finish(self, version: AssembledVersion) -> None:
        """Takes the assembled version: the dataset is ready."""
        counts = self.snapshot.counts
        counts.duplicates, counts.chosen = version.duplicates, version.chosen
        counts.mixed_in, counts.written = version.mixed_in, version.written
        counts.train, counts.validation = version.train, version.validation
        self.snapshot.version, self.snapshot.manifest = version.version, version.manifest
        self.snapshot.duplicates = version.duplicates_object
        self.snapshot.row_formats[:] = version.row_formats
        self.snapshot.with_tools = version.with_tools
        self.settle(DATASET_STATE_READY)


@dataclass(slots=True)
class Datasets:
    """All publications by id, from stored snapshots and what the topics say."""

    by_publication: dict[str, Dataset] = field(default_factory=dict)
    # What was read before its publication's acceptance, by publication and attempt: topics have no common order.
    _early: dict[str, dict[int, list[_Early]]] = field(default_factory=dict)

    def restore(self, snapshots: Iterable[DatasetSnapshot], now: float) -> None:
        """Takes what the state topic holds; ledgers of unfinished ones are built anew from the other topics."""
        for snapshot in snapshots:
            dataset = Dataset(snapshot, PublicationLedger(snapshot.publication), now, dirty=False)
            self.by_publication[snapshot.publication.publication] = dataset

    def apply(self, event: PublicationEvent, now: float) -> None:
        """Takes one event of ``datasets.publications``."""
        match event.WhichOneof("event"):
            case "accepted":
                self._accept(event.accepted, now)
            case "announced":
                self._announce(event, now)
            case "failed":
                self._fail(event.failed, now)

    def enter(self, entry: BatchEntry, now: float) -> None:
        """Takes one entry of ``records.formatted``."""
        dataset = self._of_attempt(entry.publication, entry.attempt)
        if dataset is None:
            self._keep_early(entry.publication, entry.attempt, entry)
        elif dataset.closed:
            self._come_late(dataset, entry.segment)
        elif dataset.ledger.enter(entry) and not dataset.final:
            self._moved(dataset, now)

    def _announce(self, event: PublicationEvent, now: float) -> None:
        announced = event.announced
        dataset = self._of_attempt(announced.publication, announced.attempt)
        if dataset is None:
            self._keep_early(announced.publication, announced.attempt, event)
        elif dataset.closed:
            self._come_late(dataset, announced.rejected_object)
        elif dataset.ledger.announce(announced) and not dataset.final:
            self._moved(dataset, now)

    @staticmethod
    def _moved(dataset: Dataset, now: float) -> None:
        dataset.touched = now
        dataset.count()
        if dataset.snapshot.state in (DATASET_STATE_ACCEPTED, DATASET_STATE_STALLED):
            dataset.settle(DATASET_STATE_FORMATTING)

    def _of_attempt(self, publication: str, attempt: int) -> Dataset | None:
        dataset = self.by_publication.get(publication)
        if dataset is None or dataset.ledger.publication.attempt != attempt:
            return None
        return dataset

    def command(self, command: DatasetCommand, now: float) -> None:
        """Does what an operator asks, if it is about the attempt that is known."""
        dataset = self._of_attempt(command.publication, command.attempt)
        if dataset is None:
            self._keep_early(command.publication, command.attempt, command)
        elif command.kind == "accept" and not dataset.snapshot.accepted_by_operator and not dataset.final:
            dataset.snapshot.accepted_by_operator = dataset.dirty = True
        elif command.kind == "delete" and dataset.snapshot.state != DATASET_STATE_DELETED:
            dataset.settle(DATASET_STATE_DELETED, f"deleted at {command.at}")

    @staticmethod
    def _come_late(dataset: Dataset, key: str) -> None:
        """Text of a deleted dataset that was still under way; of a ready one it is what is there already."""
        if key and dataset.snapshot.state == DATASET_STATE_DELETED:
            dataset.late.append(key)

    def _keep_early(self, publication: str, attempt: int, what: _Early) -> None:
        known = self.by_publication.get(publication)
        if known is None or known.ledger.publication.attempt < attempt:
            self._early.setdefault(publication, {}).setdefault(attempt, []).append(what)

    def _accept(self, publication: Publication, now: float) -> None:
        known = self.by_publication.get(publication.publication)
        if known is None or known.ledger.publication.attempt < publication.attempt:
            opened_at = publication.accepted_at
            snapshot = DatasetSnapshot(publication=publication, state=DATASET_STATE_ACCEPTED, opened_at=opened_at)
            if known is not None:
                snapshot.wishes.extend(known.snapshot.wishes)
            known = Dataset(snapshot, PublicationLedger(publication), now)
            self.by_publication[publication.publication] = known
            self._catch_up(publication, now)
        if known.ledger.publication.attempt == publication.attempt:
            self._asked_again(known, publication)
            self._wish(known, publication)

    @staticmethod
    def _asked_again(dataset: Dataset, publication: Publication) -> None:
        """A name stands for what was asked for last, though it was made before."""
        snapshot = dataset.snapshot
        if snapshot.publication.accepted_at.ToNanoseconds() < publication.accepted_at.ToNanoseconds():
            if not snapshot.HasField("opened_at"):
                snapshot.opened_at.CopyFrom(snapshot.publication.accepted_at)
            snapshot.publication.accepted_at.CopyFrom(publication.accepted_at)
            dataset.dirty = True

    def _catch_up(self, publication: Publication, now: float) -> None:
        """Takes what came early for this attempt; what came for older ones is void."""
        early = self._early.pop(publication.publication, {})
        later = {attempt: kept for attempt, kept in early.items() if attempt > publication.attempt}
        if later:
            self._early[publication.publication] = later
        for one in early.get(publication.attempt, ()):
            if isinstance(one, BatchEntry):
                self.enter(one, now)
            elif isinstance(one, DatasetCommand):
                self.command(one, now)
            else:
                self.apply(one, now)

    @staticmethod
    def _wish(dataset: Dataset, publication: Publication) -> None:
        if not publication.train_json:
            return
        job = publication.job or job_id(
            publication.publication, publication.attempt, publication.train_json, publication.deploy_json
        )
        for known in dataset.snapshot.wishes:
            if known.job == job:
                # Asked for again: only a job that failed or was cancelled since then opens anew.
                if known.requested_at.ToNanoseconds() < publication.accepted_at.ToNanoseconds():
                    known.requested_at.CopyFrom(publication.accepted_at)
                    dataset.dirty = True
                return
        del dataset.snapshot.wishes[: -(_MAX_WISHES - 1)]
        dataset.snapshot.wishes.append(
            TrainWish(
                job=job,
                train_json=publication.train_json,
                deploy_json=publication.deploy_json,
                requested_at=publication.accepted_at,
            )
        )
        dataset.dirty = True

    def _fail(self, failed: PublicationFailed, now: float) -> None:
        dataset = self.by_publication.get(failed.publication)
        if dataset is None:
            publication = Publication(
                publication=failed.publication,
                attempt=failed.attempt,
                owner=failed.owner,
                dataset=failed.dataset,
                job=failed.job,
            )
            dataset = Dataset(DatasetSnapshot(publication=publication), PublicationLedger(publication), now)
            self.by_publication[failed.publication] = dataset
        if dataset.ledger.publication.attempt == failed.attempt and not dataset.final:
            dataset.settle(DATASET_STATE_FAILED, failed.error, failed.remedy, failed.code or "publication_failed")

    # What is to be done.

    def judge(self, dataset: Dataset) -> Ruling | None:
        """What the gates say of a dataset that has come whole and is not judged yet; None while nothing is due."""
        state = dataset.snapshot.state
        waiting = state in (DATASET_STATE_ACCEPTED, DATASET_STATE_FORMATTING, DATASET_STATE_STALLED)
        released = state == DATASET_STATE_HELD and dataset.snapshot.accepted_by_operator
        resumed = state == DATASET_STATE_ASSEMBLING and not dataset.assembling
        if not (waiting or released or resumed) or not dataset.ledger.complete():
            return None
        dataset.count()
        recipe = orjson.loads(dataset.ledger.publication.recipe_json or "{}")
        return Gates.of(recipe).rule(dataset.ledger, accepted=dataset.snapshot.accepted_by_operator)

    def rule(self, dataset: Dataset, ruling: Ruling) -> bool:
        """Moves the dataset as the ruling says; whether it is to be assembled."""
        if ruling.verdict == "ready":
            dataset.settle(DATASET_STATE_ASSEMBLING)
            return True
        state = DATASET_STATE_HELD if ruling.verdict == "held" else DATASET_STATE_FAILED
        dataset.settle(state, ruling.message, ruling.remedy, ruling.code)
        return False

    @staticmethod
    def stall(dataset: Dataset, now: float, idle_s: float) -> None:
        """Marks an incomplete dataset that has not moved for ``idle_s`` seconds, naming what is missing.

        So it does with one that was held for so long that the topics have forgotten its entries, once it is accepted.
        """
        state = dataset.snapshot.state
        released = state == DATASET_STATE_HELD and dataset.snapshot.accepted_by_operator
        waiting = released or state in (DATASET_STATE_ACCEPTED, DATASET_STATE_FORMATTING)
        if not waiting or now - dataset.touched < idle_s or dataset.ledger.complete():
            return
        why = "it was held for longer than the topics remember" if released else f"nothing has moved for {idle_s:.0f} s"
        name = dataset.snapshot.publication.dataset
        dataset.settle(
            DATASET_STATE_STALLED,
            f"{why}; missing: {_missing(dataset.ledger)}",
            f"See that ingestion and formatting run, then send what is missing again: shortstack datasets retry {name}",
            "stalled",
        )


def _missing(ledger: PublicationLedger) -> str:
    """The first few gaps and sources, and how many more there are."""
    missing = [str(gap) for gap in ledger.gaps()]
    missing += [f"{s.uri} not read to its end" for s in ledger.publication.sources if s.ordinal not in ledger.announced]
    more = f" and {len(missing) - _MAX_GAPS_NAMED} more" if len(missing) > _MAX_GAPS_NAMED else ""
    return "; ".join(missing[:_MAX_GAPS_NAMED]) + more
