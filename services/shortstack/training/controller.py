"""The training controller: keeps jobs and runs, and has exactly one attempt of a wanted run going.

It reads datasets.state, models.state, training.requests and training.events whole, joins no group and commits
nothing. What it starts follows from the difference between jobs and runs, so a replay starts nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, DatasetSnapshot
from shortstack.messages.v1.serving_pb2 import ModelRecord
from shortstack.streams import topics
from shortstack.streams.broker import Broker, Delivery, Producer, Reader
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateReader, StateWriter
from shortstack.training.book import JOB_ENDED, JobBook, stamp
from shortstack.training.config import TrainingConfig
from shortstack.training.events import EventBook
from shortstack.training.launcher import AttemptOrder, AttemptPhase, AttemptStatus, Launcher

__all__ = ["TrainingController"]

_SOURCE: Final = "training"
_PROGRESS_S: Final = 1.0
_ACTIVE: Final = frozenset({tr.RUN_STATE_STARTING, tr.RUN_STATE_RUNNING, tr.RUN_STATE_EXPORTING})


class TrainingController:
    """Driven by a `Loop`; API threads read `job`, `run`, `jobs` and `events`, which are copies."""

    def __init__(
        self,
        broker: Broker,
        datasets: StateReader[DatasetSnapshot],
        models: StateReader[ModelRecord],
        launcher: Launcher,
        bases: BaseModels,
        *,
        config: TrainingConfig,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._broker, self._datasets, self._models, self._launcher = broker, datasets, models, launcher
        self._bases, self._config, self._telemetry, self._clock = bases, config, telemetry, clock
        self._writer = StateWriter(broker, topics.TRAINING_STATE, tr.TrainingRecord, clock, source=_SOURCE)
        self._book = JobBook(bases, config.training_processes)
        self._reader: Reader | None = None
        self._producer: Producer | None = None
        self._written_at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._shown: dict[str, tr.TrainingRecord] = {}
        self.events = EventBook()

    # Turning.

    def open(self) -> None:
        """Claims the state topic, then reads requests and events to their end before it acts on anything."""
        self.close()
        self._book = JobBook(self._bases, self._config.training_processes)
        self._book.restore(self._writer.open())
        for key, record in self._writer.latest.items():
            self._show(key, record)
        self._producer = self._broker.producer()
        self._reader = self._broker.reader([topics.TRAINING_REQUESTS.name, topics.TRAINING_EVENTS.name])
        while not self._reader.caught_up():
            self._read(self._reader)
        self._datasets.wait_caught_up(30.0)
        self._models.wait_caught_up(30.0)

    def turn(self) -> None:
        """Takes what has come, works out every job, and starts, follows or ends attempts."""
        assert self._reader is not None
        self._read(self._reader)
        self._advance()
        self._follow()
        self._start()
        self._write()

    def close(self) -> None:
        """Lets go of connections; attempts go on."""
        if self._reader is not None:
            self._reader.close()
        if self._producer is not None:
            self._producer.close(self._config.shutdown_grace_s / 4)
        self._writer.close()
        self._reader = self._producer = None

    # For the API's threads.

    def shown(self) -> dict[str, tr.TrainingRecord]:
        """All jobs and runs as last written, by ``job/ID`` and ``run/ID``."""
        with self._changed:
            return dict(self._shown)

    def wait(self, met: Callable[[Mapping[str, tr.TrainingRecord]], bool], timeout_s: float) -> bool:
        """Waits until what is shown meets a condition."""
        with self._changed:
            return self._changed.wait_for(lambda: met(self._shown), timeout_s)

    # Reading.

    def _read(self, reader: Reader) -> None:
        for delivery in reader.poll(0.1):
            try:
                if delivery.partition.topic == topics.TRAINING_EVENTS.name:
                    self._event(tr.TrainingEvent.FromString(delivery.value or b""))
                else:
                    self._request(orjson.loads(delivery.value or b"{}"))
            except (Poison, ValueError, KeyError, TypeError) as error:
                self._telemetry.log.error("message set aside", place=delivery.place, error=str(error))
                self._set_aside(delivery, error)

    def _set_aside(self, delivery: Delivery, error: Exception) -> None:
        if delivery.partition.topic != topics.TRAINING_REQUESTS.name or self._producer is None:
            return
        dead = topics.dead_letters(topics.TRAINING_REQUESTS)
        key = (delivery.key or b"").decode(errors="replace")
        extra = {"shortstack-place": delivery.place, "shortstack-error": str(error)}
        message = outbound(
            dead,
            key,
            delivery.value or b"",
            type="shortstack.dead-letter",
            source=_SOURCE,
            clock=self._clock,
            id=delivery.place,
            extra=extra,
        )
        self._producer.send(message)

    def _request(self, request: Mapping[str, Any]) -> None:
        now = self._clock.now()
        if request["kind"] == "cancel":
            job = self._book.jobs.get(request["job"])
            if job is not None and job.owner == request["owner"]:
                self._book.cancel(job, now)
            return
        body = {name: request[name] for name in ("train", "deploy", "openai") if request.get(name) is not None}
        self._book.open(request["job"], request["owner"], request["dataset"], "", body, now)

    def _event(self, event: tr.TrainingEvent) -> None:
        if not self.events.add(event):
            return
        run = self._book.runs.get(event.run)
        if run is None or event.attempt != run.attempt or run.state not in _ACTIVE:
            return
        payload = orjson.loads(event.payload_json or b"{}")
        if event.type == "step":
            run.step, run.max_steps = payload["step"], payload["max_steps"]
            run.loss = payload.get("loss") or 0.0
            run.tokens_per_second = payload.get("tokens_per_second") or 0.0
            run.eta_seconds = payload.get("eta_s") or 0.0
            run.tokens = payload.get("tokens") or run.tokens
            self._move(run, tr.RUN_STATE_EXPORTING if run.step == run.max_steps else tr.RUN_STATE_RUNNING)
        with self._changed:
            self._changed.notify_all()

    # Deciding.

    def _advance(self) -> None:
        now = self._clock.now()
        snapshots = self._datasets.values()
        for dataset in snapshots:
            self._book.wish(dataset, now)
        models = {r.model.name: r.model for r in self._models.values() if r.WhichOneof("record") == "model"}
        for job in list(self._book.jobs.values()):
            if job.state not in JOB_ENDED:
                found = self._dataset_of(job, snapshots)
                self._book.advance(job, found, models.get(job.model) if job.model else None, now)

    @staticmethod
    def _dataset_of(job: tr.JobSnapshot, snapshots: list[DatasetSnapshot]) -> DatasetSnapshot | None:
        """Its publication, or the newest ready one of that name for a job that named no publication."""
        if job.publication:
            return next((s for s in snapshots if s.publication.publication == job.publication), None)
        named = [s for s in snapshots if s.publication.owner == job.owner and s.publication.dataset == job.dataset]
        if not named:
            return None
        newest = max(named, key=lambda s: (s.state == DATASET_STATE_READY, s.publication.accepted_at.ToNanoseconds()))
        return newest

    def _follow(self) -> None:
        for run in self._book.runs.values():
            if run.state not in _ACTIVE:
                continue
            if not self._wanted(run):
                self._launcher.cancel(run.run, run.attempt)
            status = self._launcher.status(run.run, run.attempt)
            match status.phase:
                case AttemptPhase.ABSENT:
                    self._launch(run)
                case AttemptPhase.SUCCEEDED:
                    self._succeed(run, status)
                case AttemptPhase.FAILED | AttemptPhase.LOST:
                    self._broke_off(run, status)
                case AttemptPhase.RUNNING:
                    pass

    def _wanted(self, run: tr.RunSnapshot) -> bool:
        """Whether a job still waits for it: only the last one's cancel stops a run."""
        return any(self._book.jobs[job].state not in JOB_ENDED for job in run.jobs if job in self._book.jobs)

    def _succeed(self, run: tr.RunSnapshot, status: AttemptStatus) -> None:
        export = status.export or {}
        run.export.CopyFrom(
            tr.Export(
                prefix=export["prefix"],
                manifest=export["manifest"],
                manifest_sha256=export["manifest_sha256"],
                digest=export["digest"],
                base_model=run.base_model,
                base_digest=self._bases.get(run.base_model).digest(),
                prompt_format=export["prompt_format"],
            )
        )
        stamp(run.finished_at, self._clock.now())
        self._move(run, tr.RUN_STATE_SUCCEEDED)

    def _broke_off(self, run: tr.RunSnapshot, status: AttemptStatus) -> None:
        """Another attempt from the newest whole checkpoint, unless it is not wanted, hopeless, or the last."""
        if not self._wanted(run):
            stamp(run.finished_at, self._clock.now())
            self._move(run, tr.RUN_STATE_CANCELLED)
            return
        stopped = status.phase is AttemptPhase.LOST or status.code == "stopped"
        if status.final or (run.attempt >= self._config.training_max_attempts and not stopped):
            run.error = status.message or "its processes died"
            run.remedy = status.remedy or f"See {run.run_dir}"
            stamp(run.finished_at, self._clock.now())
            self._move(run, tr.RUN_STATE_FAILED)
            return
        self._telemetry.log.warning("attempt broke off", run=run.run, attempt=run.attempt, why=status.message)
        run.attempt += 1
        self._move(run, tr.RUN_STATE_STARTING)

    def _start(self) -> None:
        """Queued runs in order of age, as many as may go at the same time."""
        active = sum(run.state in _ACTIVE for run in self._book.runs.values())
        queued = [run for run in self._book.runs.values() if run.state == tr.RUN_STATE_QUEUED]
        for run in sorted(queued, key=lambda r: r.created_at.ToNanoseconds()):
            if not self._wanted(run):
                stamp(run.finished_at, self._clock.now())
                self._move(run, tr.RUN_STATE_CANCELLED)
            elif active < self._config.training_parallel:
                active += 1
                # Written before it is launched: a crash between the two finds the attempt absent and launches it.
                self._move(run, tr.RUN_STATE_STARTING)

    def _launch(self, run: tr.RunSnapshot) -> None:
        if self._written(f"run/{run.run}") != run.attempt:
            return
        base = self._bases.get(run.base_model)
        config = orjson.loads(run.config_json)
        dataset = next(s for s in self._datasets.values() if s.publication.publication == run.publication)
        plan = {
            "run": run.run,
            "owner": run.owner,
            "base_model": {"name": base.name, "path": str(base.path.resolve()), "digest": base.digest()},
            "prompt_format": config["chat_template"],
            "config": config,
            "seed": config["seed"],
        }
        run.run_dir = str(self._config.runs_dir / run.run)
        self._launcher.launch(
            AttemptOrder(run.run, run.attempt, dataset.manifest, self._config.training_processes, plan)
        )

    def _written(self, key: str) -> int:
        """Attempt of the run as the state topic has it; 0 if it has none."""
        with self._changed:
            record = self._shown.get(key)
        return record.run.attempt if record is not None and record.run.state in _ACTIVE else 0

    def _move(self, run: tr.RunSnapshot, state: tr.RunState.ValueType) -> None:
        run.state = state
        stamp(run.updated_at, self._clock.now())
        self._book.dirty.add(f"run/{run.run}")

    # Writing.

    def _write(self) -> None:
        """Writes what changed: a change of state at once, mere progress every second."""
        now = self._clock.monotonic()
        due = {}
        for key in list(self._book.dirty):
            record, known = self._book.record(key), self._shown.get(key)
            moved = known is None or _state(known) != _state(record)
            if moved or now - self._written_at.get(key, 0.0) >= _PROGRESS_S:
                due[key] = record
        if not due:
            return
        self._writer.put_all(due)
        for key, record in due.items():
            known = self._shown.get(key)
            if known is None or _state(known) != _state(record):
                self._announce(record)
            self._written_at[key] = now
            self._book.dirty.discard(key)
            self._show(key, record)

    def _announce(self, record: tr.TrainingRecord) -> None:
        if record.WhichOneof("record") == "run":
            if record.run.state == tr.RUN_STATE_SUCCEEDED:
                self._notify(topics.MODELS_READY, record.run.run, record.run.SerializeToString())
            return
        job = record.job
        name = tr.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
        failed = job.state == tr.JOB_STATE_FAILED
        event = tr.TrainingEvent(
            job=job.job,
            attempt=0,
            seq=self._writer.revision(f"job/{job.job}"),
            type="job",
            level="error" if failed else "info",
            message=f"Job {name}: {job.error}" if failed else f"Job {name}",
            payload_json=orjson.dumps({"state": name, "model": job.model, "run": job.run}).decode(),
        )
        stamp(event.time, self._clock.now())
        self._notify(topics.TRAINING_EVENTS, job.job, event.SerializeToString())

    def _notify(self, topic: topics.Topic, key: str, value: bytes) -> None:
        assert self._producer is not None
        type_ = f"shortstack.{topic.name}"
        self._producer.send(outbound(topic, key, value, type=type_, source=_SOURCE, clock=self._clock))

    def _show(self, key: str, record: tr.TrainingRecord) -> None:
        copy = tr.TrainingRecord()
        copy.CopyFrom(record)
        with self._changed:
            self._shown[key] = copy
            self._changed.notify_all()


def _state(record: tr.TrainingRecord) -> tuple[int, int]:
    if record.WhichOneof("record") == "job":
        return record.job.state, 0
    return record.run.state, record.run.attempt
