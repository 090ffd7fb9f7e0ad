"""What kafka-python set aside for a paused partition comes back, also when nothing else arrives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.structs import TopicPartition

from shortstack.streams.kafka_fetching import mend_fetching

RESUMED, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class Records:
    """Some records of a partition, in the shape that the fetcher keeps them in."""

    def __init__(self, partition: TopicPartition, left: list[str]) -> None:
        self.topic_partition, self.left, self.next_fetch_offset = partition, left, 0

    def __bool__(self) -> bool:
        return bool(self.left)


class Held(Fetcher):
    """A fetcher without a client: one partition's records are in line and given out, another's are set aside."""

    def __init__(self) -> None:
        self._next_in_line_exception_metadata = None
        self._completed_fetches = []
        self._paused_completed_fetches = {}
        self._next_partition_records = Records(OTHER, [])
        self._paused_partition_records = {RESUMED: Records(RESUMED, ["first", "second"])}
        self._subscriptions = SimpleNamespace(is_paused=lambda _: False)

    def _append(self, drained: Any, part: Any, most: int, _update: bool) -> int:
        given, part.left = part.left[:most], part.left[most:]
        drained[part.topic_partition].extend(given)
        return len(given)


def test_a_resumed_partition_gives_what_was_set_aside() -> None:
    mend_fetching()
    fetcher = Held()
    assert fetcher.fetched_records(1)[0] == {RESUMED: ["first"]}
    assert fetcher.fetched_records(1)[0] == {RESUMED: ["second"]}
    assert fetcher.fetched_records(1)[0] == {}
