"""What stands around the training controller: a broker, a dataset, a base model, attempts that a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import Message as ProtoMessage
from prometheus_client import CollectorRegistry
from tests.polling import until

from shortstack.core.clock import FakeClock
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.streams import topics
from shortstack.streams.broker import Delivery
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateReader, StateWriter
from shortstack.training.config import TrainingConfig
from shortstack.training.controller import TrainingController
from shortstack.training.memory_launcher import MemoryLauncher

DEADLINE_S = 20
BASE = "tiny-llama"


@dataclass
class Running:
    """A controller under test, with what it reads."""

    controller: TrainingController
    datasets: StateReader[ds.DatasetSnapshot]
    models: StateReader[sv.ModelRecord]
    writes: Callable[[], int]
    registry: CollectorRegistry
    seen: int = -1

    def turn(self, times: int = 1) -> None:
        """Turns, having read all state first."""
        for _ in range(times):
            if self.seen != self.writes():
                self.seen = self.writes()
                self.datasets.wait_caught_up(DEADLINE_S)
                self.models.wait_caught_up(DEADLINE_S)
            self.controller.turn()

    def until(self, met: Callable[[dict[str, tr.TrainingRecord]], bool]) -> None:
        """Turns until what it shows meets a condition."""

        def look() -> bool:
            self.turn()
            return met(self.controller.shown())

        until(look, self.controller.shown, deadline_s=DEADLINE_S, every_s=0)

    def job(self, job: str) -> tr.JobSnapshot:
        return self.controller.shown()[f"job/{job}"].job

    def run(self) -> tr.RunSnapshot:
        (run,) = (r.run for r in self.controller.shown().values() if r.WhichOneof("record") == "run")
        return run

    def settle(self, job: str, state: tr.JobState.ValueType) -> tr.JobSnapshot:
        self.until(lambda shown: f"job/{job}" in shown and shown[f"job/{job}"].job.state == state)
        return self.job(job)


@dataclass
class World:
    """Everything that outlives a controller."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.broker = MemoryBroker(self.clock)
        self.broker.apply(topics.TOPICS.values())
        self.launcher = MemoryLauncher()
        self.writes = 0
        base = self.folder / BASE
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text("{}")
        names = {"model.layers.0.self_attn.q_proj.weight": [8, 8], "model.embed_tokens.weight": [9, 8]}
        header = orjson.dumps({name: {"dtype": "F32", "shape": shape} for name, shape in names.items()})
        (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        self.bases = BaseModels({BASE: base}, {"gpt-4o-mini": BASE})
        # No pause between attempts, but where a test asks for one: the clock stands still unless told.
        settings = {"training_back_off_s": 0, **self.settings}
        self.config = TrainingConfig(var=self.folder, storage_url="memory://", **settings)
        self.datasets = StateWriter(self.broker, topics.DATASETS_STATE, ds.DatasetSnapshot, self.clock)
        self.datasets.open()
        self.models = StateWriter(self.broker, topics.MODELS_STATE, sv.ModelRecord, self.clock)
        self.models.open()
        self._producer = self.broker.producer()

    @contextmanager
    def started(self) -> Iterator[Running]:
        """A controller as its process would start it."""
        with ExitStack() as stack:
            telemetry = stack.enter_context(Telemetry.start("training", self.config))
            datasets = StateReader(self.broker, topics.DATASETS_STATE, ds.DatasetSnapshot)
            models = StateReader(self.broker, topics.MODELS_STATE, sv.ModelRecord)
            for reader in (datasets, models):
                reader.start()
                stack.callback(reader.stop, 5.0)
            controller = TrainingController(
                self.broker,
                datasets,
                models,
                self.launcher,
                self.bases,
                config=self.config,
                telemetry=telemetry,
                clock=self.clock,
                poll_s=0.001,
            )
            controller.open()
            stack.callback(controller.close)
            yield Running(controller, datasets, models, lambda: self.writes, telemetry.metrics.registry)

    def send(self, topic: topics.Topic, key: str, message: ProtoMessage | dict[str, Any] | bytes) -> None:
        """Appends a message, a second after the one before."""
        self.clock.advance(1)
        value = message if isinstance(message, bytes) else None
        if value is None:
            value = orjson.dumps(message) if isinstance(message, dict) else message.SerializeToString()
        self._producer.send(outbound(topic, key, value, type="test", source="test", clock=self.clock))
        self._producer.flush(5)

    def submit(self, job: str, dataset: str = "faq", **request: Any) -> None:
        message = {"kind": "submit", "job": job, "owner": "default", "dataset": dataset, "train": {}, **request}
        self.send(topics.TRAINING_REQUESTS, job, message)

    def cancel(self, job: str) -> None:
        self.send(topics.TRAINING_REQUESTS, job, {"kind": "cancel", "job": job, "owner": "default"})

    def dataset(self, state: ds.DatasetState.ValueType, **more: Any) -> None:
        """Writes the snapshot of dataset faq; wishes are (job, train, deploy)."""
        self.clock.advance(1)
        wishes = more.pop("wishes", ())
        publication = ds.Publication(
            publication="pub-faq", attempt=1, owner="default", dataset="faq", **more.pop("publication", {})
        )
        snapshot = ds.DatasetSnapshot(publication=publication, state=state, **more)
        for job, train, deploy in wishes:
            wish = snapshot.wishes.add(job=job, train_json=orjson.dumps(train).decode())
            wish.deploy_json = "" if deploy is None else orjson.dumps(deploy).decode()
            wish.requested_at.FromDatetime(self.clock.now().replace(tzinfo=None))
        self.datasets.put("pub-faq", snapshot)
        self.writes += 1

    def ready(self, *wishes: tuple[str, dict[str, Any], dict[str, Any] | None], train: int = 80) -> None:
        """The dataset is ready, with ``train`` training records."""
        counts = ds.DatasetCounts(records=train, written=train, train=train)
        manifest = "publications/default/pub-faq/versions/v1/manifest.json"
        self.dataset(ds.DATASET_STATE_READY, wishes=wishes, counts=counts, version="v1", manifest=manifest)

    def model(self, name: str, state: sv.ModelState.ValueType, **more: Any) -> None:
        """Writes a model's snapshot, as serving does."""
        self.clock.advance(1)
        snapshot = sv.ModelSnapshot(name=name, owner="default", state=state, **more)
        snapshot.updated_at.FromDatetime(self.clock.now().replace(tzinfo=None))
        self.models.put(f"model/{name}", sv.ModelRecord(model=snapshot))
        self.writes += 1

    def event(self, run: str, attempt: int, seq: int, **payload: Any) -> None:
        """An event of the trainer, as an agent ships it."""
        body = orjson.dumps(payload).decode()
        event = tr.TrainingEvent(run=run, attempt=attempt, seq=seq, type=payload["type"], payload_json=body)
        event.time.FromDatetime(self.clock.now().replace(tzinfo=None))
        self.send(topics.TRAINING_EVENTS, run, event)

    def write(self, records: dict[str, tr.TrainingRecord]) -> None:
        """Writes snapshots to the state topic, as another version's controller would have left them."""
        writer = StateWriter(self.broker, topics.TRAINING_STATE, tr.TrainingRecord, self.clock, source="test")
        writer.open()
        writer.put_all(records)
        writer.close()

    def messages(self, topic: topics.Topic) -> list[Delivery]:
        """Everything on a topic."""
        return self.broker.messages(topic.name)


def export(digest: str = "a" * 64) -> dict[str, Any]:
    """What an agent says of a success."""
    return {
        "prefix": f"models/{digest}",
        "manifest": f"models/{digest}/export.manifest.json",
        "manifest_sha256": "b" * 64,
        "digest": digest,
        "base_digest": "c" * 64,
        "prompt_format": "base",
    }


def launched(world: World) -> list[tuple[str, int]]:
    """Run and number of each attempt, in order of launching."""
    return [(order.run, order.attempt) for order in world.launcher.orders]


def sample(name: str, running: Running, **labels: str) -> float | None:
    """What a metric says; None while it says nothing."""
    return running.registry.get_sample_value(name, labels)


def train(world: World, running: Running, attempt: int = 1) -> None:
    """Lets the newest attempt succeed."""
    running.until(lambda _: len(world.launcher.orders) >= attempt)
    order = world.launcher.orders[-1]
    world.launcher.succeed(order.run, order.attempt, export())
