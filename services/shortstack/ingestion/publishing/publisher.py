"""From a message of ``datasets.ingest`` to announced record batches.

The order of writes is what makes a crash harmless: sources pinned and recipe frozen, then the accepted event, then
batches, then each source's announcement once its batches are confirmed; the message's offset last. Everything is
named by content, so doing it again gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson
import structlog

from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, Poison, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.identity import BatchId, publication_id
from shortstack.core.metrics import Metrics
from shortstack.declarations.recipe import frozen_recipe, recipe_object
from shortstack.ingestion.compiling.compile import CompileJob
from shortstack.ingestion.compiling.process import CompileOrder, RawBatch, SourceDone, SourceOpened, compiling
from shortstack.ingestion.publishing.attempts import Decision, Todo
from shortstack.ingestion.publishing.outbox import Outbox, outbox
from shortstack.ingestion.publishing.wishes import Wish
from shortstack.ingestion.reading.items import Limits, Unreadable
from shortstack.ingestion.sources.pinning import Pinned, Pins
from shortstack.ingestion.sources.policy import source_name
from shortstack.messages.v1.dataset_pb2 import (
    PinnedSource,
    Publication,
    PublicationEvent,
    PublicationFailed,
    SourceAnnounced,
)
from shortstack.storage.blobs import BlobStore
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import SUBJECT, outbound
from shortstack.streams.topics import DATASETS_PUBLICATIONS, RECORDS_RAW

__all__ = ["Abandoned", "Plan", "Publisher", "Throttle", "plan_again", "plan_of", "rejected_object"]

_SOURCE: Final = "ingestion"


class Abandoned(Transient):
    """The process stops, or the partition went to another member: whoever reads the message next does all of it."""


class Throttle:
    """Says when the next batch may be sent. This one: always; see `publishing.backlog.Backlog`."""

    def wait(self, batch: str, abandoned: Callable[[], bool]) -> None:
        """Returns once ``batch`` may be sent.

        Raises:
            Abandoned: the work is to be left.
        """
        if abandoned():
            raise Abandoned("left to whoever reads the message next")


@dataclass(frozen=True, slots=True)
class Plan:
    """A publication whose sources are pinned; everything that follows is a function of it.

    Attributes:
        publication: with the file format and family of each source as wished; empty where they are to be detected.
        jobs: how each source is to be read, by ordinal.
    """

    publication: Publication
    jobs: Sequence[CompileJob]
    recipe_json: bytes = b""


def rejected_object(publication: Publication, source: int) -> str:
    """Object key of a source's malformed items."""
    folder = f"publications/{publication.owner}/{publication.publication}/rejected"
    return f"{folder}/{source}.{publication.attempt}.jsonl.zst"


def plan_of(
    wish: Wish,
    pinned: Sequence[Pinned],
    requested_at: datetime,
    limits: Limits,
    prompt_formats: Sequence[str] = (),
) -> Plan:
    """The plan of a publication, at its first attempt. Pure: equal wishes and sources give equal publications."""
    digest = wish.recipe.digest()
    publication = Publication(
        publication=publication_id(
            wish.owner, wish.dataset, [wish.source_identity(source.sha256) for source in pinned], digest
        ),
        attempt=1,
        owner=wish.owner,
        dataset=wish.dataset,
        recipe_json=wish.recipe.json_bytes().decode(),
        recipe_digest=digest,
        prompt_format=wish.prompt_format,
        license=wish.license,
        columns_json=wish.columns_json,
        train_json=wish.train_json,
        deploy_json=wish.deploy_json,
        job=wish.job,
    )
    publication.accepted_at.FromDatetime(requested_at.astimezone(UTC))
    publication.sources.extend(_source(wish, ordinal, source) for ordinal, source in enumerate(pinned))
    jobs = [
        CompileJob(
            name=source_name(source.uri),
            file_format=wish.file_format,
            family=wish.family,
            columns=wish.columns,
            prompt_format=wish.prompt_format,
            prompt_formats=prompt_formats,
            license=wish.license,
            fail_on_malformed=wish.recipe.malformed == "fail",
            limits=limits,
        )
        for source in pinned
    ]
    return Plan(publication, jobs, wish.recipe.json_bytes())


