"""What commands print and how they end, without a stack around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from shortstack.cli.main import app
from shortstack.ingestion.v1 import ingestion_pb2 as ing
from shortstack.ingestion.v1 import ingestion_pb2_grpc
from shortstack.messages.v1 import dataset_pb2 as ds


class Gateway(ThreadingHTTPServer):
    """Gives one answer to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, b"{}"

    @property
    def environment(self) -> dict[str, str]:
        """What points a command at it."""
        return {"SHORTSTACK_GATEWAY_URL": f"http://127.0.0.1:{self.server_port}", "SHORTSTACK_API_KEY": "sk-ss-x"}


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        assert isinstance(self.server, Gateway)
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


KEY = {
    "object": "api_key",
    "id": "key-1",
    "prefix": "sk-ss-0123456789ab",
    "name": "ci",
    "owner": "default",
    "scopes": ["chat", "datasets"],
    "created_at": 1_700_000_000,
    "revoked_at": None,
}


def test_keys_are_listed_with_times_that_people_read(gateway: Gateway) -> None:
    gateway.body = json.dumps({"object": "list", "data": [KEY], "has_more": False}).encode()
    table = CliRunner().invoke(app, ["keys", "list"], env=gateway.environment)
    assert "2023-11-14T22:13:20+00:00" in table.stdout
    assert "None" not in table.stdout
    [row] = json.loads(CliRunner().invoke(app, ["keys", "list", "--json"], env=gateway.environment).stdout)
    assert (row["created_at"], row["revoked_at"], row["scopes"]) == (
        "2023-11-14T22:13:20+00:00",
        "",
        ["chat", "datasets"],
    )


def shortstack(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHORTSTACK_")} | environment
    command = [sys.executable, "-m", "shortstack.cli.main", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("status", "exit_code"), [(400, 65), (401, 77), (403, 77), (404, 66), (409, 73), (429, 75), (502, 75), (503, 75)]
)
def test_the_gateways_refusal_decides_the_exit_code(status: int, exit_code: int) -> None:
    from shortstack.cli.connection import gateway_error
    from shortstack.core.errors import wire_code

    error = gateway_error(status, {"error": {"message": "said so", "code": None}})
    assert wire_code(error).exit_code == exit_code
    assert "said so" in str(error)


@pytest.mark.parametrize(
    ("arguments", "said", "command"),
    [
        (["keys", "revoke", "laptop"], 'there is no key "laptop". GET /v1/admin/keys lists them.', "keys list"),
        (
            ["chat", "--model", "x", "-m", "y"],
            "The model `x` does not exist. GET /v1/models lists them.",
            "models list",
        ),
    ],
)
def test_a_refusal_names_the_command_that_helps_and_not_a_request(
    gateway: Gateway, arguments: list[str], said: str, command: str
) -> None:
    gateway.status, gateway.body = 404, json.dumps({"error": {"message": said}}).encode()
    refused = str(CliRunner().invoke(app, arguments, env=gateway.environment).exception)
    assert f"shortstack {command}" in refused
    assert "/v1/" not in refused


def test_a_new_key_comes_with_the_id_that_ends_it(gateway: Gateway) -> None:
    gateway.body = json.dumps({**KEY, "key": "sk-ss-whole"}).encode()
    made = CliRunner().invoke(app, ["keys", "create", "ci"], env=gateway.environment)
    assert made.stdout.split() == ["sk-ss-whole"]
    assert "shortstack keys revoke key-1" in made.stderr


def test_an_answer_that_is_not_the_gateways_is_one_line(gateway: Gateway) -> None:
    gateway.status, gateway.body = 502, b"<html>proxy</html>"
    said = shortstack("keys", "list", **gateway.environment)
    assert said.returncode == 75
    assert "<html>proxy</html>" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "train.yaml").write_text("a: [")
    arguments = ("datasets", "publish", str(tmp_path / "data.jsonl"), "--name", "n", "--train")
    for train in (str(tmp_path / "train.yaml"), "lora_r=["):
        said = shortstack(*arguments, train, SHORTSTACK_VAR=str(tmp_path / "var"))
        assert said.returncode == 65
        assert "--train" in said.stderr
        assert "Traceback" not in said.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "var").write_text("in the way")
    said = shortstack(
        "datasets", "publish", str(tmp_path / "data.jsonl"), "--name", "n", SHORTSTACK_VAR=str(tmp_path / "var")
    )
    assert said.returncode == 70
    assert str(tmp_path / "var") in said.stderr
    assert "Traceback" not in said.stderr


