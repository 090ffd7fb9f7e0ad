"""Published datasets of other people go from a message to a ready dataset with a tiled ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.stack import Stack
from tests.e2e.test_main_job import assert_tiled

from shortstack.messages.v1 import dataset_pb2 as ds

FILES = {
    "raschka": "alpaca/raschka_instruction-data.json",
    "identity": "sharegpt/dummy_conversation.json",
    "gsm8k": "prompt_completion/gsm8k_train.jsonl",
    "tinker": "messages/tinker_conversations.jsonl",
}


@pytest.fixture(scope="module")
def published(stack: Stack, shared_dir: Path) -> Stack:
    """All four, published together."""
    for name, file in FILES.items():
        stack.publish({"dataset": name, "source": {"uri": file}}, name)
    return stack


@pytest.fixture(scope="module")
def described(shared_dir: Path) -> dict[str, dict[str, str]]:
    """The table of the data's README: file → column → cell."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (shared_dir / "data" / "README.md").read_text().splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    return {row[0]: dict(zip(head, row, strict=False)) for row in body}


@pytest.mark.parametrize("name", FILES)
def test_a_published_dataset_becomes_ready_with_a_tiled_ledger(
    published: Stack, described: dict[str, dict[str, str]], name: str
) -> None:
    snapshot = published.ended_dataset(name)
    assert snapshot.state == ds.DATASET_STATE_READY, snapshot
    expected = {column: int(cell) for column, cell in described[FILES[name]].items() if cell.isdecimal()}
    counts = snapshot.counts
    assert counts.items == expected["records"]
    assert counts.duplicates == expected["exact dup"]
    assert (counts.malformed, counts.failed) == (0, 0)
    rejected = {f"{reason.step}": reason.records for reason in snapshot.reasons}
    assert rejected.get("empty", 0) == expected["empty"]
    # What counts as a refusal is the filter's to say; it finds none where there is none.
    assert rejected.get("refusal", 0) <= expected["refusals"]
    assert counts.records == counts.kept + counts.rejected + counts.failed
    assert counts.kept == counts.chosen + counts.duplicates
    assert counts.written == counts.chosen == counts.train + counts.validation
    assert sum(reason.records for reason in snapshot.reasons) == counts.rejected
    assert_tiled(published, snapshot.publication.publication)
