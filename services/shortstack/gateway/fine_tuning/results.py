"""What a job that ended leaves as files of its owner: the metrics of its run, and the contract test that it failed.

They are made when the job is first read after its end, and then stand: their ids follow from the job and its end, so
that two gateways make the same files. A list makes but a few, of jobs that ended lately, so that it takes no longer the
more jobs there are. Purpose: OpenAI's ``fine-tune-results``; name and first columns of the metrics:
OpenAI's ``step_metrics.csv``.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Final

import grpc.aio
import orjson
import structlog

from shortstack.core.clock import Clock
from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Fatal, NotFound, Transient
from shortstack.gateway.files.store import FileStore, StoredFile
from shortstack.gateway.rpc import call
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.v1 import serving_pb2, serving_pb2_grpc
from shortstack.storage.blobs import BlobStore
from shortstack.training.v1 import training_pb2, training_pb2_grpc

__all__ = ["PURPOSE", "JobResults", "metrics_csv", "metrics_of"]

PURPOSE: Final = "fine-tune-results"
_METRICS: Final = "step_metrics.csv"
_CONTRACT: Final = "contract_test.json"
_LEFT_BY: Final = (tr.JOB_STATE_SUCCEEDED, tr.JOB_STATE_FAILED)
_CONTRACT_FAILED: Final = "deployment_failed"
_EVENTS_KEPT: Final = 2000
_EVENTS_LAST: Final = timedelta(days=7)
"""As long as training tells a job's events after its end (docs/training.md)."""
_MADE_BY_A_LIST: Final = 5
_COLUMNS: Final[Mapping[str, str]] = {
    "step": "step",
    "train_loss": "loss",
    "train_accuracy": "",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "",
    "learning_rate": "learning_rate",
}
"""Column → the trainer's name of the value; accuracies are OpenAI's, and not measured here."""

Lines = dict[int, dict[str, Any]]
"""Step → what was logged at it."""


@dataclass(frozen=True, slots=True)
class _Result:
    """One file of one job, to be made by ``make``, which gives nothing where there is nothing to tell yet.

    ``fresh``: the job ended so lately that its events are kept.
    """

    file: StoredFile
    fresh: bool
    make: Callable[[], Awaitable[bytes | None]]


