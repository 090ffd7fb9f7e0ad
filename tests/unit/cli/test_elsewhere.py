"""``shortstack status`` of a stack that runs elsewhere: what is away, what waits and for what, and what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from shortstack.cli.connection import Connection
from shortstack.cli.elsewhere import PartStatus, is_elsewhere, pages, status_elsewhere
from shortstack.cli.main import app
from shortstack.core.clock import SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.health import Health, HealthServer
from shortstack.core.metrics import Metrics
from shortstack.local.settings import LocalSettings
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2 as pb
from shortstack.training.v1.training_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server


@contextmanager
def service(health: Health) -> Iterator[str]:
    page = HealthServer("127.0.0.1", 0, health, Metrics("x"))
    page.start()
    try:
        yield f"http://127.0.0.1:{page.port}"
    finally:
        page.stop(5)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config(folder: Path) -> ServiceConfig:
    bootstrap = f"127.0.0.1:{closed_port()}"
    return ServiceConfig(kafka_bootstrap=bootstrap, kafka_bootstrap_timeout_s=0.5, storage_url=f"file://{folder}")


def by_part(found: list[PartStatus]) -> dict[str, PartStatus]:
    return {line.part: line for line in found}


def test_each_part_is_asked_itself(tmp_path: Path) -> None:
    well, waits = Health(60, SystemClock()), Health(60, SystemClock())
    waits.ready("formatting", False, "waiting for Kafka")
    nobody = f"http://127.0.0.1:{closed_port()}"
    with service(well) as one, service(waits) as other:
        found = by_part(status_elsewhere({"assembly": one, "formatting": other, "training": nobody}, config(tmp_path)))
    assert found["assembly"] == PartStatus("assembly", "ready", one)
    assert found["formatting"] == PartStatus("formatting", "unready", other, "formatting: waiting for Kafka")
    assert found["training"].state == "away"
    assert "kubectl describe pod -l app.kubernetes.io/component=training" in found["training"].says
    assert found["kafka"].state == "away"
    assert "cannot reach" in found["kafka"].says
    assert found["storage"].state == "ready"
    assert found["storage"].says.endswith("GiB are free")


def test_a_full_volume_and_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = by_part(status_elsewhere({}, config(tmp_path / "nowhere")))["storage"]
    assert gone.state == "away"
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr("shortstack.cli.elsewhere.shutil.disk_usage", lambda _: usage)
    full = by_part(status_elsewhere({}, config(tmp_path)))["storage"]
    assert (full.state, full.well) == ("full", False)
    assert "5 MiB are free" in full.says


class Training(TrainingServiceServicer):
    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        states = {"a" * 64: tr.RUN_STATE_WAITING, "b" * 64: tr.RUN_STATE_RUNNING}
        runs = [tr.RunSnapshot(run=run, state=state, dataset="faq") for run, state in states.items()]
        runs[0].message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        # Two jobs may share a run.
        return pb.ListRunsResponse(runs=[pb.GetRunResponse(run=run) for run in [*runs, runs[0]]])


def test_a_run_that_waits_has_the_schedulers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    add_TrainingServiceServicer_to_server(Training(), server)
    monkeypatch.setenv("SHORTSTACK_TRAINING_ADDRESS", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    try:
        found = status_elsewhere({}, config(tmp_path), Connection(LocalSettings(), "default"))
    finally:
        server.stop(None)
    (run,) = (line for line in found if line.part.startswith("run"))
    assert run.state == "waiting"
    assert run.well
    assert run.says == "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def test_the_toolbox_of_a_cluster_asks_the_clusters_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_elsewhere({"SHORTSTACK_GATEWAY_URL": "http://127.0.0.1:8080"})
    environment = {
        "SHORTSTACK_TRAINING_ADDRESS": "rel-training:50051",
        "SHORTSTACK_GATEWAY_URL": "http://rel-gateway:80",
    }
    assert pages(environment) == {"training": "http://rel-training:8081", "gateway": "http://rel-gateway:80"}
    kafka = config(tmp_path)
    for name, value in {
        "SHORTSTACK_SERVING_ADDRESS": f"127.0.0.1:{closed_port()}",
        "SHORTSTACK_KAFKA_BOOTSTRAP": kafka.kafka_bootstrap,
        "SHORTSTACK_KAFKA_BOOTSTRAP_TIMEOUT_S": "0.5",
        "SHORTSTACK_STORAGE_URL": kafka.storage_url,
        "SHORTSTACK_TRAINING_ADDRESS": f"127.0.0.1:{closed_port()}",
    }.items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(app, ["status", "--json"])
    assert said.exit_code == 69
    states = {line["part"]: line["state"] for line in json.loads(said.stdout)}
    assert states == {"kafka": "away", "storage": "ready", "serving": "away", "training": "away"}
