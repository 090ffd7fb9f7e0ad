"""What stands around the serving controller: a broker, what training says, and rollouts that a test decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from shortstack.core.clock import FakeClock
from shortstack.core.errors import ShortstackError
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.config import ServingConfig
from shortstack.serving.contract import Proof, Verdict
from shortstack.serving.controller import ServingController
from shortstack.serving.rollout import Held, NotReady, RolledOut, unheard
from shortstack.streams import topics
from shortstack.streams.broker import Delivery
from shortstack.streams.envelope import outbound
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateReader, StateWriter

DEADLINE_S = 20
BASE = "tiny-llama"
PASSED = Verdict(True, "", 400, 0.01)
REFUSED = Verdict(False, "token 1 is 5, in training it was 7 with a margin of 3.00", 3, 0.4)


class FakeRollout:
    """A server that holds adapters by digest; a test decides how rollouts end.

    Attributes:
        outcomes: digest → what a rollout finds, or raises; the model passes and the base fails unless told.
        held: digests on the server.
        troubled: digests whose server does not answer.
        kept: digests that the controller asked to keep, last time.
        base_fails: what looking at a base raises.
        base_fails_once: what the next look at a base raises, and no other.
        base_looks: how often a base was looked at.
        parts: what a rollout says of how far it is.
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, Proof | ShortstackError] = {}
        self.held: set[str] = set()
        self.rolled_out: list[str] = []
        self.troubled: set[str] = set()
        self.kept: set[str] = set()
        self.base_fails: ShortstackError | None = None
        self.base_fails_once: ShortstackError | None = None
        self.base_looks = 0
        self.url = "http://server"
        self.parts: list[float] = []

    def base(self, name: str, folder: Path, url: str) -> sv.Endpoint:
        self.base_looks += 1
        once, self.base_fails_once = self.base_fails_once, None
        if (error := once or self.base_fails) is not None:
            raise error
        return sv.Endpoint(url=self.url, prompt_format="base")

    def roll_out(
        self,
        export: tr.Export,
        proving: Callable[[], None],
        instead_of: Sequence[Held] = (),
        reached: Callable[[float], None] = unheard,
    ) -> RolledOut:
        self.rolled_out.append(export.digest)
        for part in self.parts:
            reached(part)
        self.held -= {old.export.digest for old in instead_of}
        self.held.add(export.digest)
        proving()
        outcome = self.outcomes.get(export.digest, Proof(PASSED, REFUSED))
        if isinstance(outcome, ShortstackError):
            raise outcome
        return RolledOut(sv.Endpoint(url=self.url, adapter_id=export.digest[:12]), outcome)

    def reload(self, export: tr.Export, url: str) -> str:
        if export.digest in self.troubled:
            raise NotReady("the scheduler finds no node")
        self.held.add(export.digest)
        return self.url

    def remove(self, export: tr.Export) -> None:
        self.held.discard(export.digest)

    def behind(self, url: str) -> str:
        return ""

    def keep(self, held: Sequence[Held]) -> None:
        self.kept = {one.export.digest for one in held}


@dataclass
class Running:
    """A controller under test, with what it reads."""

    controller: ServingController
    training: StateReader[tr.TrainingRecord]
    writes: Callable[[], int]
    clock: FakeClock
    registry: CollectorRegistry
    seen: int = -1

    def turn(self, times: int = 1) -> None:
        """Turns, having read what training wrote."""
        for _ in range(times):
            if self.seen != self.writes():
                self.seen = self.writes()
                self.training.wait_caught_up(DEADLINE_S)
            self.clock.advance(0.1)
            self.controller.turn()

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self.turn()
            if met():
                return
        raise AssertionError(f"not reached: {self.controller.shown()}")

    def settle(self, model: str, state: sv.ModelState.ValueType) -> sv.ModelSnapshot:
        key = f"model/{model}"
        self.until(lambda: key in self.controller.shown() and self.controller.shown()[key].model.state == state)
        return self.controller.shown()[key].model

    def weights(self, alias: str) -> dict[str, int]:
        record = self.controller.shown().get(f"alias/{alias}")
        return {} if record is None else {w.model: w.weight for w in record.alias.weights}


