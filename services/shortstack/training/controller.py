"""The training controller: keeps jobs and runs, and has exactly one attempt of a wanted run going.

It reads datasets.state, models.state, training.requests and training.events whole, joins no group and commits
nothing. What it starts follows from the difference between jobs and runs, so a replay starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison, Transient, did_you_mean
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.declarations.publication import REFUSED
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, DatasetSnapshot
from shortstack.messages.v1.serving_pb2 import ModelRecord
from shortstack.streams import topics
from shortstack.streams.broker import Broker, Delivery, Producer, Reader
from shortstack.streams.envelope import outbound
from shortstack.streams.notices import Notices
from shortstack.streams.set_aside import SetAside
from shortstack.streams.shown import Shown
from shortstack.streams.state import StateReader, StateWriter
from shortstack.training.book import JOB_ENDED, JobBook, stamp
from shortstack.training.config import TrainingConfig
from shortstack.training.event_book import EventBook
from shortstack.training.events import deploy_words, job_event, waiting_event
from shortstack.training.follower import ACTIVE, RunFollower
from shortstack.training.launcher import AttemptOrder, Launcher
from shortstack.training.orders import order_of
from shortstack.training.run_gauges import RunGauges

__all__ = ["TrainingController"]

_SOURCE: Final = "training"
_PROGRESS_S: Final = 1.0
_POLL_S: Final = 0.25
_TIDY_S: Final = 3600.0
_REMEMBERED: Final = timedelta(days=7)
"""How long the events of an ended run or job are kept at hand; the topic has them longer."""


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
        poll_s: float = _POLL_S,
    ) -> None:
        self._broker, self._datasets, self._models, self._launcher = broker, datasets, models, launcher
        self._bases, self._config, self._telemetry, self._clock = bases, config, telemetry, clock
        self._writer = StateWriter(broker, topics.TRAINING_STATE, tr.TrainingRecord, clock, source=_SOURCE)
        self._poll_s = poll_s
        self._book, self._follower = self._anew()
        self._aside: SetAside | None = None
        self._reader: Reader | None = None
        self._producer: Producer | None = None
        self._ready: Notices | None = None
        self._tidied_at = 0.0
        self._written_at: dict[str, float] = {}
        self._shown: Shown[tr.TrainingRecord] = Shown()
        self._opened = self._caught_up = False
        self._gauges = RunGauges(telemetry.metrics)
        self.events = EventBook()

    # Turning.

    def open(self) -> None:
        """Claims the state topic, then reads requests and events to their end before it acts on anything."""
        self.close()
        self._book, self._follower = self._anew()
        self._book.restore(self._writer.open())
        for key, record in self._writer.latest.items():
            self._shown.show(key, record)
        self._count()
        self._producer = self._broker.producer()
        self._ready = Notices(self._broker, topics.MODELS_READY, _SOURCE, self._clock)
        for record in self._writer.latest.values():
            self._tell_ready(record.run)
        self._aside = SetAside(self._broker, topics.TRAINING_REQUESTS, _SOURCE, self._telemetry, self._clock)
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
        self._follower.follow()
        self._follower.start()
        self._write()
        self._tidy()
        if not self._caught_up:
            # Not before: what `open` read of requests is shown once it is written.
            self._opened = self._caught_up = True
            self._shown.wake()

    def close(self) -> None:
        """Lets go of connections; attempts go on."""
        self._caught_up = False
        if self._reader is not None:
            self._reader.close()
        for sending in (self._producer, self._ready, self._aside):
            if sending is not None:
                with suppress(Transient):  # the broker is away; snapshots that count were acknowledged
                    sending.close(self._config.shutdown_grace_s / 4)
        self._writer.close()
        self._reader = self._producer = self._ready = self._aside = None

    def _anew(self) -> tuple[JobBook, RunFollower]:
        config = self._config
        book = JobBook(
            self._bases,
            config.training_processes,
            serves_merged=config.serves_merged,
            since=self._clock.now(),
            dataset_wait=timedelta(seconds=config.training_dataset_wait_s),
        )
        follower = RunFollower(
            book,
            self._launcher,
            config,
            self._telemetry,
            self._clock,
            order=self._order,
            written=self._written,
            tell=self._tell_event,
        )
        return book, follower

    # For the API's threads.

    def shown(self) -> dict[str, tr.TrainingRecord]:
        """All jobs and runs as last written, by ``job/ID`` and ``run/ID``."""
        return self._shown.all()

    def require_opened(self, timeout_s: float, *, for_miss: bool = False) -> None:
        """For whoever lists; and with ``for_miss``, for whoever is about to say that something is not there.

        Raises:
            Transient: not everything has been read in time, so nobody knows.
        """
        if not self._shown.wait(lambda _: self._caught_up if for_miss else self._opened, timeout_s):
            raise Transient(
                "the training service is still reading what jobs there are",
                remedy="Nothing is lost; ask again in a few seconds.",
            )

    def wait(self, met: Callable[[Mapping[str, tr.TrainingRecord]], bool], timeout_s: float) -> bool:
        """Waits until what is shown meets a condition."""
        return self._shown.wait(met, timeout_s)

    # Reading.

    def _read(self, reader: Reader) -> None:
        for delivery in reader.poll(self._poll_s):
            if delivery.partition.topic == topics.TRAINING_EVENTS.name:
                self._take_event(delivery)
                continue
            try:
                self._request(orjson.loads(delivery.value or b"{}"), delivery)
            except (Poison, ValueError, KeyError, TypeError) as error:
                if self._aside is not None:
                    self._aside.put(delivery, error)

    def _request(self, request: Mapping[str, Any], delivery: Delivery) -> None:
        kinds = {"submit": self._submit, "cancel": self._cancel}
        if request["kind"] not in kinds:
            raise Poison(f'kind "{request["kind"]}" is unknown', remedy=did_you_mean(str(request["kind"]), kinds))
        kinds[request["kind"]](request, datetime.fromtimestamp(delivery.timestamp_ms / 1000, UTC))

    def _submit(self, request: Mapping[str, Any], at: datetime) -> None:
        body = {name: request[name] for name in ("train", "deploy", "openai") if request.get(name) is not None}
        self._book.open(request["job"], request["owner"], request["dataset"], body, at, self._clock.now())

    def _cancel(self, request: Mapping[str, Any], at: datetime) -> None:
        job = self._book.jobs.get(request["job"])
        if job is not None and job.owner == request["owner"]:
            self._book.cancel(job, at, self._clock.now())

    def _take_event(self, delivery: Delivery) -> None:
        try:
            self._event(tr.TrainingEvent.FromString(delivery.value or b""))
        except (DecodeError, ValueError, KeyError, TypeError) as error:
            # Events are for watching: one that cannot be read changes nothing.
            self._telemetry.log.warning("event passed over", place=delivery.place, error=str(error))

    def _event(self, event: tr.TrainingEvent) -> None:
        payload = orjson.loads(event.payload_json or b"{}")
        if not isinstance(payload, dict):
            raise TypeError("its payload is no object")
        if self._is_old(event.run or event.job) or not self.events.add(event):
            return
        run = self._book.runs.get(event.run)
        if run is None or event.attempt != run.attempt or run.state not in ACTIVE:
            return
        if event.type == "step":
            run.step, run.max_steps = payload["step"], payload["max_steps"]
            run.loss = payload.get("loss") or 0.0
            run.tokens_per_second = payload.get("tokens_per_second") or 0.0
            run.eta_seconds = payload.get("eta_s") or 0.0
            run.tokens = payload.get("tokens") or run.tokens
            self._telemetry.metrics.train_steps.inc()
            self._follower.move(run, tr.RUN_STATE_EXPORTING if run.step == run.max_steps else tr.RUN_STATE_RUNNING)
        elif event.type == "waiting":
            self._follower.told(run, payload["waits"])
        elif event.type == "checkpoint" and payload["step"] > run.checkpoint_step:
            # It came further than ever: what died before it is forgiven. Dying again and again before it is not.
            run.checkpoint_step, run.deaths = payload["step"], 0
            self._book.dirty.add(f"run/{run.run}")
        self._shown.wake()

    def _is_old(self, owner: str) -> bool:
        """Whether a run or job ended so long ago that its events are let go."""
        ended = self._book.jobs.get(owner) or self._book.runs.get(owner)
        if ended is None or not ended.HasField("finished_at"):
            return False
        return self._clock.now() - ended.finished_at.ToDatetime(tzinfo=UTC) > _REMEMBERED

    def _tidy(self) -> None:
        if self._clock.monotonic() >= self._tidied_at + _TIDY_S:
            self._tidied_at = self._clock.monotonic()
            for owner in filter(self._is_old, self.events.owners()):
                self.events.forget(owner)

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
                self._book.advance(job, found, models, now)

    @staticmethod
    def _dataset_of(job: tr.JobSnapshot, snapshots: list[DatasetSnapshot]) -> DatasetSnapshot | None:
        """Its publication; else the one that says it is for this job; else the newest ready one of that name."""
        if job.publication:
            return next((s for s in snapshots if s.publication.publication == job.publication), None)
        named = [s for s in snapshots if s.publication.owner == job.owner and s.publication.dataset == job.dataset]
        # A request that was refused stands for no name: the job of that name waits for the next, mended one.
        named = [s for s in named if s.code != REFUSED or s.publication.job == job.job]
        ranks = [(s.publication.job == job.job, s.state == DATASET_STATE_READY) for s in named]
        accepted = [s.publication.accepted_at.ToNanoseconds() for s in named]
        return max(zip(ranks, accepted, named, strict=True), key=lambda found: found[:2], default=(None, None, None))[2]

    def _order(self, run: tr.RunSnapshot) -> AttemptOrder:
        return order_of(run, self._bases, self._datasets.values(), self._config.training_processes)

    def _written(self, key: str) -> int:
        """Attempt of the run as the state topic has it; 0 if it has none."""
        record = self._shown.get(key)
        return record.run.attempt if record is not None and record.run.state in ACTIVE else 0

    # Writing.

    def _write(self) -> None:
        """Writes what changed: a change of state at once, mere progress every second."""
        now = self._clock.monotonic()
        due = {}
        for key in list(self._book.dirty):
            record, known = self._book.record(key), self._shown.get(key)
            moved = known is None or _vital(known) != _vital(record)
            if moved or now - self._written_at.get(key, 0.0) >= _PROGRESS_S:
                due[key] = record
        if not due:
            return
        self._writer.put_all(due)
        self._count()
        for key, record in due.items():
            known = self._shown.get(key)
            if known is None or _state(known) != _state(record) or _waits_anew(known, record):
                self._announce(record)
            self._written_at[key] = now
            self._book.dirty.discard(key)
            self._shown.show(key, record)

    def _count(self) -> None:
        """Gauges of jobs and runs by state, in their proto names without the prefix."""
        metrics = self._telemetry.metrics
        jobs = Counter(tr.JobState.Name(job.state) for job in self._book.jobs.values())
        runs = Counter(tr.RunState.Name(run.state) for run in self._book.runs.values())
        for name, _ in tr.JobState.items():
            metrics.jobs.labels(name.removeprefix("JOB_STATE_").lower()).set(jobs[name])
        for name, _ in tr.RunState.items():
            metrics.runs.labels(name.removeprefix("RUN_STATE_").lower()).set(runs[name])
        self._gauges.show(self._book.runs.values(), ACTIVE)

    def _announce(self, record: tr.TrainingRecord) -> None:
        if record.WhichOneof("record") == "job":
            self._tell_event(job_event(record.job, self._writer.revision(f"job/{record.job.job}")))
        elif record.run.state == tr.RUN_STATE_SUCCEEDED:
            failpoint("training.before_notice")
            self._tell_ready(record.run)
        elif record.run.state == tr.RUN_STATE_WAITING:
            self._tell_event(waiting_event(record.run, self._writer.revision(f"run/{record.run.run}")))

    def _tell_event(self, event: tr.TrainingEvent) -> None:
        assert self._producer is not None
        stamp(event.time, self._clock.now())
        key, type_ = event.run or event.job, f"shortstack.{topics.TRAINING_EVENTS.name}"
        value = event.SerializeToString()
        self._producer.send(outbound(topics.TRAINING_EVENTS, key, value, type=type_, source=_SOURCE, clock=self._clock))

    def _tell_ready(self, run: tr.RunSnapshot) -> None:
        """One notice a run."""
        if self._ready is not None and run.state == tr.RUN_STATE_SUCCEEDED:
            self._ready.tell(f"{run.run}/{run.attempt}", run.run, run.SerializeToString(), run.finished_at)


def _state(record: tr.TrainingRecord) -> int:
    return record.job.state if record.WhichOneof("record") == "job" else record.run.state


def _waits_anew(known: tr.TrainingRecord, record: tr.TrainingRecord) -> bool:
    """Whether a job that is trained and not served waits for something else than before."""
    words = deploy_words(record.job)
    return bool(words) and words != deploy_words(known.job)


def _vital(record: tr.TrainingRecord) -> tuple[int, int, str, bool]:
    """What others act on; the rest is progress."""
    return _state(record), record.run.attempt, record.job.model, bool(record.run.message)
