"""The assembling child: what its end means, and that it does not outlive its service."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.polling import until
from tests.unit.assembly.ledgers import publication, segment

from shortstack.assembly.child import ChildAssembler
from shortstack.assembly.plan import AssemblyPlan, Segment
from shortstack.core.errors import Fatal, Poison, ShortstackError
from shortstack.storage.blobs import BlobStore

DEADLINE_S = 60


def plan_in(folder: Path) -> tuple[AssemblyPlan, Path]:
    url = f"file://{folder}"
    entry = segment(BlobStore.open(url), publication(), 0, 0, ["a"])
    plan = AssemblyPlan(url, "publications/default/pub-faq", [Segment(entry.segment, entry.sha256, 0)])
    return plan, folder / entry.segment


def test_a_version_and_two_ways_to_fail(tmp_path: Path) -> None:
    plan, held = plan_in(tmp_path)
    assembler = ChildAssembler(DEADLINE_S)
    assert assembler(plan).train == 1

    held.write_bytes(b"other bytes")
    with pytest.raises(Fatal, match="sha256"):
        assembler(plan)
    held.unlink()
    with pytest.raises(Poison, match="there is no object"):
        assembler(plan)


def test_closing_ends_a_child_at_once(tmp_path: Path) -> None:
    plan, _ = plan_in(tmp_path)
    assembler = ChildAssembler(DEADLINE_S)
    errors: list[ShortstackError] = []

    def call() -> None:
        try:
            while True:
                assembler(plan)
        except ShortstackError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: assembler.running, "a child runs", deadline_s=DEADLINE_S)
    assembler.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert assembler.running == 0
