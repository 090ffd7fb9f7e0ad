"""Fine-tuning jobs by gRPC: TrainingService keeps them, IngestionService is told what to train on."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc.aio
import orjson

from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Conflict, Invalid, NotFound, Poison, ShortstackError, Transient
from shortstack.declarations.base_models import BaseModels
from shortstack.gateway.errors import invalid
from shortstack.gateway.files.store import FileStore, StoredFile
from shortstack.gateway.fine_tuning import mapping
from shortstack.gateway.fine_tuning.requests import JobWish
from shortstack.gateway.fine_tuning.results import JobResults
from shortstack.gateway.rpc import call
from shortstack.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.v1 import training_pb2, training_pb2_grpc

__all__ = ["JobService"]

_PURPOSE: Final = "fine-tune"
_EVENTS_KEPT: Final = 2000
_SCAN: Final = 100


class JobService:
    """Creates, reads and ends jobs of one owner at a time.

    Args:
        training: channel to training.
        ingestion: channel to ingestion.
        files: uploaded files.
        results: files that jobs leave.
        bases: base models and their aliases.
        timeout_s: of one call.
    """

    def __init__(
        self,
        training: grpc.aio.Channel,
        ingestion: grpc.aio.Channel,
        files: FileStore,
        results: JobResults,
        bases: BaseModels,
        timeout_s: float,
    ) -> None:
        self._training = training_pb2_grpc.TrainingServiceStub(training)
        self._ingestion = ingestion_pb2_grpc.IngestionServiceStub(ingestion)
        self._files = files
        self._results = results
        self._bases = bases
        self._timeout_s = timeout_s

    async def create(self, owner: str, wish: JobWish, key: str | None = None) -> dict[str, Any]:
        """Opens a job, then publishes its file; the job exists from the first of the two on.

        Args:
            key: drawn by the client, the same for a repeat: the job's id follows from it. Without it nobody finds a
                job whose creation did not come to its end, so that one is cancelled.

        Raises:
            ApiError: 400, the file is not there or not for fine-tuning.
            Invalid: an unknown base model.
            Conflict: the key is that of another request, or of a job that was cancelled before its file was published.
            Transient: a service is away.
        """
        base = self._bases.get(wish.model).name
        file = await self._training_file(owner, wish.training_file)
        number = secrets.token_hex(12) if key is None else sha256_hex(f"{owner}\n{key}".encode())[:24]
        job, dataset = f"ftjob-{number}", f"ft-{number}"
        train = {"base_model": base}
        deploy = {} if wish.suffix is None else {"suffix": wish.suffix}
        openai = {
            "model": base,
            "training_file": wish.training_file,
            "seed": wish.seed,
            "metadata": dict(wish.metadata),
            "hyperparameters": dict(wish.hyperparameters),
        }
        request = {"train": train, "deploy": deploy, "openai": openai}
        publication = {**_publication(dataset, file), "train": train, "deploy": deploy, "job": job}
        try:
            opened = await self._submit(owner, job, dataset, request)
            if _is_under_way(opened):  # a repeat
                return await self.get(owner, job)
            await self._publish(owner, publication)
        except Transient:
            if key is None:
                await self._withdraw(owner, job)
            raise
        return mapping.job(opened, None)

    async def _submit(self, owner: str, job: str, dataset: str, request: Mapping[str, Any]) -> tr.JobSnapshot:
        text = orjson.dumps(request).decode()
        submit = training_pb2.SubmitRunRequest(owner=owner, job=job, dataset=dataset, request_json=text)
        opened = (await call(self._training.SubmitRun, submit, self._timeout_s, "training")).job
        if orjson.loads(opened.request_json) != orjson.loads(text):
            raise Conflict(
                f"this Idempotency-Key is that of job {job}, which was created with another request",
                remedy="Send another key with another request.",
            )
        return opened

    async def _training_file(self, owner: str, file_id: str) -> StoredFile:
        try:
            file = await asyncio.to_thread(self._files.get, owner, file_id, param="training_file")
        except NotFound as error:
            raise invalid(f"invalid training_file: {error}", "training_file", "file_not_found") from error
        if file.purpose != _PURPOSE:
            raise invalid(
                f"invalid training_file: {file_id} was uploaded for '{file.purpose}', not for '{_PURPOSE}'.",
                "training_file",
                "invalid_file_purpose",
            )
        return file

    async def _publish(self, owner: str, publication: Mapping[str, Any]) -> None:
        request = ingestion_pb2.PublishDatasetRequest(owner=owner, request_json=orjson.dumps(publication))
        try:
            await call(self._ingestion.PublishDataset, request, self._timeout_s, "ingestion")
        except Poison:
            # A repeat fails alike. Without its dataset the job would wait until training gives it up.
            await self._withdraw(owner, str(publication["job"]))
            raise

    async def _withdraw(self, owner: str, job: str) -> None:
        """Cancels a job, whether or not it was opened. That this fails too must not hide why: training gives a job
        without a dataset up by itself, later."""
        cancel = training_pb2.CancelRunRequest(owner=owner, id=job)
        with contextlib.suppress(ShortstackError):
            await call(self._training.CancelRun, cancel, self._timeout_s, "training")

    async def get(self, owner: str, job: str) -> dict[str, Any]:
        """One job.

        Raises:
            NotFound: the owner has no such job.
        """
        return (await self._shown(owner, [await self._found(owner, job)]))[0]

    async def _shown(
        self, owner: str, found: Sequence[training_pb2.GetRunResponse], *, a_list: bool = False
    ) -> list[dict[str, Any]]:
        results = await self._results.of(owner, found, a_list=a_list)
        return [mapping.job(one.job, one.run, results[one.job.job]) for one in found]

    async def _found(self, owner: str, job: str) -> training_pb2.GetRunResponse:
        request = training_pb2.GetRunRequest(owner=owner, id=job)
        try:
            found = await call(self._training.GetRun, request, self._timeout_s, "training")
        except NotFound as error:
            raise _no_such_job(job) from error
        if found.job.job != job:
            # The service finds runs by id too; this API knows jobs alone.
            raise _no_such_job(job)
        return found

    async def listed(
        self, owner: str, *, after: str, limit: int, metadata: Mapping[str, str] | None
    ) -> tuple[list[dict[str, Any]], bool]:
        """A page of jobs, the newest first, and whether there are more.

        Args:
            owner: whose.
            after: id after which to go on; empty from the start.
            limit: most jobs.
            metadata: pairs that a job must have; None: jobs without metadata; empty: all.
        """
        found: list[training_pb2.GetRunResponse] = []
        while True:
            request = training_pb2.ListRunsRequest(owner=owner, limit=_SCAN, after=after)
            try:
                runs = await call(self._training.ListRuns, request, self._timeout_s, "training")
            except NotFound as error:
                raise Invalid(f'no job "{after}" to go on after', param="after") from error
            found += [one for one in runs.runs if _matches(mapping.metadata_of(one.job), metadata)]
            if len(found) > limit or not runs.has_more or not runs.runs:
                return await self._shown(owner, found[:limit], a_list=True), len(found) > limit
            after = runs.runs[-1].job.job

    async def cancel(self, owner: str, job: str) -> dict[str, Any]:
        """Ends a job; final at once. A job that is cancelled already stays so.

        Raises:
            NotFound: the owner has no such job.
            ApiError: 400, it has succeeded or failed already.
        """
        found = await self._found(owner, job)
        if found.job.state in (tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED):
            status = mapping.STATUSES[found.job.state]
            raise invalid(f"Job has already completed: {job}, status {status}.", "fine_tuning_job_id", "job_ended")
        request = training_pb2.CancelRunRequest(owner=owner, id=job)
        try:
            cancelled = await call(self._training.CancelRun, request, self._timeout_s, "training")
        except Conflict as error:
            raise invalid(str(error), "fine_tuning_job_id", "job_ended") from error
        return mapping.job(cancelled.job, found.run)

    async def events(self, owner: str, job: str, *, after: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """A page of a job's events, the newest first, and whether there are more.

        Raises:
            NotFound: the owner has no such job.
            ApiError: 400, ``after`` is no event's id.
        """
        await self._found(owner, job)
        cursor = mapping.event_cursor(after) if after else ""
        if cursor is None:
            raise invalid(f"Invalid 'after': '{after}' is no event's id.", "after", "invalid_value")
        request = training_pb2.ListEventsRequest(owner=owner, id=job, limit=limit, after=cursor)
        found = await call(self._training.ListEvents, request, self._timeout_s, "training")
        return [mapping.event(one) for one in found.events], found.has_more

    async def checkpoints(self, owner: str, job: str) -> list[dict[str, Any]]:
        """A job's checkpoints, the newest first.

        Raises:
            NotFound: the owner has no such job.
        """
        found = await self._found(owner, job)
        request = training_pb2.ListEventsRequest(owner=owner, id=job, limit=_EVENTS_KEPT)
        events = await call(self._training.ListEvents, request, self._timeout_s, "training")
        return mapping.checkpoints(events.events, job, found.job.model or found.run.base_model or job)


def _is_under_way(opened: tr.JobSnapshot) -> bool:
    """Whether the job has its file, or has come so far that it needs none any more; else it is still to be published.

    Raises:
        Conflict: it never will be, as the job was cancelled: by its owner, or because its file was refused.
    """
    if opened.publication:
        return True
    if opened.state == tr.JOB_STATE_CANCELLED:
        raise Conflict(
            f"this Idempotency-Key is that of job {opened.job}, which was cancelled before its file was published",
            remedy="To try again, send another key.",
        )
    return opened.state != tr.JOB_STATE_VALIDATING_FILES


def _publication(dataset: str, file: StoredFile) -> dict[str, Any]:
    """As people upload them: chat JSONL, nothing to be guessed."""
    source = {"uri": f"blob://{file.key}", "file_format": "jsonl"}
    return {"dataset": dataset, "source": source, "format": "messages", "recipe": "verbatim"}


def _no_such_job(job: str) -> NotFound:
    return NotFound(
        f"Could not find fine tune: {job}",
        remedy="GET /v1/fine_tuning/jobs lists your jobs.",
        param="fine_tuning_job_id",
    )


def _matches(has: Mapping[str, str], wanted: Mapping[str, str] | None) -> bool:
    if wanted is None:
        return not has
    return all(has.get(key) == value for key, value in wanted.items())
