"""One line per event, with service and trace; metrics in one list that the documents follow."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import orjson
import pytest

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal
from shortstack.core.metrics import Metrics, metrics_table
from shortstack.core.metrics_doc import metrics_document
from shortstack.core.telemetry import Telemetry
from shortstack.core.tracing import current_trace_id, extract, inject, span


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_tells_service_level_time_and_fields() -> None:
    stream = io.StringIO()
    with Telemetry.start("ingestion", ServiceConfig(), stream) as telemetry:
        telemetry.log.info("pinned", dataset="faq", bytes=3)
        telemetry.log.debug("not at this level")
    (line,) = lines(stream)
    assert {key: line[key] for key in ("service", "level", "event", "dataset", "bytes")} == {
        "service": "ingestion",
        "level": "info",
        "event": "pinned",
        "dataset": "faq",
        "bytes": 3,
    }
    assert str(line["timestamp"]).endswith("Z")


def test_libraries_log_on_the_same_way_and_only_while_it_runs() -> None:
    stream = io.StringIO()
    with Telemetry.start("x", ServiceConfig(), stream):
        logging.getLogger("grpc.channel").info("chatter")
        logging.getLogger("grpc.channel").warning("broker %s is away", "b1")
    logging.getLogger("grpc.channel").warning("after the end")
    assert [line["event"] for line in lines(stream)] == ["broker b1 is away"]


def test_a_probe_every_second_is_no_line_every_second() -> None:
    stream = io.StringIO()
    with Telemetry.start("serving", ServiceConfig(), stream):
        logging.getLogger("httpx").info('HTTP Request: GET /info "HTTP/1.1 200 OK"')
        logging.getLogger("httpx").warning("heard")
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_lines_inside_a_span_carry_its_trace() -> None:
    stream = io.StringIO()
    with Telemetry.start("x", ServiceConfig(), stream) as telemetry:
        with span() as trace_id:
            telemetry.log.info("inside")
        telemetry.log.info("outside")
    inside, outside = lines(stream)
    assert inside["trace_id"] == trace_id
    assert "trace_id" not in outside


@pytest.mark.parametrize(("field", "remedy"), [("log_level", "INFO"), ("log_format", "json")])
def test_an_unknown_setting_names_the_nearest(field: str, remedy: str) -> None:
    config = ServiceConfig.model_validate({field: remedy + "x"})
    with pytest.raises(Fatal, match=f'Did you mean "{remedy}"'), Telemetry.start("x", config):
        pass


def test_a_trace_goes_on_where_the_header_says() -> None:
    with span() as trace_id:
        sent = inject()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", sent)
    with span(sent) as continued:
        assert continued == trace_id == current_trace_id()
        assert inject() != sent, "the same trace, another span"
    assert current_trace_id() is None


@pytest.mark.parametrize("header", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-xy-z-01"])
def test_a_malformed_header_begins_a_new_trace(header: str | None) -> None:
    assert extract(header) is None
    with span(header) as trace_id:
        assert re.fullmatch(r"[0-9a-f]{32}", trace_id)


def test_every_metric_is_declared_once_and_follows_the_naming_rules() -> None:
    names = [metric.name for metric in metrics_table()]
    assert len(set(names)) == len(names)
    for metric in metrics_table():
        assert re.fullmatch(r"shortstack_[a-z_]+[a-z]", metric.name)
        assert metric.meaning[0].isupper()
        assert not metric.meaning.endswith(".")


def test_a_service_can_count_what_it_does_not_show() -> None:
    metrics = Metrics("gateway")
    metrics.train_steps.inc()
    assert metrics.registry.get_sample_value("shortstack_train_steps_total") is None
    assert Metrics("training").registry.get_sample_value("shortstack_train_steps_total") == 0


def test_the_document_is_written_from_the_list(repository: Path) -> None:
    written = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_document(), "run `python -m shortstack.core.metrics_doc > docs/metrics.md`"
