"""TrainingService: submits, reads and watches jobs and runs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

import grpc
import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Invalid, NotFound
from shortstack.core.identity import DEFAULT_OWNER
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, DatasetSnapshot
from shortstack.streams import topics
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import outbound
from shortstack.streams.state import StateReader
from shortstack.training.book import JOB_ENDED
from shortstack.training.config import TrainingConfig
from shortstack.training.controller import TrainingController
from shortstack.training.requests import JobRequest
from shortstack.training.v1 import training_pb2 as pb
from shortstack.training.v1.training_pb2_grpc import TrainingServiceServicer

__all__ = ["TrainingServicer"]

_ACK_S: Final = 10.0
_EFFECT_S: Final = 10.0
_WATCH_S: Final = 1.0
_PAGE: Final = 20
_TOKENS_UNKNOWN: Final = 0


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
    ) -> None:
        self._controller, self._datasets, self._bases = controller, datasets, bases
        self._producer, self._clock = producer, clock
        self._ranks, self._serves_merged = config.training_processes, config.serves_merged

    def SubmitRun(self, request: pb.SubmitRunRequest, context: grpc.ServicerContext) -> pb.SubmitRunResponse:
        """Opens a job; the same id again is the same job."""
        job = request.job or f"ftjob-{secrets.token_hex(12)}"
        if not request.dataset:
            raise Invalid("a job names its dataset", where=f"job {job}", param="dataset")
        where = f"job {job}"
        self._check(JobRequest.parse(request.request_json, where=where), where)
        given = orjson.loads(request.request_json)
        body = {name: given[name] for name in ("train", "deploy", "openai") if given.get(name) is not None}
        head = {"kind": "submit", "job": job, "owner": request.owner or DEFAULT_OWNER, "dataset": request.dataset}
        self._send(job, head | body)
        self._controller.wait(lambda shown: f"job/{job}" in shown, _EFFECT_S)
        return pb.SubmitRunResponse(job=self._job(request.owner, job))

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        """A job and its run, by the id of either."""
        return self._found(request.owner, request.id)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        """The owner's jobs with their runs, newest first."""
        shown = self._controller.shown()
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
            now = self._found(request.owner, request.id)
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

    def CancelRun(self, request: pb.CancelRunRequest, context: grpc.ServicerContext) -> pb.CancelRunResponse:
        """Ends a job; final at once."""
        job = self._found(request.owner, request.id).job
        if job.state not in JOB_ENDED:
            self._send(job.job, {"kind": "cancel", "job": job.job, "owner": job.owner})
            self._controller.wait(lambda shown: shown[f"job/{job.job}"].job.state in JOB_ENDED, _EFFECT_S)
        return pb.CancelRunResponse(job=self._job(request.owner, job.job))

    def EstimateRun(self, request: pb.EstimateRunRequest, context: grpc.ServicerContext) -> pb.EstimateRunResponse:
        """Resolved settings and steps on the newest ready version of a dataset. Tokens are known to the trainer alone
        (``--explain``) and are 0 here."""
        owner = request.owner or DEFAULT_OWNER
        mine = [s for s in self._datasets.values() if s.publication.owner == owner and s.state == DATASET_STATE_READY]
        named = [s for s in mine if s.publication.dataset == request.dataset]
        if not named:
            raise NotFound(f'no dataset "{request.dataset}" is ready', remedy="See: shortstack datasets list")
        dataset = max(named, key=lambda s: s.publication.accepted_at.ToNanoseconds())
        where = f"dataset {request.dataset}"
        wish = JobRequest.parse(request.request_json, where=where)
        self._check(wish, where)
        resolved = wish.resolve(
            self._bases,
            version=dataset.version,
            records=dataset.counts.train,
            prompt_format=dataset.publication.prompt_format,
            ranks=self._ranks,
            where=where,
        )
        schedule = resolved.config.schedule(rows=dataset.counts.train, ranks=self._ranks)
        return pb.EstimateRunResponse(
            config_json=resolved.config.model_dump_json(),
            records=dataset.counts.train,
            tokens=_TOKENS_UNKNOWN,
            steps=schedule.max_steps,
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
        wish.require_servable(self._bases, serves_merged=self._serves_merged, where=where)

    def _send(self, key: str, message: Mapping[str, Any]) -> None:
        value = orjson.dumps(message)
        type_ = f"shortstack.training.{message['kind']}"
        event = outbound(topics.TRAINING_REQUESTS, key, value, type=type_, source="training", clock=self._clock)
        self._producer.send(event).result(_ACK_S)

    def _job(self, owner: str, job: str) -> tr.JobSnapshot:
        return self._found(owner, job).job

    def _found(self, owner: str, wanted: str) -> pb.GetRunResponse:
        shown = self._controller.shown()
        record = shown.get(f"job/{wanted}")
        if record is None:
            run = shown.get(f"run/{wanted}")
            jobs = [shown[f"job/{job}"].job for job in run.run.jobs] if run is not None else []
            record = next((shown[f"job/{j.job}"] for j in jobs if j.owner == (owner or DEFAULT_OWNER)), None)
        if record is None or record.job.owner != (owner or DEFAULT_OWNER):
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
