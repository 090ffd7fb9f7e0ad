"""The ledger tiles, once, whatever the order and number of deliveries."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.assembly.ledgers import announced, publication

from shortstack.assembly.gates import Gates
from shortstack.assembly.ledger import PublicationLedger
from shortstack.declarations.recipe import RECIPES
from shortstack.messages.v1.dataset_pb2 import BatchEntry, ReasonCount


def entry(first: int, count: int, kept: int | None = None, segment: str = "a") -> BatchEntry:
    wanted = count if kept is None else kept
    return BatchEntry(
        publication="pub-faq", attempt=1, source=0, first=first, count=count, kept=wanted,
        rejected=count - wanted, segment=segment,
    )  # fmt: skip


def ledger_of(records: int, entries: list[BatchEntry], malformed: int = 0) -> PublicationLedger:
    ledger = PublicationLedger(publication())
    ledger.announce(announced(publication(), 0, records, [f"line {n}: broken" for n in range(malformed)]).announced)
    for one in entries:
        ledger.enter(one)
    return ledger


@given(cuts=st.lists(st.integers(1, 50), min_size=1, max_size=20), seed=st.integers(0, 2**32), twice=st.integers(0, 5))
def test_any_order_and_number_of_deliveries_gives_the_same_whole_ledger(cuts: list[int], seed: int, twice: int) -> None:
    entries, first = [], 0
    for count in cuts:
        entries.append(entry(first, count))
        first += count
    chance = random.Random(seed)
    delivered = entries + chance.choices(entries, k=twice)
    chance.shuffle(delivered)

    ledger = ledger_of(first, delivered)

    assert ledger.complete()
    assert ledger.totals.kept == ledger.totals.announced == first
    assert ledger.entries() == entries


def test_the_first_entry_of_a_batch_wins() -> None:
    ledger = ledger_of(10, [entry(0, 10, segment="first"), entry(0, 10, kept=3, segment="late")])

    assert [one.segment for one in ledger.entries()] == ["first"]
    assert ledger.totals.kept == 10


def test_what_is_missing_is_named() -> None:
    ledger = ledger_of(100, [entry(10, 20), entry(50, 10)])

    assert not ledger.complete()
    assert [str(gap) for gap in ledger.gaps()] == [
        "source 0 records 0-9",
        "source 0 records 30-49",
        "source 0 records 60-99",
    ]


def test_without_a_usable_record_it_fails_and_nothing_lets_it_through() -> None:
    ruling = Gates().rule(ledger_of(5, [entry(0, 5, kept=0)]), accepted=True)

    assert ruling.verdict == "failed"
    assert ruling.code == "no_usable_record"


def test_a_mostly_rejected_dataset_is_held_until_it_is_accepted() -> None:
    ledger = ledger_of(100, [entry(0, 100, kept=5)])

    held = Gates().rule(ledger, accepted=False)
    assert held.verdict == "held"
    assert "95 of 100" in held.message
    assert "shortstack datasets accept faq" in held.remedy
    assert Gates().rule(ledger, accepted=True).verdict == "ready"


def test_malformed_items_count_as_rejected() -> None:
    assert Gates().rule(ledger_of(5, [entry(0, 5)], malformed=95), accepted=False).verdict == "held"


@pytest.mark.parametrize("name", ["verbatim", "mine"])
def test_a_strict_recipe_fails_on_the_first_malformed_line_and_names_it(name: str) -> None:
    gates = Gates.of({**RECIPES["verbatim"].model_dump(mode="json"), "name": name})

    ruling = gates.rule(ledger_of(5, [entry(0, 5)], malformed=1), accepted=True)

    assert (ruling.verdict, ruling.code) == ("failed", "invalid_training_file")
    assert ruling.message == "line 0: broken"


def test_a_recipe_with_steps_may_lose_records_whatever_it_is_called() -> None:
    gates = Gates.of({**RECIPES["default"].model_dump(mode="json"), "name": "verbatim"})
    assert gates.rule(ledger_of(5, [entry(0, 5, kept=4)]), accepted=False).verdict == "ready"


def test_each_failed_record_is_counted_under_one_reason() -> None:
    """A batch that failed whole has a reason of its own; its error, which names its place, is no second one."""
    poison = [
        BatchEntry(
            publication="pub-faq",
            attempt=1,
            first=first,
            count=5,
            failed=5,
            error=f"Poison: records.raw[0]@{first}: broken",
            reasons=[ReasonCount(step="batch", reason="poison", records=5)],
        )
        for first in range(0, 50, 5)
    ]
    ledger = ledger_of(60, [*poison, entry(50, 10)])

    reasons = ledger.totals.reason_counts()
    assert [(r.step, r.reason, r.records) for r in reasons] == [("batch", "poison", 50)]
    assert "records.raw[0]@0: broken" in Gates().rule(ledger, accepted=False).message
