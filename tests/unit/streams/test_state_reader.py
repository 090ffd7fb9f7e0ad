"""What a reader of state was given is not lost over an outage."""

from __future__ import annotations

import pytest

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Transient
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.streams.memory import MemoryBroker, MemoryReader
from shortstack.streams.state import StateReader, StateWriter
from shortstack.streams.topics import DATASETS_STATE


def test_what_was_read_before_the_broker_went_away_is_there_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker(SystemClock())
    writer = StateWriter(broker, DATASETS_STATE, DatasetSnapshot, SystemClock())
    writer.open()
    writer.put("one/1", DatasetSnapshot(message="here"))
    writer.close()
    real, asked = MemoryReader.caught_up, [0]

    def caught_up(reader: MemoryReader) -> bool:
        asked[0] += 1
        if asked[0] == 1:
            raise Transient("the broker is away")
        return real(reader)

    monkeypatch.setattr(MemoryReader, "caught_up", caught_up)
    reader = StateReader(broker, DATASETS_STATE, DatasetSnapshot)
    reader.start()
    try:
        reader.wait_caught_up(20)
        assert asked[0] > 1
        assert reader.items() == {"one/1": DatasetSnapshot(message="here")}
    finally:
        reader.stop(10)