class World:
    """Everything that outlives a controller."""

    def __init__(self) -> None:
        self.clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.broker = MemoryBroker(self.clock)
        self.broker.apply(topics.TOPICS.values())
        self.rollout = FakeRollout()
        self.writes = 0
        self._training = StateWriter(self.broker, topics.TRAINING_STATE, tr.TrainingRecord, self.clock)
        self._training.open()
        self._producer = self.broker.producer()

    @contextmanager
    def started(
        self, bases: Mapping[str, Path] | None = None, *, opened: bool = True, **settings: Any
    ) -> Iterator[Running]:
        """A controller as its process would start it, up to its first turn or, if not ``opened``, to its making."""
        given = {"storage_url": "memory://", "serving_watch_s": 0.001, "serving_drain_s": 1.0, **settings}
        config = ServingConfig(**given)
        with ExitStack() as stack:
            telemetry = stack.enter_context(Telemetry.start("serving", config))
            training = StateReader(self.broker, topics.TRAINING_STATE, tr.TrainingRecord)
            training.start()
            stack.callback(training.stop, 5.0)
            controller = ServingController(
                self.broker,
                training,
                self.rollout,
                bases or {BASE: Path(BASE)},
                config=config,
                telemetry=telemetry,
                clock=self.clock,
                poll_s=0.001,
            )
            stack.callback(controller.close)
            if opened:
                controller.open()
            yield Running(controller, training, lambda: self.writes, self.clock, telemetry.metrics.registry)

    def trained(self, job: str, letter: str, *, alias: str | None = None, **more: Any) -> str:
        """A run has succeeded for a job that wishes it served; the model's name. Later calls are newer requests."""
        self.clock.advance(1)
        state, export = more.pop("state", tr.JOB_STATE_RUNNING), more.pop("export", None)
        if export is None:
            digest = letter * 64
            export = tr.Export(prefix=f"models/{digest}", digest=digest, prompt_format="base", base_model=BASE)
        name = f"ft:{BASE}:default:demo:{export.digest[:12]}"
        run = tr.RunSnapshot(
            run=f"run-{letter}", state=tr.RUN_STATE_SUCCEEDED, export=export, base_model=BASE, owner="default"
        )
        request = {"train": {}, "deploy": {"suffix": "demo", **({"alias": alias} if alias else {})}}
        snapshot = tr.JobSnapshot(job=job, owner="default", run=run.run, model=name, state=state, **more)
        snapshot.request_json = orjson.dumps(request).decode()
        if not snapshot.HasField("opened_at"):
            snapshot.opened_at.FromDatetime(self.clock.now().replace(tzinfo=None))
        self._training.put_all(
            {f"run/{run.run}": tr.TrainingRecord(run=run), f"job/{job}": tr.TrainingRecord(job=snapshot)}
        )
        self.writes += 1
        return name

    def ended(self, job: str, state: tr.JobState.ValueType) -> None:
        """The job has its last state."""
        self.clock.advance(1)
        record = tr.TrainingRecord()
        record.CopyFrom(self._training.latest[f"job/{job}"])
        record.job.state = state
        self._training.put(f"job/{job}", record)
        self.writes += 1

    def wished_again(self, job: str) -> None:
        """The job, which has succeeded, was asked for anew."""
        self.ended(job, tr.JOB_STATE_SUCCEEDED)
        self.clock.advance(1)
        record = self._training.latest[f"job/{job}"]
        record.job.wished_at.FromDatetime(self.clock.now().replace(tzinfo=None))
        self._training.put(f"job/{job}", record)
        self.writes += 1

    def request(self, **message: Any) -> None:
        """A message on models.requests, a second after the one before."""
        self.clock.advance(1)
        value = orjson.dumps({"owner": "default", **message})
        self._producer.send(outbound(topics.MODELS_REQUESTS, "x", value, type="t", source="t", clock=self.clock))
        self._producer.flush(5)

    def messages(self, topic: topics.Topic) -> list[Delivery]:
        """Everything on a topic."""
        return self.broker.messages(topic.name)

    def states(self) -> list[tuple[str, sv.ModelRecord]]:
        """Every write of models.state in order, claims left out."""
        from shortstack.messages.v1.state_pb2 import StateEnvelope

        found = []
        for delivery in self.messages(topics.MODELS_STATE):
            key, envelope = (delivery.key or b"").decode(), StateEnvelope.FromString(delivery.value or b"")
            if key != "_writer":
                found.append((key, sv.ModelRecord.FromString(envelope.payload)))
        return found
