"""The page that Prometheus scrapes: TGI's names, without suffixes."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from shortstack.inference.metrics import Metrics

NOT_OURS = {"tgi_batch_concat_duration"}
"""Joining a batch is a row number here; there is nothing to time."""


def filled() -> Metrics:
    metrics = Metrics(1024, 2048)
    metrics.request_count.add()
    metrics.request_failure.add(err="validation")
    for histogram in metrics.all():
        if histogram.kind == "histogram":
            histogram.observe(0.5)  # type: ignore[attr-defined]
    metrics.skipped_tokens.observe_zeros(3)
    metrics.queue_size.set(2)
    return metrics


def test_the_page_is_empty_until_the_first_request() -> None:
    metrics = Metrics(1024, 2048)
    metrics.queue_size.set(0)
    assert metrics.page() == ""


def test_counters_have_no_total_suffix() -> None:
    page = filled().page()
    assert "tgi_request_count 1\n" in page
    assert 'tgi_request_failure{err="validation"} 1\n' in page
    assert "_total" not in re.sub(r"max_total|total_tokens", "", page)


def test_prometheus_reads_the_page() -> None:
    families = {family.name: family for family in text_string_to_metric_families(filled().page())}
    buckets = [s for s in families["tgi_request_duration"].samples if s.name.endswith("_bucket")]
    assert len(buckets) == 36
    assert buckets[0].labels["le"] == "0.00015000000000000001"
    assert [bucket.value for bucket in buckets] == sorted(bucket.value for bucket in buckets)
    assert families["tgi_request_skipped_tokens"].type == "summary"


def test_the_buckets_and_names_are_the_recorded_ones(shared_dir: Path) -> None:
    recorded = (shared_dir / "spec" / "tgi-wire" / "19-metrics.txt").read_text("utf-8")
    page = filled().page()
    bounds = re.compile(r'tgi_request_duration_bucket\{le="([^"]+)"\}')
    assert bounds.findall(page) == bounds.findall(recorded)
    theirs = set(re.findall(r"^# TYPE (\w+) (\w+)$", recorded, re.MULTILINE))
    metrics = Metrics(1024, 2048)
    ours = {(metric.name, metric.kind) for metric in metrics.all()}
    assert {pair for pair in theirs if pair[0] not in NOT_OURS} == ours
