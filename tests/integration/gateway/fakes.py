"""What stands around the gateway in its tests: model servers, serving, training, ingestion, a tiny tokenizer."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import grpc
import orjson
import tokenizers
from benchmarks.stub_tgi import Reply, StubTgi, token_events

from shortstack.core.errors import NotFound, ShortstackError
from shortstack.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.v1 import serving_pb2, serving_pb2_grpc
from shortstack.training.v1 import training_pb2, training_pb2_grpc

BASE = "smollm2-135m-instruct"
FINE_TUNE = f"ft:{BASE}:default:demo:0123456789ab"


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(10)

    def stop(self) -> None:
        self.run(self._finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _finish(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@dataclass
class ModelServer:
    """A stub of TGI whose next replies a test sets; without any it says "Hello there."."""

    loop: LoopThread
    replies: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stub = StubTgi(self._next)
        self.loop.run(self.stub.start())

    def _next(self, _body: dict[str, Any]) -> Reply:
        if self.replies:
            return self.replies.pop(0)
        return Reply(token_events(["Hello", " there", "."], finish="eos_token"))

    def says(self, texts: list[str], **options: Any) -> None:
        """Sets the next reply."""
        self.replies.append(Reply(token_events(texts, **options)))

    @property
    def last(self) -> dict[str, Any]:
        """The newest request's body."""
        return self.stub.requests[-1]


class FakeServing(serving_pb2_grpc.ServingServiceServicer):
    """Tells models and aliases to whoever watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, serving_pb2.WatchModelsResponse] = {}
        self._watchers: list[queue.Queue[serving_pb2.WatchModelsResponse | None]] = []
        self.error: ShortstackError | None = None

    def put(self, record: sv.ModelSnapshot | sv.AliasSnapshot) -> None:
        """Sets a model or an alias and tells it."""
        if isinstance(record, sv.ModelSnapshot):
            key, response = f"model/{record.name}", serving_pb2.WatchModelsResponse(model=record)
        else:
            key, response = f"alias/{record.alias}", serving_pb2.WatchModelsResponse(alias=record)
        with self._lock:
            self._records[key] = response
            for watcher in self._watchers:
                watcher.put(response)

    def forget(self, key: str) -> None:
        """Drops a record without telling: only a new watch shows it."""
        with self._lock:
            del self._records[key]

    def close_watches(self) -> None:
        """Ends every stream, as a restart would."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put(None)
            self._watchers.clear()

    def WatchModels(self, request: Any, context: grpc.ServicerContext) -> Iterator[serving_pb2.WatchModelsResponse]:
        watcher: queue.Queue[serving_pb2.WatchModelsResponse | None] = queue.Queue()
        with self._lock:
            known = list(self._records.values())
            self._watchers.append(watcher)
        context.add_callback(lambda: watcher.put(None))
        yield from known
        yield serving_pb2.WatchModelsResponse(synced=True)
        while (update := watcher.get()) is not None:
            yield update

    def ListModels(self, request: serving_pb2.ListModelsRequest, context: Any) -> serving_pb2.ListModelsResponse:
        if self.error is not None:
            raise self.error
        models = [one.model for one in self._records.values() if one.HasField("model")]
        return serving_pb2.ListModelsResponse(models=[one for one in models if one.owner in ("", request.owner)])

    def DeployModel(self, request: Any, context: Any) -> Any:
        raise AssertionError("the gateway only reads")

    SetTraffic = WithdrawModel = DeployModel