class Ingestion(ingestion_pb2_grpc.IngestionServiceServicer):
    """Holds snapshots; a publish adds what `then` says, and a watch tells all of them and stays open."""

    def __init__(self) -> None:
        self.snapshots: list[ds.DatasetSnapshot] = []
        self.then: list[ds.DatasetSnapshot] = []
        self._asleep = Event()

    def ListDatasets(self, request: ing.ListDatasetsRequest, context: Any) -> ing.ListDatasetsResponse:
        newest = {snapshot.publication.dataset: snapshot for snapshot in self.snapshots}
        return ing.ListDatasetsResponse(datasets=self.snapshots if request.dataset else newest.values())

    def PublishDataset(self, request: ing.PublishDatasetRequest, context: Any) -> ing.PublishDatasetResponse:
        self.snapshots += self.then
        return ing.PublishDatasetResponse(topic="datasets.ingest")

    def WatchDataset(self, request: Any, context: grpc.ServicerContext) -> Iterator[ing.WatchDatasetResponse]:
        for snapshot in self.snapshots:
            yield ing.WatchDatasetResponse(dataset=snapshot)
        while context.is_active():
            self._asleep.wait(0.02)


def snapshot(publication: str, sha256: str, state: ds.DatasetState.ValueType, written: int) -> ds.DatasetSnapshot:
    made = ds.DatasetSnapshot(state=state)
    made.publication.publication, made.publication.dataset = publication, "n"
    made.publication.sources.add(sha256=sha256)
    made.counts.written = written
    return made


@pytest.fixture
def ingestion() -> Iterator[tuple[Ingestion, str]]:
    servicer, server = Ingestion(), grpc.server(ThreadPoolExecutor(4))
    ingestion_pb2_grpc.add_IngestionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize("older", [0, 1, 2, 3])
def test_a_name_that_was_used_before_shows_what_is_published_now(
    ingestion: tuple[Ingestion, str], tmp_path: Path, older: int
) -> None:
    servicer, address = ingestion
    (tmp_path / "data.jsonl").write_text("{}\n")
    servicer.snapshots = [snapshot(f"old{n}", f"{n}" * 64, ds.DATASET_STATE_READY, 111) for n in range(older)]
    still_under_way = snapshot("old9", "9" * 64, ds.DATASET_STATE_FORMATTING, 0)
    servicer.snapshots.insert(0, still_under_way)
    servicer.then = [
        snapshot("old9", "9" * 64, ds.DATASET_STATE_READY, 111),
        snapshot("new", "a" * 64, ds.DATASET_STATE_FAILED, 222),
    ]
    said = CliRunner().invoke(
        app,
        ["datasets", "publish", str(tmp_path / "data.jsonl"), "--name", "n"],
        env={"SHORTSTACK_INGESTION_ADDRESS": address, "SHORTSTACK_VAR": str(tmp_path)},
    )
    assert "222" in said.stdout
    assert "111" not in said.stdout
    assert said.exit_code == 1