def _source(wish: Wish, ordinal: int, source: Pinned) -> PinnedSource:
    return PinnedSource(
        ordinal=ordinal,
        uri=source.uri,
        revision=source.sha256,
        object=source.key,
        sha256=source.sha256,
        bytes=source.size,
        file_format=wish.file_format,
        family=wish.family,
    )


def plan_again(publication: Publication, limits: Limits, prompt_formats: Sequence[str] = ()) -> Plan:
    """The plan of a publication that was accepted before, from its snapshot: the same records, the same batches."""
    columns = orjson.loads(publication.columns_json) if publication.columns_json else {}
    recipe = orjson.loads(publication.recipe_json)
    jobs = [
        CompileJob(
            name=source_name(source.uri),
            file_format=source.file_format,
            family=source.family,
            columns=columns,
            prompt_format=publication.prompt_format,
            prompt_formats=prompt_formats,
            license=publication.license,
            fail_on_malformed=recipe.get("malformed") == "fail",
            limits=limits,
        )
        for source in publication.sources
    ]
    return Plan(publication, jobs, publication.recipe_json.encode())


@dataclass(slots=True)
class Publisher:
    """Carries plans out. One is shared by all threads of a worker; a call to `run` keeps its own state.

    Attributes:
        new_producer: makes the producer of one run.
        throttle: asked before each batch.
        memory_bytes: for a compiling child.
        flush_s: for what was sent to be acknowledged.
    """

    new_producer: Callable[[], Producer]
    blobs: BlobStore
    pins: Pins
    metrics: Metrics
    log: structlog.stdlib.BoundLogger
    clock: Clock
    throttle: Throttle = field(default_factory=Throttle)
    memory_bytes: int = 2 * 1024**3
    flush_s: float = 60.0

    def run(self, plan: Plan, decision: Decision, abandoned: Callable[[], bool]) -> None:
        """Does what ``decision`` says is left of ``plan``; returns once all of it is confirmed.

        A source that cannot be read fails the publication by an event, and is no error here.

        Raises:
            Abandoned: ``abandoned`` says so.
            Transient: broker or object store are away; the whole may be run again.
        """
        if decision.todo is Todo.NOTHING:
            return
        publication = Publication()
        publication.CopyFrom(plan.publication)
        publication.attempt = decision.attempt
        if plan.recipe_json:
            self._freeze(publication.recipe_digest, plan.recipe_json)
        log = self.log.bind(publication=publication.publication, attempt=publication.attempt)
        with outbox(self.new_producer, self.flush_s) as out:
            try:
                with self.pins.scratch() as scratch:
                    self._compile(out, publication, plan, decision, scratch, abandoned)
            except Unreadable as error:
                log.warning("publication failed", code=error.code, error=str(error))
                self._fail(out, publication, error)
                return
        self.metrics.publications.labels(decision.todo.value).inc()
        if decision.todo is Todo.EVERYTHING:
            self.metrics.pinned_bytes.inc(sum(source.bytes for source in publication.sources))
        log.info("published", dataset=publication.dataset, sources=len(publication.sources))

    def _freeze(self, digest: str, recipe_json: bytes) -> None:
        """Keeps the recipe under its digest. A store may hold it with the name that it once had: that is the same."""
        key, frozen = recipe_object(digest), frozen_recipe(recipe_json)
        try:
            self.blobs.put(key, frozen)
        except Conflict:
            if frozen_recipe(self.blobs.get(key)) != frozen:
                raise

    def _compile(
        self,
        out: Outbox,
        publication: Publication,
        plan: Plan,
        decision: Decision,
        scratch: Path,
        abandoned: Callable[[], bool],
    ) -> None:
        orders = [
            CompileOrder(
                self.pins.local(source.object, source.sha256, scratch), scratch / f"{source.ordinal}.jsonl.zst", job
            )
            for source, job in zip(publication.sources, plan.jobs, strict=True)
        ]
        everything = decision.todo is Todo.EVERYTHING
        with compiling(orders, memory_bytes=self.memory_bytes, compile_them=everything) as events:
            opened = 0
            for event in events:
                match event:
                    case SourceOpened(source, what):
                        publication.sources[source].file_format = what.file_format
                        publication.sources[source].family = what.family
                        opened += 1
                        if opened == len(orders):
                            self._accept(out, publication)
                    case RawBatch():
                        self._send(out, publication, event, abandoned)
                    case SourceDone():
                        self._announce(out, publication, event, orders[event.source].rejected)

    def _accept(self, out: Outbox, publication: Publication) -> None:
        self._event(out, PublicationEvent(accepted=publication), publication, "accepted")
        out.confirm()

    def _send(self, out: Outbox, publication: Publication, batch: RawBatch, abandoned: Callable[[], bool]) -> None:
        name = BatchId(publication.publication, publication.attempt, batch.source, batch.first, batch.count)
        self.throttle.wait(str(name), abandoned)
        message = outbound(
            RECORDS_RAW,
            str(name),
            batch.data,
            type="shortstack.batch.compiled",
            source=_SOURCE,
            clock=self.clock,
            id=str(name),
            extra={
                SUBJECT: publication.publication,
                "shortstack-recipe": publication.recipe_digest,
                "shortstack-owner": publication.owner,
                "shortstack-dataset": publication.dataset,
            },
        )
        out.send(message)
        self.metrics.batches_sent.inc()
        failpoint("ingestion.mid_batches")

    def _announce(self, out: Outbox, publication: Publication, event: SourceDone, rejected: Path) -> None:
        """The end of a source, once its batches are confirmed."""
        out.confirm()
        done = event.done
        announced = SourceAnnounced(
            publication=publication.publication,
            attempt=publication.attempt,
            source=event.source,
            items=done.items,
            used=done.used,
            rejected=done.rejected,
            records=done.records,
            batches=done.batches,
            samples=event.samples,
        )
        if done.rejected:
            announced.rejected_object = rejected_object(publication, event.source)
            if not self.blobs.exists(announced.rejected_object):
                self.blobs.put_file(announced.rejected_object, rejected)
        failpoint("ingestion.before_announce")
        self._event(out, PublicationEvent(announced=announced), publication, f"announced.{event.source}")
        out.confirm()
        self.metrics.items.labels("used").inc(done.used)
        self.metrics.items.labels("rejected").inc(done.rejected)

    def _fail(self, out: Outbox, publication: Publication, error: Unreadable) -> None:
        # What it is made of stands on the topic even if nobody can read it, so that a retry finds its sources.
        self._event(out, PublicationEvent(accepted=publication), publication, "accepted")
        failed = PublicationFailed(
            publication=publication.publication,
            attempt=publication.attempt,
            owner=publication.owner,
            dataset=publication.dataset,
            error=str(Poison(error.what, where=error.where)),
            remedy=error.remedy,
            job=publication.job,
            code=error.code,
        )
        self._event(out, PublicationEvent(failed=failed), publication, "failed")
        out.confirm()
        self.metrics.publications.labels("failed").inc()

    def _event(self, out: Outbox, event: PublicationEvent, publication: Publication, name: str) -> None:
        message = outbound(
            DATASETS_PUBLICATIONS,
            publication.publication,
            event.SerializeToString(deterministic=True),
            type=f"shortstack.publication.{name.partition('.')[0]}",
            source=_SOURCE,
            clock=self.clock,
            id=f"{publication.publication}.{publication.attempt}.{name}",
            extra={SUBJECT: publication.publication},
        )
        out.send(message)
