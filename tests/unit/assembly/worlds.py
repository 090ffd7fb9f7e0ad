"""A broker, a store and a dataset controller that can be started anew on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import orjson
from google.protobuf.message import Message as ProtoMessage
from tests.polling import until
from tests.unit.assembly.ledgers import accepted, announced, publication, segment

from shortstack.assembly.assemble import assemble
from shortstack.assembly.config import AssemblyConfig
from shortstack.assembly.controller import DatasetController
from shortstack.assembly.grpc_service import AssemblyServicer
from shortstack.assembly.plan import AssembledVersion, AssemblyPlan
from shortstack.core.clock import FakeClock, SystemClock
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1.training_pb2 import JobSnapshot, JobState, TrainingRecord
from shortstack.storage.blobs import MemoryBlobStore
from shortstack.streams import topics
from shortstack.streams.broker import Delivery, Outbound
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateReader, StateWriter

DEADLINE_S = 20


def event_key(event: ds.PublicationEvent) -> str:
    inner = getattr(event, event.WhichOneof("event") or "accepted")
    return str(getattr(inner, "publication", "none"))


class World:
    """A broker, a store, and a controller that can be started anew on them."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(SystemClock())
        self.broker.apply(topics.TOPICS.values())
        self.blobs = MemoryBlobStore()
        self.clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.assembled: list[AssemblyPlan] = []
        self.finished = 0
        self.before: Callable[[AssemblyPlan], None] | None = None  # called in the assembling thread
        self._producer = self.broker.producer()

    def send(self, topic: topics.Topic, key: str, message: ProtoMessage | dict) -> None:
        value = orjson.dumps(message) if isinstance(message, dict) else message.SerializeToString()
        self._producer.send(outbound(topic, key, value, type="test", source="test", clock=self.clock))
        self._producer.flush(5)

    def raw(self, message: Outbound) -> None:
        """Sends bytes as they are."""
        self._producer.send(message).result(5)

    def event(self, event: ds.PublicationEvent) -> None:
        self.send(topics.DATASETS_PUBLICATIONS, event_key(event), event)

    def entry(self, entry: ds.BatchEntry) -> None:
        self.send(topics.RECORDS_FORMATTED, entry.publication, entry)

    def _assemble(self, plan: AssemblyPlan) -> AssembledVersion:
        self.assembled.append(plan)
        if self.before is not None:
            self.before(plan)
        version = assemble(plan, self.blobs)
        self.finished += 1
        return version

    @contextmanager
    def controller(self) -> Iterator[DatasetController]:
        config = AssemblyConfig(storage_url="memory://", assembly_progress_s=0.001)
        with Telemetry.start("assembly", config) as telemetry:
            controller = DatasetController(
                self.broker, self.blobs, self._assemble, config=config, telemetry=telemetry, clock=self.clock
            )
            self.metrics = telemetry.metrics
            controller.open()
            try:
                yield controller
            finally:
                controller.close()

    @contextmanager
    def serving(self) -> Iterator[AssemblyServicer]:
        """The service as it runs: a controller that turns in its own thread, and the API before it."""
        training = StateReader(self.broker, topics.TRAINING_STATE, TrainingRecord)
        stop = threading.Event()

        def turn(controller: DatasetController) -> None:
            while not stop.is_set():
                controller.turn()

        with self.controller() as controller:
            servicer = AssemblyServicer(controller, self.blobs, training, self._producer, self.clock)
            thread = threading.Thread(target=turn, args=(controller,))
            training.start()
            thread.start()
            try:
                yield servicer
            finally:
                stop.set()
                thread.join(DEADLINE_S)
                training.stop(DEADLINE_S)

    def job(self, made: ds.Publication, state: JobState.ValueType, model: str = "") -> None:
        """A job on a publication, as the training service knows it."""
        writer = StateWriter(self.broker, topics.TRAINING_STATE, TrainingRecord, self.clock)
        writer.open()
        job = JobSnapshot(job=f"ftjob-{made.dataset}", owner=made.owner, publication=made.publication)
        job.state, job.model = state, model
        writer.put(job.job, TrainingRecord(job=job))
        writer.close()

    def command(self, kind: str, made: ds.Publication) -> None:
        command = {"kind": kind, "owner": "default", "publication": made.publication, "attempt": made.attempt}
        self.send(topics.DATASETS_COMMANDS, made.dataset, {**command, "at": "now"})

    def on(self, topic: topics.Topic) -> list[Delivery]:
        """Everything that stands on a topic."""
        return self.broker.messages(topic.name)

    def count(self, topic: topics.Topic) -> int:
        return len(self.on(topic))


def turn_until(controller: DatasetController, met: Callable[[dict[str, ds.DatasetSnapshot]], bool]) -> None:
    def look() -> bool:
        controller.turn()
        return met(controller.snapshots())

    until(look, controller.snapshots, deadline_s=DEADLINE_S, every_s=0)


def state_is(state: int, name: str = "pub-faq") -> Callable[[dict[str, ds.DatasetSnapshot]], bool]:
    return lambda snapshots: name in snapshots and snapshots[name].state == state


def publish(world: World, answers: list[str], **more: object) -> ds.Publication:
    made = publication(**more)
    world.event(accepted(made))
    world.event(announced(made, 0, len(answers)))
    world.entry(segment(world.blobs, made, 0, 0, answers))
    return made
