"""The dashboard's queries and the scrape configurations, put to a real Prometheus; no stack is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.polling import until
from tests.prometheus import Prometheus, running

from shortstack.core.clock import SystemClock
from shortstack.core.health import Health, HealthServer
from shortstack.core.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
BOARD = json.loads((ROOT / "helm" / "shortstack" / "files" / "overview.json").read_text(encoding="utf-8"))
QUERIES = [
    (
        panel["title"],
        target["expr"].replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$job", ".*"),
    )
    for panel in BOARD["panels"]
    for target in panel.get("targets", ())
]
SERVICES = ("ingestion", "formatting", "assembly", "training", "serving", "gateway")
MAY_BE_EMPTY = {
    # Of a run, a chat, a message or a state that has not been yet.
    "First token, 95 %",
    "Runs going on",
    "Models served",
    "Training loss",
    "Trained tokens",
    "Progress of runs",
    "Runs by state",
    "Jobs by state",
    "Datasets by state",
    "Models by state",
    "Routes by state",
    "Time to handle a message",
    "Server: queue and prefill",
    "Server: time per token",
    "Requests by route",
    "Requests by status",
    "Time to the first token",
    "Time to the whole answer",
    "Tokens",
    "Tokens by model",
}


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus over services that have just started: nothing was ever counted."""
    with ExitStack() as stack:
        jobs = []
        for service in SERVICES:
            page = HealthServer("127.0.0.1", 0, Health(60, SystemClock()), Metrics(service))
            page.start()
            stack.callback(page.stop, 5)
            jobs.append({"job_name": service, "static_configs": [{"targets": [f"127.0.0.1:{page.port}"]}]})
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
        made = stack.enter_context(running(config, tmp_path_factory.mktemp("prometheus")))
        twice = "count_over_time(process_start_time_seconds[1m]) > 1"
        until(lambda: len(made.query(twice)) == len(SERVICES), "two samples of each service")
        yield made


@pytest.mark.parametrize(("title", "expr"), QUERIES, ids=[f"{n}-{title}" for n, (title, _) in enumerate(QUERIES)])
def test_a_query_is_understood_and_0_where_nothing_went_wrong(idle: Prometheus, title: str, expr: str) -> None:
    found = idle.numbers(expr)
    assert found or title in MAY_BE_EMPTY


def test_what_may_be_empty_are_panels_that_are_there() -> None:
    assert {title for title, _ in QUERIES} >= MAY_BE_EMPTY


def test_a_service_that_is_gone_is_counted(tmp_path: Path) -> None:
    health = Health(60, SystemClock())
    here, gone = (HealthServer("127.0.0.1", 0, health, Metrics(name)) for name in ("assembly", "training"))
    expr = next(expr for title, expr in QUERIES if title == "Down or not ready")
    here.start()
    gone.start()
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{page.port}"]}]}
        for name, page in (("assembly", here), ("training", gone))
    ]
    try:
        with running({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}, tmp_path) as prometheus:
            until(lambda: len(prometheus.query("up == 1")) == 2, "both answer")
            assert prometheus.numbers(expr) == [0]
            gone.stop(5)
            until(lambda: prometheus.numbers(expr) == [1], "one is gone")
            health.ready("ledger", False, "waiting for Kafka")
            until(lambda: prometheus.numbers(expr) == [2], "and the other is not ready")
    finally:
        here.stop(5)
        gone.stop(5)


def pod(
    component: str, ip: str, *, name: str = "shortstack", phase: str = "Running", **ports: int
) -> list[dict[str, Any]]:
    """A pod as Prometheus' discovery describes it: a target for each port that a container declares."""
    labels = {
        "__meta_kubernetes_namespace": "team",
        "__meta_kubernetes_pod_name": f"rel-{component}-0",
        "__meta_kubernetes_pod_phase": phase,
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
        "__meta_kubernetes_pod_label_app_kubernetes_io_component": component,
    }
    return [
        {"targets": [f"{ip}:{port}"], "labels": {**labels, "__meta_kubernetes_pod_container_port_name": called}}
        for called, port in ports.items()
    ]


def test_pods_become_jobs_by_component(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "kubernetes.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    # Debian's build has no discovery of Kubernetes, so what that would find is told instead.
    del job["kubernetes_sd_configs"]
    job["static_configs"] = [
        *pod("ingestion", "127.0.0.2", http=8081, grpc=50051),
        *pod("gateway", "127.0.0.3", http=8080),
        *pod("server", "127.0.0.4", http=8080),
        *pod("kafka", "127.0.0.5", clients=9092),
        *pod("formatting", "127.0.0.6", phase="Failed", http=8081),
        *pod("ingestion", "127.0.0.7", name="another", http=8081),
    ]
    with running(config, tmp_path) as prometheus:
        until(prometheus.targets, "targets")
        found = {(t["labels"]["job"], t["scrapeUrl"]): t["labels"] for t in prometheus.targets()}
    assert set(found) == {
        ("ingestion", "http://127.0.0.2:8081/metrics"),
        ("gateway", "http://127.0.0.3:8080/metrics"),
        ("server", "http://127.0.0.4:8080/metrics"),
    }
    for (component, _), labels in found.items():
        assert (labels["namespace"], labels["pod"]) == ("team", f"rel-{component}-0")
    expr = next(expr for title, expr in QUERIES if title == "Answers")
    ours = re.search(r'job=~"(\([^"]+)"', expr)
    assert ours is not None
    assert all(re.fullmatch(ours[1], component) for component, _ in found)
