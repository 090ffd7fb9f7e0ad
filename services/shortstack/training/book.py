"""Jobs and runs: what is wished, what is, and what follows. Pure: the clock and the launcher are arguments elsewhere.

A job is a wish; equal wishes share a run. A job's state follows from its dataset, its run and its model, so it can be
worked out again at any time: reading every topic from the beginning changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from shortstack.core.errors import Poison
from shortstack.core.identity import model_name
from shortstack.declarations.base_models import BaseModels
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.requests import JobRequest, ResolvedRun

__all__ = ["JOB_ENDED", "RUN_ENDED", "JobBook", "new_job", "new_run", "stamp"]

JOB_ENDED: Final = frozenset({tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED})
RUN_ENDED: Final = frozenset({tr.RUN_STATE_SUCCEEDED, tr.RUN_STATE_FAILED, tr.RUN_STATE_CANCELLED})
STEPS: Final = ("validate", "curate", "train", "export", "prove", "deploy")
_PLAIN_SUFFIX: Final = "model"
_NOT_ACCEPTED: Final = "dataset_not_accepted"
_UNACCEPTED: Final = "See that ingestion and assembly run, publish the dataset, and ask for the job again."
_MODEL_OVER: Final = frozenset({sv.MODEL_STATE_REFUSED, sv.MODEL_STATE_WITHDRAWN})


def stamp(field: Timestamp, at: datetime) -> None:
    """Sets a protobuf timestamp."""
    field.FromDatetime(at.astimezone(UTC).replace(tzinfo=None))


def new_job(
    job: str, owner: str, dataset: str, request: Mapping[str, object], requested_at: datetime, now: datetime
) -> tr.JobSnapshot:
    """A job as its request opens it; whoever reads the same request has the same snapshot but for ``updated_at``."""
    snapshot = tr.JobSnapshot(
        job=job,
        owner=owner,
        dataset=dataset,
        state=tr.JOB_STATE_VALIDATING_FILES,
        request_json=orjson.dumps(request, option=orjson.OPT_SORT_KEYS).decode(),
        steps=[tr.JobStep(name=name, state=tr.STEP_STATE_WAITING) for name in STEPS],
    )
    for field in (snapshot.created_at, snapshot.opened_at, snapshot.wished_at):
        stamp(field, requested_at)
    stamp(snapshot.updated_at, now)
    return snapshot


def new_run(
    dataset: ds.DatasetSnapshot, resolved: ResolvedRun, ranks: int, owner: str, now: datetime
) -> tr.RunSnapshot:
    """A run before its first attempt."""
    run = tr.RunSnapshot(
        run=resolved.run,
        attempt=1,
        owner=owner,
        state=tr.RUN_STATE_QUEUED,
        publication=dataset.publication.publication,
        dataset=dataset.publication.dataset,
        version=dataset.version,
        base_model=resolved.base.name,
        config_json=orjson.dumps(resolved.config.model_dump(mode="json")).decode(),
        batch_size=resolved.config.effective_batch(ranks),
    )
    stamp(run.created_at, now)
    return run


class JobBook:
    """All jobs and runs by id; methods change snapshots and say by ``dirty`` which must be written.

    Args:
        ranks: of a run.
        since: from when on it is read. A job does not wait for its dataset while nobody looks.
        dataset_wait: how long a job waits for its dataset to be accepted.
    """

    def __init__(
        self, bases: BaseModels, ranks: int, *, serves_merged: bool, since: datetime, dataset_wait: timedelta
    ) -> None:
        self._bases, self._ranks, self._serves_merged = bases, ranks, serves_merged
        self._since, self._dataset_wait = since, dataset_wait
        self.jobs: dict[str, tr.JobSnapshot] = {}
        self.runs: dict[str, tr.RunSnapshot] = {}
        self.dirty: set[str] = set()

    def restore(self, records: Mapping[str, tr.TrainingRecord]) -> None:
        """Takes what the state topic holds."""
        for record in records.values():
            if record.WhichOneof("record") == "job":
                self.jobs[record.job.job] = record.job
            else:
                self.runs[record.run.run] = record.run

    def record(self, key: str) -> tr.TrainingRecord:
        """What the state topic is told of ``job/ID`` or ``run/ID``."""
        kind, _, name = key.partition("/")
        if kind == "job":
            return tr.TrainingRecord(job=self.jobs[name])
        return tr.TrainingRecord(run=self.runs[name])

    # Wishes.

    def wish(self, snapshot: ds.DatasetSnapshot, now: datetime) -> None:
        """Opens the jobs that a dataset's publications ask for; one asked for again after it failed opens anew."""
        publication = snapshot.publication
        for wish in snapshot.wishes:
            at = wish.requested_at.ToDatetime(tzinfo=UTC)
            known = self.jobs.get(wish.job)
            if known is not None:
                self._wish_again(known, publication.publication, at, now)
                continue
            request = {
                "train": orjson.loads(wish.train_json),
                **({"deploy": orjson.loads(wish.deploy_json)} if wish.deploy_json else {}),
            }
            opened = self.open(wish.job, publication.owner, publication.dataset, request, at, now)
            opened.publication = publication.publication

    def open(
        self, job: str, owner: str, dataset: str, request: Mapping[str, object], requested_at: datetime, now: datetime
    ) -> tr.JobSnapshot:
        """Opens a job, unless there is one of that id."""
        if job in self.jobs:
            return self.jobs[job]
        self.jobs[job] = new_job(job, owner, dataset, request, requested_at, now)
        self.dirty.add(f"job/{job}")
        return self.jobs[job]

    def _wish_again(self, job: tr.JobSnapshot, publication: str, requested_at: datetime, now: datetime) -> None:
        """The first wish that names the publication of a submitted job is that job's own; a later one asks anew."""
        own = not job.publication
        if own:
            job.publication = publication
            self.touch(job, now)
            if job.error_code == _NOT_ACCEPTED:  # it came after all
                self._reopen(job, max(requested_at, job.wished_at.ToDatetime(tzinfo=UTC)), now)
        if requested_at <= job.wished_at.ToDatetime(tzinfo=UTC):
            return
        stamp(job.wished_at, requested_at)
        self.touch(job, now)
        if not own and job.state in (tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED):
            self._reopen(job, requested_at, now)

    def _reopen(self, job: tr.JobSnapshot, requested_at: datetime, now: datetime) -> None:
        stamp(job.opened_at, requested_at)
        run = self.runs.get(job.run)
        if run is not None and run.state in (tr.RUN_STATE_FAILED, tr.RUN_STATE_CANCELLED):
            self._requeue(run)
        job.state, job.run, job.error, job.remedy, job.error_code = tr.JOB_STATE_VALIDATING_FILES, "", "", "", ""
        job.cancel_requested, job.model = False, ""
        job.ClearField("finished_at")
        for step in job.steps:
            step.state, step.message, step.done, step.total = tr.STEP_STATE_WAITING, "", 0, 0
        self.touch(job, now)

    def _requeue(self, run: tr.RunSnapshot) -> None:
        run.attempt += 1
        if run.state == tr.RUN_STATE_CANCELLED:  # its checkpoints are gone, so how far it once came forgives nothing
            run.checkpoint_step = 0
        run.state, run.error, run.remedy = tr.RUN_STATE_QUEUED, "", ""
        run.deaths = run.unstarted = 0
        run.ClearField("finished_at")
        run.ClearField("not_before")
        self.dirty.add(f"run/{run.run}")

    def cancel(self, job: tr.JobSnapshot, requested_at: datetime, now: datetime) -> None:
        """Ends a job at once; wins over a later success. A cancel from before it was asked for anew is stale."""
        if job.state in JOB_ENDED or requested_at < job.opened_at.ToDatetime(tzinfo=UTC):
            return
        job.cancel_requested = True
        for step in job.steps:
            if step.state in (tr.STEP_STATE_WAITING, tr.STEP_STATE_RUNNING):
                step.state = tr.STEP_STATE_CANCELLED
        self.end(job, tr.JOB_STATE_CANCELLED, now)

    # What follows.

    def advance(
        self,
        job: tr.JobSnapshot,
        dataset: ds.DatasetSnapshot | None,
        models: Mapping[str, sv.ModelSnapshot],
        now: datetime,
    ) -> None:
        """Works out where the job is; ``models`` are those that serving tells of, by name."""
        if job.state in JOB_ENDED:
            return
        if not job.run:
            self._curate(job, dataset, now)
        run = self.runs.get(job.run)
        if run is not None and job.state not in JOB_ENDED:
            self._follow_run(job, run, now)
            if run.state == tr.RUN_STATE_SUCCEEDED and job.state not in JOB_ENDED:
                self._deploy(job, run, models, now)

    def _curate(self, job: tr.JobSnapshot, dataset: ds.DatasetSnapshot | None, now: datetime) -> None:
        if dataset is None:
            self._await_dataset(job, now)
            return
        self._step(job, "validate", tr.STEP_STATE_DONE)
        if dataset.state in (ds.DATASET_STATE_FAILED, ds.DATASET_STATE_DELETED):
            self._step(job, "curate", tr.STEP_STATE_FAILED, message=dataset.message)
            self.fail(job, dataset.code or "dataset_failed", dataset.message, dataset.remedy, now)
            return
        if dataset.state != ds.DATASET_STATE_READY:
            words = f"{dataset.message} {dataset.remedy}".strip()
            self._step(
                job, "curate", tr.STEP_STATE_RUNNING, words, dataset.formatted, dataset.announced, unit="records"
            )
            return
        self._step(job, "curate", tr.STEP_STATE_DONE, "", dataset.counts.written, dataset.counts.records, "records")
        try:
            resolved = self._resolve(job, dataset)
        except Poison as error:
            self._step(job, "validate", tr.STEP_STATE_FAILED, error.what)
            self.fail(job, "invalid_request", str(error), error.remedy, now)
            return
        job.run = resolved.run
        job.state = tr.JOB_STATE_QUEUED
        self._join(job, dataset, resolved, now)
        self.touch(job, now)

    def _await_dataset(self, job: tr.JobSnapshot, now: datetime) -> None:
        since = max(job.opened_at.ToDatetime(tzinfo=UTC), self._since)
        if now - since < self._dataset_wait:
            self._step(job, "validate", tr.STEP_STATE_RUNNING, message="waiting for the dataset to be accepted")
            return
        minutes = self._dataset_wait.total_seconds() / 60
        error = f'dataset "{job.dataset}" was not accepted within {minutes:g} minutes'
        self._step(job, "validate", tr.STEP_STATE_FAILED, error)
        self.fail(job, _NOT_ACCEPTED, error, _UNACCEPTED, now)

    def _resolve(self, job: tr.JobSnapshot, dataset: ds.DatasetSnapshot) -> ResolvedRun:
        where = f"job {job.job}"
        request = JobRequest.parse(job.request_json, where=where)
        request.require_servable(self._bases, serves_merged=self._serves_merged, where=where)
        request.require_renderable(
            prompt_format=dataset.publication.prompt_format,
            row_formats=dataset.row_formats,
            with_tools=dataset.with_tools,
            where=where,
        )
        return request.resolve(
            self._bases,
            version=dataset.version,
            records=dataset.counts.train,
            prompt_format=dataset.publication.prompt_format,
            ranks=self._ranks,
            where=where,
        )

    def _join(self, job: tr.JobSnapshot, dataset: ds.DatasetSnapshot, resolved: ResolvedRun, now: datetime) -> None:
        """Joins the run of that id, opening it, or its next attempt after a failure, where need be."""
        run = self.runs.get(resolved.run)
        if run is None:
            run = new_run(dataset, resolved, self._ranks, job.owner, now)
            self.runs[resolved.run] = run
        elif run.state in (tr.RUN_STATE_FAILED, tr.RUN_STATE_CANCELLED):
            self._requeue(run)
        if job.job not in run.jobs:
            run.jobs.append(job.job)
        self.dirty.add(f"run/{run.run}")

    def _follow_run(self, job: tr.JobSnapshot, run: tr.RunSnapshot, now: datetime) -> None:
        training = {
            tr.RUN_STATE_QUEUED: tr.STEP_STATE_WAITING,
            tr.RUN_STATE_WAITING: tr.STEP_STATE_WAITING,
            tr.RUN_STATE_STARTING: tr.STEP_STATE_RUNNING,
            tr.RUN_STATE_RUNNING: tr.STEP_STATE_RUNNING,
            tr.RUN_STATE_FAILED: tr.STEP_STATE_FAILED,
            tr.RUN_STATE_CANCELLED: tr.STEP_STATE_CANCELLED,
        }.get(run.state, tr.STEP_STATE_DONE)
        exporting = run.state == tr.RUN_STATE_EXPORTING
        words = (not exporting and run.message) or (f"loss {run.loss:.3f}" if run.step else "")
        self._step(job, "train", training, words, run.step, run.max_steps, "steps")
        if run.state in (tr.RUN_STATE_QUEUED, tr.RUN_STATE_WAITING):
            return
        if job.state == tr.JOB_STATE_QUEUED:
            job.state = tr.JOB_STATE_RUNNING
            self.touch(job, now)
        if run.tokens and job.trained_tokens != run.tokens:
            job.trained_tokens = run.tokens
            self.dirty.add(f"job/{job.job}")
        if exporting:
            self._step(job, "export", tr.STEP_STATE_RUNNING, run.message)
        elif run.state == tr.RUN_STATE_SUCCEEDED:
            self._step(job, "export", tr.STEP_STATE_DONE)
        elif run.state == tr.RUN_STATE_FAILED:
            self.fail(job, "training_failed", run.error, run.remedy, now)
        elif run.state == tr.RUN_STATE_CANCELLED:
            self.fail(job, "training_cancelled", "the run was cancelled", "", now)

    def _model_of(
        self, job: tr.JobSnapshot, run: tr.RunSnapshot, request: JobRequest, models: Mapping[str, sv.ModelSnapshot]
    ) -> str:
        """The name that the model of a job gets.

        A wish without a suffix takes the dataset's name. Not where the dataset is OpenAI's, whose name is a number; nor
        where these weights have the plain name already, from a version that knew no other: what exists keeps its name,
        and a request that is read again makes no second model of it.
        """

        def named(suffix: str) -> str:
            return model_name(run.base_model, job.owner, suffix, run.export.digest)

        given = request.deploy.suffix if request.deploy is not None else None
        if given:
            return named(given)
        plain = named(_PLAIN_SUFFIX)
        exists = plain in models or any(other.model == plain for other in self.jobs.values())
        return plain if request.openai or exists else named(job.dataset)

    def _deploy(
        self, job: tr.JobSnapshot, run: tr.RunSnapshot, models: Mapping[str, sv.ModelSnapshot], now: datetime
    ) -> None:
        request = JobRequest.parse(job.request_json, where=job.job)
        if request.deploy is None:
            self.end(job, tr.JOB_STATE_SUCCEEDED, now)
            return
        model = models.get(job.model) if job.model else None
        if not job.model:
            job.model = self._model_of(job, run, request, models)
            self.touch(job, now)
        state = model.state if model is not None else sv.MODEL_STATE_UNSPECIFIED
        if model is not None and state in _MODEL_OVER and _before(model.updated_at, job.opened_at):
            # It was refused or withdrawn before this job asked for it; serving will try it anew.
            state = sv.MODEL_STATE_LOADING
        if state == sv.MODEL_STATE_SERVED:
            self._step(job, "prove", tr.STEP_STATE_DONE)
            self._step(job, "deploy", tr.STEP_STATE_DONE, model.message if model is not None else "")
            self.end(job, tr.JOB_STATE_SUCCEEDED, now)
        elif model is not None and state in _MODEL_OVER:
            self._step(job, "prove", tr.STEP_STATE_FAILED, model.message)
            self._step(job, "deploy", tr.STEP_STATE_FAILED)
            self.fail(job, "deployment_failed", model.message, model.remedy, now)
        else:
            proving = state == sv.MODEL_STATE_PROVING
            waiting = "waiting for serving" if model is None else model.message
            self._step(job, "prove", tr.STEP_STATE_RUNNING if proving else tr.STEP_STATE_WAITING)
            self._step(job, "deploy", tr.STEP_STATE_RUNNING, waiting)

    # Changing snapshots.

    def touch(self, job: tr.JobSnapshot, now: datetime) -> None:
        """Marks a job as changed."""
        stamp(job.updated_at, now)
        self.dirty.add(f"job/{job.job}")

    def end(self, job: tr.JobSnapshot, state: tr.JobState.ValueType, now: datetime) -> None:
        """Gives a job its last state."""
        job.state = state
        stamp(job.finished_at, now)
        self.touch(job, now)

    def fail(self, job: tr.JobSnapshot, code: str, error: str, remedy: str, now: datetime) -> None:
        """Ends a job that failed."""
        job.error_code, job.error, job.remedy = code, error, remedy
        self.end(job, tr.JOB_STATE_FAILED, now)

    def _step(
        self,
        job: tr.JobSnapshot,
        name: str,
        state: tr.StepState.ValueType,
        message: str = "",
        done: int = 0,
        total: int = 0,
        unit: str = "",
    ) -> None:
        # A snapshot that another version wrote may have no such step.
        step = next((s for s in job.steps if s.name == name), None) or job.steps.add()
        wanted = tr.JobStep(name=name, state=state, message=message, done=done, total=total, unit=unit)
        if step != wanted:
            step.CopyFrom(wanted)
            self.dirty.add(f"job/{job.job}")


def _before(one: Timestamp, other: Timestamp) -> bool:
    return one.ToNanoseconds() < other.ToNanoseconds()
