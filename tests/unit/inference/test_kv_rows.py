"""The cache's rows: whatever comes and goes, each request finds its own keys, and free rows are zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shortstack.inference.engine.batch import Batch
from shortstack.inference.engine.kv_rows import KeyValueRows, KeyValueShape

SHAPE = KeyValueShape(layers=2, heads=2, width=3, dtype=torch.float32, device=torch.device("cpu"))


@dataclass(eq=False)
class Guest:
    """What a batch needs of a request; ``stored`` is what its row must hold."""

    prompt: int
    read: int = 0
    ids: list[int] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)


class Rows(RuleBasedStateMachine):
    """Random schedules of arrivals, prompt pieces, decoding steps and departures."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = KeyValueRows(SHAPE)
        self.batch = Batch(self.rows)
        self.next_value = 1.0

    def write(self, guests: list[Guest], tokens: int) -> None:
        values = torch.arange(len(guests) * tokens, dtype=torch.float32) + self.next_value
        self.next_value += values.numel()
        fresh = values.view(len(guests), 1, tokens, 1).expand(-1, SHAPE.heads, -1, SHAPE.width)
        for layer in range(SHAPE.layers):
            keys, held = self.rows.update(fresh + layer, -fresh - layer, layer)
            assert torch.equal(keys, -held)
            assert keys.shape[0] == len(guests)
        for guest, written in zip(guests, values.view(len(guests), tokens).tolist(), strict=True):
            guest.stored += written

    @precondition(lambda self: self.batch.reading is None and len(self.batch) < 6)
    @rule(prompt=st.integers(1, 300))
    def arrive(self, prompt: int) -> None:
        self.batch.reading = cast("Any", Guest(prompt, ids=[0] * prompt))

    @precondition(lambda self: self.batch.reading is not None)
    @rule(piece=st.integers(1, 200))
    def read(self, piece: int) -> None:
        guest = cast("Any", self.batch.reading)
        count = min(piece, guest.prompt - guest.read)
        self.rows.aim_at_prompt(self.batch.reading_row, guest.read, count)
        self.write([guest], count)
        guest.read += count
        if guest.read == guest.prompt:
            self.batch.start_decoding()
            guest.ids.append(0)

    @precondition(lambda self: self.batch.decoding)
    @rule()
    def decode(self) -> None:
        guests = cast("Any", list(self.batch.decoding))
        _, mask = self.rows.aim_at_batch([len(guest.ids) - 1 for guest in guests])
        assert mask.sum(-1).flatten().tolist() == [len(guest.ids) for guest in guests]
        self.write(guests, 1)
        for guest in guests:
            guest.ids.append(0)

    @precondition(lambda self: len(self.batch))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.batch.remove(data.draw(st.sampled_from(self.batch.all)))

    @invariant()
    def every_row_is_its_guests(self) -> None:
        guests = cast("Any", self.batch.all)
        for layer, keys in enumerate(self.rows._keys):
            for row, buffer in enumerate(keys):
                stored = guests[row].stored if row < len(guests) else []
                expected = torch.zeros(buffer.shape[1])
                expected[: len(stored)] = torch.tensor(stored) + layer
                assert torch.equal(buffer, expected[None, :, None].expand_as(buffer))

    @invariant()
    def nobody_there_holds_no_memory(self) -> None:
        if not len(self.batch) and self.next_value > 1:
            assert self.rows._keys == []


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_row_beyond_the_buffers_grows_them_and_keeps_what_is_there() -> None:
    rows = KeyValueRows(SHAPE)
    rows.aim_at_prompt(0, 0, 2)
    fresh = torch.ones(1, SHAPE.heads, 2, SHAPE.width)
    rows.update(fresh, fresh, 0)
    rows.reserve(5, 1000)
    rows.aim_at_prompt(0, 2, 1)
    keys, _ = rows.update(2 * fresh[:, :, :1], fresh[:, :, :1], 0)
    assert keys[0, 0, :, 0].tolist() == pytest.approx([1, 1, 2])
