"""An upload that stays incomplete fails after a day, by the name of what is missing, once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from tests.polling import until

from shortstack.core.clock import FakeClock
from shortstack.ingestion.publishing.upload_watch import UploadWatch, upload_publication
from shortstack.ingestion.sources.uploads import Uploads
from shortstack.messages.v1.dataset_pb2 import PinnedSource, Publication, PublicationEvent, PublicationFailed
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.streams.broker import Outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import DATASETS_PUBLICATIONS, TOPICS

DEADLINE_S = 20
GARBAGE = b"\xff garbage"
DAY = timedelta(hours=24)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.broker = MemoryBroker(self.clock)
        self.broker.apply(TOPICS.values())
        self.uploads = Uploads(MemoryBlobStore())
        self.watches: list[UploadWatch] = []

    def watch(self) -> UploadWatch:
        watch = UploadWatch(self.broker, self.uploads, self.clock, structlog.get_logger(), after=DAY)
        watch.start()
        self.watches.append(watch)
        return watch

    def stop(self) -> None:
        while self.watches:
            watch = self.watches.pop()
            watch.stop(DEADLINE_S)
            assert watch.failed is None

    def events(self) -> list[PublicationEvent]:
        values = [m.value or b"" for m in self.broker.messages(DATASETS_PUBLICATIONS.name)]
        return [PublicationEvent.FromString(value) for value in values if value != GARBAGE]

    def failed(self) -> list[PublicationFailed]:
        return [event.failed for event in self.events() if event.HasField("failed")]

    def settle(self) -> None:
        """Waits until every watch has looked twice at all there is."""
        seen = [watch.looks + 2 for watch in self.watches]
        until(
            lambda: all(watch.looks >= enough for watch, enough in zip(self.watches, seen, strict=True)),
            "two more looks",
            deadline_s=DEADLINE_S,
        )


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.stop()


def test_it_fails_after_a_day_naming_what_is_missing_and_only_once(world: World) -> None:
    watch = world.watch()
    world.uploads.add("o", "u", 0, [1, 2], where="")
    world.uploads.close("o", "u", {"records": 5}, at=world.clock.now(), where="")
    watch.waiting("o", "faq", "u")
    world.clock.advance(23 * 3600)
    world.settle()
    assert world.failed() == []

    world.stop()  # what waits is known after a restart too
    world.watch()
    world.clock.advance(3601)
    world.settle()
    (failed,) = world.failed()
    assert (failed.publication, failed.dataset) == (upload_publication("o", "u"), "faq")
    assert "missing: the part from 2 on" in failed.error
    assert "new upload" in failed.remedy
    assert world.uploads.failed("o", "u")

    world.stop()
    world.watch()
    world.settle()
    assert len(world.failed()) == 1


def test_an_upload_that_nobody_closed_fails_too(world: World) -> None:
    watch = world.watch()
    world.uploads.add("o", "u", 0, [1, 2], where="")
    watch.waiting("o", "faq", "u")
    world.clock.advance(25 * 3600)
    world.settle()
    (failed,) = world.failed()
    assert '"complete"' in failed.error


def test_an_upload_whose_parts_keep_coming_is_alive(world: World) -> None:
    watch = world.watch()
    for part in range(30):
        world.uploads.add("o", "u", part, [part], where="")
        watch.waiting("o", "faq", "u")
        world.settle()
        world.clock.advance(2 * 3600)
    assert world.failed() == []


@pytest.mark.parametrize("known", ["by its acceptance", "by its parts"])
def test_an_upload_that_became_whole_never_fails(world: World, known: str) -> None:
    watch = world.watch()
    watch.waiting("o", "faq", "u")
    if known == "by its acceptance":
        publication = Publication(owner="o", sources=[PinnedSource(uri="upload://u")])
        value = PublicationEvent(accepted=publication).SerializeToString()
        world.broker.producer().send(Outbound(DATASETS_PUBLICATIONS.name, b"k", value))
    else:
        world.uploads.add("o", "u", 0, [1], where="")
        world.uploads.close("o", "u", {"records": 1}, at=world.clock.now(), where="")
    world.broker.producer().send(Outbound(DATASETS_PUBLICATIONS.name, b"k", GARBAGE))
    world.settle()
    world.clock.advance(25 * 3600)
    world.settle()
    assert world.failed() == []
