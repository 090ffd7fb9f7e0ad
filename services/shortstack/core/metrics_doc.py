"""Writes ``docs/metrics.md`` from the list of metrics: ``python -m shortstack.core.metrics_doc > docs/metrics.md``."""

from __future__ import annotations

import sys
from typing import Final

from shortstack.core.metrics import metrics_table

__all__ = ["metrics_document"]

_HEAD: Final = """# Metrics

Every service answers `/metrics` on its HTTP port in Prometheus' text format, with the metrics of `all` and its own,
beside those of the process and the Python platform. Counters end in `_total`; histograms have `_bucket`, `_sum` and
`_count`. Model servers speak TGI's metrics, whichever of the two they are: [inference.md](inference.md), "Metrics".

How to scrape them, and the dashboard over them: [operate.md](operate.md), "Watching it". Labels stay few: `run` and
`dataset` name the eight newest runs alone, `model` the models that answer.

This page is written from the one list in `services/shortstack/core/metrics.py`:

    python -m shortstack.core.metrics_doc > docs/metrics.md

| metric | kind | service | labels | meaning |
|---|---|---|---|---|
"""


def metrics_document() -> str:
    """The whole page."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {metric.service} | {', '.join(metric.labels)} | {metric.meaning} |"
        for metric in metrics_table()
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(metrics_document())