def test_ids_are_whole_for_programs_and_begin_so_for_people(ingestion: tuple[Ingestion, str]) -> None:
    servicer, address = ingestion
    servicer.snapshots = [snapshot("p" * 32, "0" * 64, ds.DATASET_STATE_READY, 1)]
    servicer.snapshots[0].version = "v" * 32
    environment = {"SHORTSTACK_INGESTION_ADDRESS": address}
    [row] = json.loads(CliRunner().invoke(app, ["datasets", "list", "--json"], env=environment).stdout)
    assert (row["publication"], row["version"]) == ("p" * 32, "v" * 32)
    shown = CliRunner().invoke(app, ["datasets", "list"], env=environment).stdout.split()
    assert {"p" * 12, "v" * 12} <= set(shown)


def test_a_request_that_is_refused_after_its_check_ends_with_reason_and_remedy(
    ingestion: tuple[Ingestion, str], tmp_path: Path
) -> None:
    servicer, address = ingestion
    (tmp_path / "data.jsonl").write_text("{}\n")
    servicer.snapshots = [snapshot("old", "0" * 64, ds.DATASET_STATE_READY, 111)]
    refused = ds.DatasetSnapshot(state=ds.DATASET_STATE_FAILED, message="it is too large", remedy="Cut it in two.")
    refused.publication.publication, refused.publication.dataset = "refused", "n"
    servicer.then = [refused]
    said = CliRunner().invoke(
        app,
        ["datasets", "publish", str(tmp_path / "data.jsonl"), "--name", "n"],
        env={"SHORTSTACK_INGESTION_ADDRESS": address, "SHORTSTACK_VAR": str(tmp_path)},
    )
    assert said.exit_code == 1
    assert "it is too large" in said.stdout
    assert "Cut it in two." in said.stdout


def test_the_same_again_says_so_and_ends(
    ingestion: tuple[Ingestion, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortstack.cli import datasets
    from shortstack.core.digest import file_sha256

    monkeypatch.setattr(datasets, "_NEWS_S", 0.3)
    servicer, address = ingestion
    file = tmp_path / "data.jsonl"
    file.write_text("{}\n")
    servicer.snapshots = [snapshot("old", file_sha256(file), ds.DATASET_STATE_READY, 111)]
    said = CliRunner().invoke(
        app,
        ["datasets", "publish", str(file), "--name", "n"],
        env={"SHORTSTACK_INGESTION_ADDRESS": address, "SHORTSTACK_VAR": str(tmp_path)},
    )
    assert said.exit_code == 0
    assert "published before" in said.stderr
    assert "111" in said.stdout


def test_a_refused_question_does_not_end_the_conversation(gateway: Gateway) -> None:
    gateway.status, gateway.body = 400, b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
    said = CliRunner().invoke(app, ["chat", "--model", "m"], env=gateway.environment, input="one\ntwo\n")
    assert said.exit_code == 0
    assert said.stderr.count("too long") == 2
    alone = CliRunner().invoke(app, ["chat", "--model", "m", "-m", "one"], env=gateway.environment)
    assert "too long" in str(alone.exception)


def test_one_question_says_beside_the_answer_which_model_is_asked(gateway: Gateway) -> None:
    said = CliRunner().invoke(app, ["chat", "--model", "faq@prod", "-m", "one"], env=gateway.environment)
    assert "faq@prod" in said.stderr
    assert "faq@prod" not in said.stdout


def test_the_progress_counts_what_the_report_counts(ingestion: tuple[Ingestion, str], tmp_path: Path) -> None:
    servicer, address = ingestion
    (tmp_path / "data.csv").write_text("a,b\n")
    done = snapshot("new", "a" * 64, ds.DATASET_STATE_READY, 481)
    done.announced = done.formatted = done.counts.records = 481
    done.counts.items, done.counts.malformed = 491, 10
    servicer.then = [done]
    said = CliRunner().invoke(
        app,
        ["datasets", "publish", str(tmp_path / "data.csv"), "--name", "n"],
        env={"SHORTSTACK_INGESTION_ADDRESS": address, "SHORTSTACK_VAR": str(tmp_path), "COLUMNS": "200"},
    )
    assert "491 of 491" in said.stderr
    assert [line.split()[2] for line in said.stdout.splitlines() if line.startswith("items read")] == ["491"]
