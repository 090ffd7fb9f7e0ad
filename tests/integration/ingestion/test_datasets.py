"""Published datasets of other people go from the topic to a tiled ledger; a small one is not held up by a big one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from shortstack.records.schema import SEGMENT_SCHEMA, read_table


def ledger(stack: Any, publication: str) -> dict[int, Any]:
    """First record → entry."""
    return {entry.first: entry for entry in stack.entries() if entry.publication == publication}


def tiled(stack: Any, publication: str) -> bool:
    """Whether the entries of a publication of one source tile what was announced."""
    announced = [source for source in stack.announced() if source.publication == publication]
    entries = ledger(stack, publication)
    at = 0
    while at in entries:
        at += entries[at].count
    return bool(announced) and at == announced[0].records and sum(e.count for e in entries.values()) == at


@pytest.mark.parametrize(
    ("path", "family", "records", "more"),
    [
        ("alpaca/raschka_instruction-data.json", "alpaca", 1100, {}),
        ("alpaca/gpteacher_codegen-instruct.json", "alpaca", 4535, {}),
        ("sharegpt/dummy_conversation.json", "sharegpt", 500, {}),
        ("sharegpt/glaive_toolcall_en.json", "sharegpt", 300, {}),
        ("prompt_completion/gsm8k_train.jsonl", "prompt_completion", 7473, {}),
        ("messages/tinker_conversations.jsonl", "messages", 128, {}),
        ("messages/instructlab_sdg_A.jsonl", "messages", 6239, {}),
        (
            "csv/pyrit_refusal.csv",
            "prompt_completion",
            105,
            {"columns": {"objective": "prompt", "assistant_response": "completion"}},
        ),
        (
            "prompt_completion/flan_creak_train.tsv",
            "alpaca",
            6915,
            {"columns": {"0": "instruction", "1": "output"}},
        ),
        ("parquet/camel_gt_dataset.parquet", "prompt_completion", 27, {}),
    ],
)
def test_a_real_dataset_is_accounted_for_to_the_last_record(
    stack: Any, shared_dir: Path, path: str, family: str, records: int, more: dict[str, Any]
) -> None:
    source = shared_dir / "data" / path
    stack.source(source.name, source.read_bytes())
    stack.start_formatting()
    stack.start_ingestion()
    stack.publish({"dataset": "real", "source": source.name, **more})
    stack.until(lambda: bool(stack.accepted()) and tiled(stack, stack.accepted()[0].publication))
    (publication,) = stack.accepted()
    (announced,) = stack.announced()
    assert publication.sources[0].family == family
    assert (announced.items, announced.used, announced.rejected) == (records, records, 0)
    entries = ledger(stack, publication.publication).values()
    verdicts: Counter[str] = Counter()
    for entry in entries:
        segment = read_table(stack.blobs.get(entry.segment), SEGMENT_SCHEMA)
        assert len(segment) == entry.count
        verdicts.update(segment.column("verdict").to_pylist())
    assert verdicts["failed"] == 0
    assert verdicts["kept"] + verdicts["rejected"] == records
    assert verdicts["rejected"] == sum(entry.rejected for entry in entries)


def test_a_small_dataset_is_done_while_a_big_one_waits_for_formatting(stack: Any) -> None:
    """Formatting is away, so the big one fills the backlog and waits; the small one, published after, is compiled."""
    line = orjson.dumps({"prompt": "q", "completion": "x" * 60_000}) + b"\n"
    stack.source("big.jsonl", line * 800)
    parts = stack.start_ingestion()
    stack.publish({"dataset": "big", "source": "big.jsonl"})
    stack.until(lambda: parts.backlog.under_way == stack.config.ingest_backlog)
    stack.publish({"dataset": "small", "records": [{"prompt": "q", "completion": "a"}]})
    stack.until(lambda: {p.dataset for p in stack.accepted()} == {"big", "small"})
    assert len(stack.broker.messages("records.raw")) == stack.config.ingest_backlog
    assert not stack.announced()
    stack.start_formatting()
    small = next(p.publication for p in stack.accepted() if p.dataset == "small")
    big = next(p.publication for p in stack.accepted() if p.dataset == "big")
    stack.until(lambda: tiled(stack, small))
    stack.until(lambda: tiled(stack, big))


def test_what_is_under_way_at_a_stop_is_done_again_by_the_next_process(stack: Any) -> None:
    line = orjson.dumps({"prompt": "q", "completion": "x" * 60_000}) + b"\n"
    stack.source("big.jsonl", line * 800)
    parts = stack.start_ingestion()
    stack.publish({"dataset": "big", "source": "big.jsonl"})
    stack.until(lambda: parts.backlog.under_way == stack.config.ingest_backlog)
    stack.stop()
    assert not stack.announced()
    stack.start_formatting()
    stack.start_ingestion()
    stack.until(lambda: bool(stack.announced()) and tiled(stack, stack.accepted()[0].publication))
    assert len({p.publication for p in stack.accepted()}) == 1
