"""Alive is not ready: waiting for Kafka is alive, being stuck is not."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse

import orjson
import pytest

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal
from shortstack.core.health import Health, HealthServer
from shortstack.core.metrics import Metrics

Get = Callable[[str], tuple[int, bytes]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(60, clock)


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    metrics = Metrics("ingestion")
    metrics.batches_sent.inc(3)
    made = HealthServer("127.0.0.1", 0, health, metrics)
    made.start()
    yield made
    made.stop(5)


@pytest.fixture
def get(server: HealthServer) -> Get:
    def ask(path: str) -> tuple[int, bytes]:
        answer: HTTPResponse | urllib.error.HTTPError
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status or 0, answer.read()

    return ask


def test_a_process_that_gets_on_is_alive(get: Get, health: Health, clock: FakeClock) -> None:
    clock.advance(59)
    assert get("/livez")[0] == 200
    clock.advance(2)
    status, body = get("/livez")
    assert status == 503
    assert orjson.loads(body) == {"alive": False, "seconds_since_progress": 61}
    health.progress()
    assert get("/livez")[0] == 200


def test_readiness_names_what_it_waits_for(get: Get, health: Health) -> None:
    assert get("/readyz")[0] == 200
    health.ready("formatting", False, "waiting for Kafka")
    status, body = get("/readyz")
    assert status == 503
    assert orjson.loads(body) == {"ready": False, "waiting": {"formatting": "waiting for Kafka"}}
    assert get("/livez")[0] == 200
    health.ready("formatting", True)
    assert get("/readyz")[0] == 200


def test_metrics_are_those_of_the_service(get: Get) -> None:
    status, body = get("/metrics")
    assert status == 200
    assert b"shortstack_batches_sent_total 3.0" in body
    assert b"shortstack_train_loss" not in body


def test_what_the_probes_say_is_measured_too(get: Get, health: Health, clock: FakeClock) -> None:
    clock.advance(7)
    health.ready("formatting", False, "waiting for Kafka")
    page = get("/metrics")[1]
    assert b"shortstack_ready 0.0" in page
    assert b"shortstack_last_progress_seconds 7.0" in page
    health.ready("formatting", True)
    health.progress()
    page = get("/metrics")[1]
    assert b"shortstack_ready 1.0" in page
    assert b"shortstack_last_progress_seconds 0.0" in page


def test_other_paths_are_not_found(get: Get) -> None:
    assert get("/")[0] == 404


def test_a_taken_port_is_a_clear_end(server: HealthServer, health: Health) -> None:
    second = HealthServer("127.0.0.1", server.port, health, Metrics("x"))
    with pytest.raises(Fatal, match=f"cannot listen on 127.0.0.1:{server.port}.*SHORTSTACK_HTTP_PORT"):
        second.start()
    second.stop(1)
