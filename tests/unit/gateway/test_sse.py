"""Server-sent events, however the network cut them."""

from __future__ import annotations

import itertools
from pathlib import Path

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from shortstack.gateway.chat.sse import SseParser

EVENTS = st.lists(st.binary(min_size=1, max_size=20).map(lambda one: orjson.dumps({"x": one.hex()})), max_size=6)


@given(events=EVENTS, cuts=st.lists(st.integers(0, 400), max_size=10), space=st.booleans(), comments=st.booleans())
def test_events_come_out_whole_for_any_cut(events: list[bytes], cuts: list[int], space: bool, comments: bool) -> None:
    frames = [b"data:" + (b" " if space else b"") + event + b"\n\n" for event in events]
    wire = (b":\n\n" if comments else b"").join([b"", *frames])
    parser = SseParser()
    found: list[bytes] = []
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    for start, end in itertools.pairwise(places):
        found += parser.feed(wire[start:end])
    assert found == events
    assert parser.end() == []


def test_an_event_without_its_blank_line_comes_at_the_end() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"a":1}\n\ndata: {"b"') == [b'{"a":1}']
    assert parser.feed(b":2}") == []
    assert parser.end() == [b'{"b":2}']


def test_event_lines_and_ids_are_skipped() -> None:
    assert SseParser().feed(b"event: x\nid: 1\ndata: {}\n\n:\n\n") == [b"{}"]


@pytest.mark.parametrize("name", ["04-generate-stream.txt", "14-keep-alive.txt", "17-more.txt"])
def test_recorded_streams_of_a_real_server_are_read(shared_dir: Path, name: str) -> None:
    recorded = (shared_dir / "spec" / "tgi-wire" / name).read_bytes()
    exchanges = recorded.split(b"POST /generate_stream ")[1:]
    streams = [one.split(b"\n<<< chunk framing")[0] for one in exchanges if b"text/event-stream" in one]
    assert streams
    for stream in streams:
        wire = stream.split(b"text/event-stream", 1)[1].split(b"\n\n", 1)[1] + b"\n"
        events = [orjson.loads(event) for event in SseParser().feed(wire)]
        assert events
        assert "error" in events[0] or events[-1]["generated_text"] is not None
