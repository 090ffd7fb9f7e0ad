"""TrainingService: submits, reads and watches jobs and runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, Invalid, NotFound, Transient
from shortstack.core.identity import DEFAULT_OWNER, begun_by
from shortstack.declarations.base_models import BaseModels
from shortstack.declarations.train import refuse_what_is_set_here
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, DatasetSnapshot
from shortstack.streams import topics
from shortstack.streams.broker import Position, Producer
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateReader
from shortstack.training.book import JOB_ENDED, new_job, new_run
from shortstack.training.config import TrainingConfig
from shortstack.training.controller import TrainingController
from shortstack.training.estimate import Estimator
from shortstack.training.launcher import AttemptOrder
from shortstack.training.orders import order_of
from shortstack.training.requests import JobRequest, effective_batch
from shortstack.training.submitted import Submitted
from shortstack.training.v1 import training_pb2 as pb
from shortstack.training.v1.training_pb2_grpc import TrainingServiceServicer

__all__ = ["TrainingServicer"]

_ACK_S: Final = 5.0
_EFFECT_S: Final = 3.0
"""Together, and with the wait for a controller that is still reading, near a caller's own limit: the gateway's 10 s."""
_WATCH_S: Final = 1.0
_OPENED_S: Final = 4.0
"""How long a question waits for a controller that is still reading."""
_PAGE: Final = 20


class TrainingServicer(TrainingServiceServicer):
    """Reads from the controller; a submit or cancel goes over ``training.requests`` like everybody's."""

    def __init__(
        self,
        controller: TrainingController,
        datasets: StateReader[DatasetSnapshot],
        bases: BaseModels,
        producer: Producer,
        clock: Clock,
        config: TrainingConfig,
        *,
        opened_s: float = _OPENED_S,
        explain: Callable[[AttemptOrder], Mapping[str, Any]] | None = None,
    ) -> None:
        self._explain = explain or Estimator(config.storage_url, config.var / "estimate").explain
        self._opened_s, self._submitted = opened_s, Submitted(clock)
        self._controller, self._datasets, self._bases = controller, datasets, bases
        self._producer, self._clock = producer, clock
        self._ranks, self._serves_merged = config.training_processes, config.serves_merged

    def SubmitRun(self, request: pb.SubmitRunRequest, context: grpc.ServicerContext) -> pb.SubmitRunResponse:
        """Opens a job; answers once the request is acknowledged. The same id again is the same job."""
        job, owner = request.job or f"ftjob-{secrets.token_hex(12)}", request.owner or DEFAULT_OWNER
        if not request.dataset:
            raise Invalid("a job names its dataset", where=f"job {job}", param="dataset")
        where = f"job {job}"
        self._check(JobRequest.parse(request.request_json, where=where), where)
        known = self._records().get(f"job/{job}")
        if known is not None:
            if known.job.owner != owner:
                raise Conflict("there is a job of that id", where=where, param="job")
            return pb.SubmitRunResponse(job=known.job)
        given = orjson.loads(request.request_json)
        body = {name: given[name] for name in ("train", "deploy", "openai") if given.get(name) is not None}
        head = {"kind": "submit", "job": job, "owner": owner, "dataset": request.dataset}
        at = self._send(job, head | body)
        snapshot = new_job(job, owner, request.dataset, body, at, at)
        self._submitted.add(snapshot)
        return pb.SubmitRunResponse(job=snapshot)

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        """A job and its run, by the id of either, or how that alone begins."""
        return self._found(request.owner, request.id)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        """The owner's jobs with their runs, newest first."""
        self._controller.require_opened(self._opened_s)
        shown = self._records()
        owner = request.owner or DEFAULT_OWNER
        jobs = [r.job for r in shown.values() if r.WhichOneof("record") == "job" and r.job.owner == owner]
        jobs.sort(key=lambda job: (job.created_at.ToNanoseconds(), job.job), reverse=True)
        if request.after:
            ids = [job.job for job in jobs]
            if request.after not in ids:
                raise NotFound(f'no job "{request.after}"', param="after")
            jobs = jobs[ids.index(request.after) + 1 :]
        page = jobs[: request.limit or _PAGE]
        return pb.ListRunsResponse(runs=[self._with_run(shown, job) for job in page], has_more=len(jobs) > len(page))

    def WatchRun(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchRunResponse]:
        """Events so far, job and run, then each change; ends after the job has ended."""
        sent_events: set[tuple[str, int, int, str]] = set()
        last: pb.GetRunResponse | None = None
        while context.is_active():
            now = self._watched(request, context)
            if now is None:
                return
            for event in self._controller.events.of([now.job.job, now.run.run]):
                identity = (event.run or event.job, event.attempt, event.seq, event.type)
                if identity not in sent_events:
                    sent_events.add(identity)
                    yield pb.WatchRunResponse(event=event)
            if last is None or last.run != now.run:
                yield pb.WatchRunResponse(run=now.run)
            if last is None or last.job != now.job:
                yield pb.WatchRunResponse(job=now.job)
            last = now
            if now.job.state in JOB_ENDED:
                return
            before = now
            self._controller.wait(lambda shown, before=before: self._differs(shown, before), _WATCH_S)  # type: ignore[misc]

    def _watched(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse | None:
        """As `_found`, but waits for a controller that is still reading; None once nobody watches any more."""
        while context.is_active():
            with suppress(Transient):
                return self._found(request.owner, request.id)
        return None

    def CancelRun(self, request: pb.CancelRunRequest, context: grpc.ServicerContext) -> pb.CancelRunResponse:
        """Ends a job; final at once. One whose request is still under way, unknown here, ends when it comes."""
        try:
            job = self._found(request.owner, request.id).job
        except (NotFound, Transient):
            self._post(request.id, {"kind": "cancel", "job": request.id, "owner": request.owner or DEFAULT_OWNER})
            raise
        if job.state not in JOB_ENDED:
            self._send(job.job, {"kind": "cancel", "job": job.job, "owner": job.owner})
            if not self._controller.wait(lambda shown: _ended(shown.get(f"job/{job.job}")), _EFFECT_S):
                raise Transient(f"the cancel of {job.job} is not taken up yet", remedy="Ask for the job again.")
        return pb.CancelRunResponse(job=self._found(request.owner, job.job).job)

    def EstimateRun(self, request: pb.EstimateRunRequest, context: grpc.ServicerContext) -> pb.EstimateRunResponse:
        """Resolved settings, records, tokens and steps on the newest ready version of a dataset."""
        owner = request.owner or DEFAULT_OWNER
        mine = [s for s in self._datasets.values() if s.publication.owner == owner and s.state == DATASET_STATE_READY]
        named = [s for s in mine if s.publication.dataset == request.dataset]
        if not named:
            raise NotFound(f'no dataset "{request.dataset}" is ready', remedy="See: shortstack datasets list")
        dataset = max(named, key=lambda s: s.publication.accepted_at.ToNanoseconds())
        where = f"dataset {request.dataset}"
        wish = JobRequest.parse(request.request_json, where=where)
        self._check(wish, where)
        wish.require_renderable(
            prompt_format=dataset.publication.prompt_format,
            row_formats=dataset.row_formats,
            with_tools=dataset.with_tools,
            where=where,
        )
        resolved = wish.resolve(
            self._bases,
            version=dataset.version,
            records=dataset.counts.train,
            prompt_format=dataset.publication.prompt_format,
            ranks=self._ranks,
            where=where,
        )
        run = new_run(dataset, resolved, self._ranks, owner, self._clock.now())
        explained = self._explain(order_of(run, self._bases, [dataset], self._ranks))
        return pb.EstimateRunResponse(
            config_json=orjson.dumps(explained["config"]).decode(),
            records=explained["train"]["records"],
            tokens=explained["tokens"],
            steps=explained["schedule"]["max_steps"],
            explain_json=orjson.dumps(explained).decode(),
        )

    def ListEvents(self, request: pb.ListEventsRequest, context: grpc.ServicerContext) -> pb.ListEventsResponse:
        """Events of a job and its run, newest first."""
        found = self._found(request.owner, request.id)
        events = self._controller.events.of([found.job.job, found.run.run])[::-1]
        if request.after:
            ids = [f"{e.run or e.job}/{e.attempt}/{e.seq}" for e in events]
            events = events[ids.index(request.after) + 1 :] if request.after in ids else []
        page = events[: request.limit or _PAGE]
        return pb.ListEventsResponse(events=page, has_more=len(events) > len(page))

    def _check(self, wish: JobRequest, where: str) -> None:
        """Refuses now what would fail after the dataset is prepared, or after the training."""
        refuse_what_is_set_here(wish.train, where=where)
        wish.require_servable(self._bases, serves_merged=self._serves_merged, where=where)
        effective_batch(wish.openai.get("hyperparameters") or {}, self._ranks)

    def _send(self, key: str, message: Mapping[str, Any]) -> datetime:
        """Sends a request; when it was appended.

        Raises:
            Transient: it was not acknowledged. It may be appended all the same.
        """
        try:
            position = self._post(key, message).result(_ACK_S)
        except TimeoutError as error:
            raise Transient(
                f"the broker did not acknowledge the request within {_ACK_S:.0f} s",
                where=f"job {key}",
                remedy="Ask again with the same id: it is the same job.",
            ) from error
        return datetime.fromtimestamp(position.timestamp_ms / 1000, UTC)

    def _post(self, key: str, message: Mapping[str, Any]) -> Future[Position]:
        value = orjson.dumps(message)
        type_ = f"shortstack.training.{message['kind']}"
        event = outbound(topics.TRAINING_REQUESTS, key, value, type=type_, source="training", clock=self._clock)
        return self._producer.send(event)

    def _records(self) -> dict[str, tr.TrainingRecord]:
        """What the controller shows, and what is on its way to it."""
        # In this order: what is dropped from the second is in the first.
        waiting = self._submitted.beside(self._controller.shown())
        return {f"job/{name}": tr.TrainingRecord(job=job) for name, job in waiting.items()} | self._controller.shown()

    def _found(self, owner: str, wanted: str) -> pb.GetRunResponse:
        shown = self._records()
        wanted = _whole_id(shown, owner or DEFAULT_OWNER, wanted)
        record = shown.get(f"job/{wanted}")
        if record is None:
            run = shown.get(f"run/{wanted}")
            jobs = [shown[f"job/{job}"].job for job in run.run.jobs] if run is not None else []
            record = next((shown[f"job/{j.job}"] for j in jobs if j.owner == (owner or DEFAULT_OWNER)), None)
        if record is None or record.job.owner != (owner or DEFAULT_OWNER):
            self._controller.require_opened(self._opened_s, for_miss=True)
            raise NotFound(f'no job or run "{wanted}"', remedy="See: shortstack runs list", param="id")
        return self._with_run(shown, record.job)

    @staticmethod
    def _with_run(shown: Mapping[str, tr.TrainingRecord], job: tr.JobSnapshot) -> pb.GetRunResponse:
        run = shown.get(f"run/{job.run}")
        return pb.GetRunResponse(job=job, run=run.run if run is not None else None)

    @staticmethod
    def _differs(shown: Mapping[str, tr.TrainingRecord], before: pb.GetRunResponse) -> bool:
        job, run = shown.get(f"job/{before.job.job}"), shown.get(f"run/{before.run.run}")
        return (job is not None and job.job != before.job) or (run is not None and run.run != before.run)


def _whole_id(shown: Mapping[str, tr.TrainingRecord], owner: str, given: str) -> str:
    """The id of the owner's job or run that ``given`` alone begins; ``given`` itself if it is one, or begins none."""
    if f"job/{given}" in shown or f"run/{given}" in shown:
        return given
    mine = [r.job for r in shown.values() if r.WhichOneof("record") == "job" and r.job.owner == owner]
    return begun_by(given, {one for job in mine for one in (job.job, job.run) if one}, param="id") or given


def _ended(record: tr.TrainingRecord | None) -> bool:
    return record is not None and record.job.state in JOB_ENDED