class FakeTraining(training_pb2_grpc.TrainingServiceServicer):
    """Keeps jobs in memory; a test moves them on."""

    def __init__(self) -> None:
        self.jobs: dict[str, tr.JobSnapshot] = {}
        self.runs: dict[str, tr.RunSnapshot] = {}
        self.events: dict[str, list[tr.TrainingEvent]] = {}
        self.error: ShortstackError | None = None
        self.lost: ShortstackError | None = None
        """Raised once a job is open: its answer is lost."""
        self.events_error: ShortstackError | None = None
        self.events_asked: list[str] = []
        self._created = 1_700_000_000

    def SubmitRun(self, request: training_pb2.SubmitRunRequest, context: Any) -> training_pb2.SubmitRunResponse:
        if self.error is not None:
            raise self.error
        if request.job in self.jobs:
            return training_pb2.SubmitRunResponse(job=self.jobs[request.job])
        self._created += 1
        job = tr.JobSnapshot(
            job=request.job,
            owner=request.owner,
            dataset=request.dataset,
            state=tr.JOB_STATE_VALIDATING_FILES,
            request_json=request.request_json,
        )
        job.created_at.seconds = self._created
        self.jobs[job.job] = job
        if self.lost is not None:
            raise self.lost
        return training_pb2.SubmitRunResponse(job=job)

    def GetRun(self, request: training_pb2.GetRunRequest, context: Any) -> training_pb2.GetRunResponse:
        job = self.jobs.get(request.id)
        if job is None or job.owner != request.owner:
            raise NotFound(f'no job or run "{request.id}"', param="id")
        return self._with_run(job)

    def ListRuns(self, request: training_pb2.ListRunsRequest, context: Any) -> training_pb2.ListRunsResponse:
        jobs = [job for job in self.jobs.values() if job.owner == request.owner]
        jobs.sort(key=lambda job: job.created_at.seconds, reverse=True)
        if request.after:
            ids = [job.job for job in jobs]
            if request.after not in ids:
                raise NotFound(f'no job "{request.after}"', param="after")
            jobs = jobs[ids.index(request.after) + 1 :]
        runs = [self._with_run(job) for job in jobs[: request.limit]]
        return training_pb2.ListRunsResponse(runs=runs, has_more=len(jobs) > request.limit)

    def CancelRun(self, request: training_pb2.CancelRunRequest, context: Any) -> training_pb2.CancelRunResponse:
        job = self.jobs[request.id]
        job.state = tr.JOB_STATE_CANCELLED
        job.finished_at.seconds = job.created_at.seconds + 60
        return training_pb2.CancelRunResponse(job=job)

    def ListEvents(self, request: training_pb2.ListEventsRequest, context: Any) -> training_pb2.ListEventsResponse:
        self.events_asked.append(request.id)
        if self.events_error is not None:
            raise self.events_error
        events = self.events.get(request.id, [])[::-1]
        if request.after:
            ids = [f"{one.run or one.job}/{one.attempt}/{one.seq}" for one in events]
            events = events[ids.index(request.after) + 1 :]
        return training_pb2.ListEventsResponse(events=events[: request.limit], has_more=len(events) > request.limit)

    def _with_run(self, job: tr.JobSnapshot) -> training_pb2.GetRunResponse:
        return training_pb2.GetRunResponse(job=job, run=self.runs.get(job.run))

    def WatchRun(self, request: Any, context: Any) -> Any:
        raise AssertionError("the gateway does not watch runs")

    EstimateRun = WatchRun


class FakeIngestion(ingestion_pb2_grpc.IngestionServiceServicer):
    """Keeps what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.error: ShortstackError | None = None

    def PublishDataset(self, request: ingestion_pb2.PublishDatasetRequest, context: Any) -> Any:
        if self.error is not None:
            raise self.error
        message = orjson.loads(request.request_json)
        self.published.append((request.owner, message))
        return ingestion_pb2.PublishDatasetResponse(owner=request.owner, dataset=message["dataset"])

    def GetDataset(self, request: Any, context: Any) -> Any:
        raise AssertionError("the gateway only publishes")

    ListDatasets = WatchDataset = PreviewSource = GetDataset


def tiny_tokenizer() -> tuple[bytes, bytes]:
    """tokenizer.json and tokenizer_config.json: one token a byte, ChatML's special tokens, a template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
        "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    return tokenizer.to_str().encode(), json.dumps(config).encode()
