"""Attempts for real: an agent, torchrun, a tiny model, a real broker, an object store on disk."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from tests import polling
from tests.integration.training.trainer.conftest import records, tiny_llama

from shortstack.core.config import ServiceConfig
from shortstack.core.digest import sha256_hex
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.messages.v1.training_pb2 import TrainingEvent
from shortstack.records.schema import table_of
from shortstack.storage.blobs import BlobStore
from shortstack.streams import topics
from shortstack.streams.kafka import KafkaBroker
from shortstack.training.launcher import AttemptOrder, AttemptStatus
from shortstack.training.processes import ProcessLauncher, attempt_paths

__all__ = ["tiny_llama"]

DEADLINE_S = 400
until = partial(polling.until, deadline_s=DEADLINE_S)
MANIFEST = "publications/default/pub-1/versions/v1/manifest.json"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that were told a path below ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(argument.startswith(str(folder)) for argument in process.info["cmdline"] or ())
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def put_dataset(blobs: BlobStore) -> None:
    """A dataset version of the tiny records, as assembly leaves it."""
    shards: dict[str, Any] = {}
    for split, rows in (("train", records()[:-4]), ("validation", records()[-4:])):
        out = io.BytesIO()
        pq.write_table(table_of(rows), out)
        key = f"publications/default/pub-1/versions/v1/{split}-00000.parquet"
        blobs.put(key, out.getvalue())
        sha = sha256_hex(out.getvalue())
        shards[split] = {"records": len(rows), "shards": [{"key": key, "sha256": sha, "records": len(rows)}]}
    manifest = {"schema": "dataset-manifest/1", "owner": "default", "dataset": "tiny", "version": "v1"}
    blobs.put(MANIFEST, json.dumps({**manifest, "splits": shards}).encode())


@dataclass(frozen=True)
class Bench:
    """A run folder, an object store and a launcher on them."""

    folder: Path
    base: Path
    bootstrap: str
    run: str

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SHORTSTACK_KAFKA_BOOTSTRAP": self.bootstrap,
            "SHORTSTACK_KAFKA_BOOTSTRAP_TIMEOUT_S": "2",
            "SHORTSTACK_STORAGE_URL": f"file://{self.folder / 'blobs'}",
            "SHORTSTACK_VAR": str(self.folder),
            "SHORTSTACK_BASE_MODELS": json.dumps({"tiny-llama": str(self.base)}),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def blobs(self) -> BlobStore:
        return BlobStore.open(f"file://{self.folder / 'blobs'}")

    def order(self, attempt: int, *, processes: int = 1, **config: Any) -> AttemptOrder:
        plan = {
            "run": self.run,
            "owner": "default",
            "base_model": {"name": "tiny-llama", "path": str(self.base), "digest": "d" * 64},
            "prompt_format": "base",
            "config": {"micro_batch_size": 4, "learning_rate": 2e-3, "lora_r": 4, **config},
            "seed": 42,
        }
        return AttemptOrder(self.run, attempt, MANIFEST, processes, plan)

    def lines(self) -> list[dict[str, Any]]:
        """The trainer's events so far."""
        path = self.runs / self.run / "events.jsonl"
        text = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def steps(self, attempt: int) -> list[int]:
        return [e["step"] for e in self.lines() if e["type"] == "step" and e["attempt"] == attempt]

    def shipped(self) -> list[tuple[int, int]]:
        """(attempt, seq) of the run's events on the topic, in order of their first arrival."""
        with closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=self.bootstrap))) as broker:
            reader = broker.reader([topics.TRAINING_EVENTS.name])
            found: list[TrainingEvent] = []
            while not reader.caught_up():
                found += [TrainingEvent.FromString(d.value or b"") for d in reader.poll(0.2)]
        return list(dict.fromkeys((e.attempt, e.seq) for e in found if e.run == self.run))

    def agent(self, attempt: int) -> psutil.Process:
        """The attempt's agent, once it holds its lock."""
        order = str(attempt_paths(self.runs.resolve(), self.run, attempt).order)
        (agent,) = until(lambda: processes_of(Path(order)), "the agent")
        return agent

    def log(self, attempt: int) -> str:
        return attempt_paths(self.runs, self.run, attempt).log.read_text()

    def ended(self, launcher: ProcessLauncher, attempt: int) -> AttemptStatus:
        def over() -> AttemptStatus | None:
            status = launcher.status(self.run, attempt)
            return None if status.phase == "running" else status

        return until(over, f"the end of attempt {attempt}")


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker that is the test's alone: it may be stopped, and holds nobody else's state."""
    folder = tmp_path_factory.mktemp("kafka")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = [int(probe.getsockname()[1]) for probe in (one, two)]
    root = Path(__file__).resolve().parents[3]
    libs = Path(os.environ.get("SHORTSTACK_VAR", root / "var")) / "kafka" / "libs"
    config = BrokerConfig(
        folder=folder,
        log=folder / "kafka.log",
        port=ports[0],
        controller_port=ports[1],
        libs=libs,
        java=os.environ.get("SHORTSTACK_JAVA"),
    )
    broker = LocalBroker(config)
    broker.prepare()
    with broker:
        with closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=broker.bootstrap))) as client:
            client.apply(topics.TOPICS.values())
        yield broker


@pytest.fixture
def own_bootstrap(own_broker: LocalBroker) -> str:
    return own_broker.bootstrap


@pytest.fixture
def bench(
    tmp_path: Path, tiny_llama: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A bench on the session's broker, or on the one that the test's own fixture ``own_bootstrap`` names."""
    named = "own_bootstrap" if "own_bootstrap" in request.fixturenames else "kafka_bootstrap"
    bootstrap = request.getfixturevalue(named)
    if named == "kafka_bootstrap":
        with closing(KafkaBroker.connect(ServiceConfig(kafka_bootstrap=bootstrap))) as broker:
            broker.apply(topics.TOPICS.values())
    made = Bench(tmp_path, tiny_llama, bootstrap, f"run-{os.urandom(4).hex()}")
    put_dataset(made.blobs)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    ProcessLauncher(made.runs).stop(5)
    assert processes_of(tmp_path) == []


@pytest.fixture
def launcher(bench: Bench) -> Iterator[ProcessLauncher]:
    """A launcher on the bench."""
    made = ProcessLauncher(bench.runs)
    made.start()
    yield made
    made.stop(5)