class JobResults:
    """Makes and names the files of jobs that ended.

    Args:
        training: channel to training, for the events of runs.
        serving: channel to serving, for the proofs of models.
        files: where they are kept.
        blobs: the object store; a cluster's attempts leave their metrics there.
        timeout_s: of one call.
        clock: time.
        log: told of what could not be made.
    """

    def __init__(
        self,
        training: grpc.aio.Channel,
        serving: grpc.aio.Channel,
        files: FileStore,
        blobs: BlobStore,
        timeout_s: float,
        clock: Clock,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._training = training_pb2_grpc.TrainingServiceStub(training)
        self._serving = serving_pb2_grpc.ServingServiceStub(serving)
        self._files = files
        self._blobs = blobs
        self._timeout_s = timeout_s
        self._clock = clock
        self._log = log

    async def of(
        self, owner: str, found: Iterable[training_pb2.GetRunResponse], *, a_list: bool = False
    ) -> dict[str, list[str]]:
        """Job → ids of its files, for jobs of one owner.

        What cannot be made for now, as training, serving or the object store is away, is left out until a later call.

        Args:
            owner: whose.
            found: the jobs with their runs.
            a_list: whether the jobs are read as a list, which makes a few files at most.
        """
        wanted = {one.job.job: self._wanted(one.job, one.run) for one in found}
        ids = [result.file.id for results in wanted.values() for result in results]
        made = await asyncio.to_thread(self._files.results, owner, ids) if ids else {}
        missing = [one for results in wanted.values() for one in results if one.file.id not in made]
        if a_list:
            missing = [one for one in missing if one.fresh][:_MADE_BY_A_LIST]
        for file_id in await self._made(missing):
            made[file_id] = True
        return {job: [one.file.id for one in results if made.get(one.file.id)] for job, results in wanted.items()}

    async def _made(self, missing: Iterable[_Result]) -> list[str]:
        """Makes what can be made now; its ids."""
        made: list[str] = []
        away: set[str] = set()  # kinds of files whose service did not answer: each would wait as long again
        for result in missing:
            if result.file.filename in away:
                continue
            try:
                if (data := await result.make()) is not None:
                    await asyncio.to_thread(self._files.add_result, result.file, data)
                    made.append(result.file.id)
            except (Transient, Fatal) as error:  # the job itself can be told all the same
                away.add(result.file.filename)
                self._log.warning("a job's result file is not made yet", file=result.file.filename, error=str(error))
        return made

    def _wanted(self, job: tr.JobSnapshot, run: tr.RunSnapshot) -> list[_Result]:
        if job.state not in _LEFT_BY or not run.run:
            return []
        wanted: list[_Result] = []
        fresh = self._clock.now() - job.finished_at.ToDatetime(tzinfo=UTC) <= _EVENTS_LAST
        if run.step:
            wanted.append(_Result(_file(job, _METRICS), fresh, lambda: self._metrics(job, run, told=fresh)))
        if job.state == tr.JOB_STATE_FAILED and job.error_code == _CONTRACT_FAILED:
            wanted.append(_Result(_file(job, _CONTRACT), fresh, lambda: self._contract(job)))
        return wanted

    async def _metrics(self, job: tr.JobSnapshot, run: tr.RunSnapshot, *, told: bool) -> bytes | None:
        """The table, from what the attempt stored or else, where ``told``, from its events."""
        lines = await asyncio.to_thread(self._stored, run)
        if not lines and told:
            request = training_pb2.ListEventsRequest(owner=job.owner, id=job.job, limit=_EVENTS_KEPT)
            events = await call(self._training.ListEvents, request, self._timeout_s, "training")
            lines = metrics_of(events.events)
        # Training that reads its events anew after a start may not have come to the last one yet.
        return metrics_csv(lines) if lines and max(lines) >= run.step else None

    def _stored(self, run: tr.RunSnapshot) -> Lines:
        """The metrics that an attempt's pod left in the object store, of all steps; none where it left none."""
        try:
            text = self._blobs.get(f"runs/{run.run}/attempt-{run.attempt}/metrics.jsonl")
        except NotFound:
            return {}
        # A trainer that was killed may have left half a line; and it writes NaN, which orjson does not read.
        return _merged(json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines())

    async def _contract(self, job: tr.JobSnapshot) -> bytes | None:
        request = serving_pb2.ListModelsRequest(owner=job.owner)
        models = (await call(self._serving.ListModels, request, self._timeout_s, "serving")).models
        model = next((one for one in models if one.name == job.model), None)
        return None if model is None else _verdict(model)


def metrics_of(events: Iterable[tr.TrainingEvent]) -> Lines:
    """What a run's events, in any order, say of its steps; of a step that was done twice, the later attempt."""
    ordered = sorted((one for one in events if one.run), key=lambda one: (one.attempt, one.seq))
    return _merged(orjson.loads(one.payload_json or "{}") for one in ordered if one.type in ("step", "eval"))


def metrics_csv(lines: Lines) -> bytes:
    """A line a step, in order; a value that was not logged at it is empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for step in sorted(lines):
        table.writerow([lines[step].get(name, "") for name in _COLUMNS.values()])
    return out.getvalue().encode()


def _merged(payloads: Iterable[Mapping[str, Any]]) -> Lines:
    lines: Lines = {}
    for payload in payloads:
        if isinstance(step := payload.get("step"), int):
            lines.setdefault(step, {}).update(payload)
    return lines


def _verdict(model: sv.ModelSnapshot) -> bytes:
    state = sv.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
    proof = orjson.loads(model.proof_json) if model.proof_json else None
    verdict = {
        "model": model.name,
        "state": state,
        "message": model.message,
        "remedy": model.remedy,
        "proof": proof,
        "export": model.export.prefix or None,
        "export_sha256": model.export.manifest_sha256 or None,
    }
    return orjson.dumps(verdict, option=orjson.OPT_INDENT_2)


def _file(job: tr.JobSnapshot, name: str) -> StoredFile:
    """A job that is opened anew and ends again leaves other files."""
    identity = f"{job.job}\n{job.finished_at.ToNanoseconds()}\n{name}"
    number = sha256_hex(identity.encode())[:24]
    return StoredFile(f"file-{number}", job.owner, name, PURPOSE, 0, job.finished_at.seconds)
