"""What the benchmarks print has one shape, so that whoever compares releases can read every line."""

from __future__ import annotations

from pathlib import Path

import orjson
from benchmarks import refusal_quality

KEYS = {"name", "value", "unit", "baseline", "ratio"}


def test_every_figure_of_the_refusals_has_a_baseline_and_a_ratio(tmp_path: Path) -> None:
    for name in ("csv", "dialogue"):
        (tmp_path / name).mkdir()
    answers = ["I can't help with that.,1", "As an AI I will not.,1", "Paris is the capital.,0"]
    (tmp_path / "csv" / "pyrit_refusal.csv").write_text("\n".join(["assistant_response,human_score", *answers]))
    (tmp_path / "dialogue" / "chitchat_A.json").write_bytes(orjson.dumps([{"text": "hi"}, {"text": "sorry, no milk"}]))
    lines = {line["name"]: line for line in refusal_quality.lines(tmp_path)}
    assert all(set(line) == KEYS for line in lines.values())
    assert lines["refusal_labelled"]["value"] == 2
    assert lines["refusal_opening_recall"]["baseline"] == lines["refusal_ihop_recall"]["value"]
    assert lines["refusal_ihop_recall"]["ratio"] == 1
