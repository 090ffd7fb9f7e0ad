"""A request's way through the server: permit, rules, engine, answer; with TGI's metrics along it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from shortstack.core.errors import ShortstackError
from shortstack.inference.engine.adapters import Adapters
from shortstack.inference.engine.answer import Answer, Event, Failure, Step, Token
from shortstack.inference.engine.engine import Engine
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.errors import Overloaded, wire_error
from shortstack.inference.generate_request import TextRequest
from shortstack.inference.metrics import Metrics
from shortstack.inference.text import TextCodec
from shortstack.inference.validation import Job, Limits, check_best_of, check_stream, validate

__all__ = ["Completion", "Generation", "Permits"]


class Permits:
    """Requests allowed at once. There is no waiting room: who finds too few is refused (tgi-wire/13)."""

    def __init__(self, total: int) -> None:
        self._free = total

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Holds ``count`` permits.

        Raises:
            Overloaded: fewer are free.
        """
        if count > self._free:
            raise Overloaded
        self._free -= count
        try:
            yield
        finally:
            self._free += count


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer with its tokens; times in seconds."""

    answer: Answer
    tokens: tuple[Token, ...]
    top: tuple[tuple[Token, ...], ...]
    validation: float
    total: float

    @property
    def mean_logprob(self) -> float:
        """What `best_of` compares."""
        return sum(token.logprob for token in self.tokens) / len(self.tokens)


class Generation:
    """Runs requests that were read from the wire."""

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        adapters: Adapters,
        limits: Limits,
        permits: Permits,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._adapters = adapters
        self._limits = limits
        self._permits = permits
        self._metrics = metrics

    async def complete(self, request: TextRequest) -> list[Completion]:
        """The answers to a request that does not stream, `best_of` of them, the best first.

        Raises:
            ShortstackError: as `errors.wire_error` lists; `asyncio.CancelledError` when the client left.
        """
        with self._counted() as outcome:
            count = check_best_of(request.parameters, self._limits)
            with self._permits.taken(count):
                drawn = await asyncio.gather(*(self._complete_one(request) for _ in range(count)))
            best = sorted(drawn, key=lambda completion: completion.mean_logprob, reverse=True)
            outcome.succeeded(best[0].answer, best[0].validation, best[0].total)
            return best

    async def stream(self, request: TextRequest) -> AsyncGenerator[Step, None]:
        """The steps of one answer. Leaving the iterator early frees the request's row.

        Raises:
            ShortstackError: at the first step or in the middle, as `errors.wire_error` lists.
        """
        with self._counted() as outcome:
            check_stream(request.parameters)
            with self._permits.taken(1):
                began = time.monotonic()
                job, adapter = await self._validated(request)
                validation = time.monotonic() - began
                async with self._running(job, adapter) as steps:
                    async for step in steps:
                        if step.answer is not None:
                            outcome.succeeded(step.answer, validation, time.monotonic() - began)
                        yield step

    async def run(self, job: Job) -> Answer:
        """Runs a job outside permits and metrics; for the health probe."""
        async with self._running(job, None) as steps:
            async for step in steps:
                if step.answer is not None:
                    return step.answer
        raise AssertionError("the engine ended a request without an answer or a failure")

    async def _complete_one(self, request: TextRequest) -> Completion:
        began = time.monotonic()
        job, adapter = await self._validated(request)
        validation = time.monotonic() - began
        async with self._running(job, adapter) as running:
            steps = [step async for step in running]
        answer = steps[-1].answer
        assert answer is not None
        tokens, top = tuple(step.token for step in steps), tuple(step.top for step in steps)
        return Completion(answer, tokens, top, validation, time.monotonic() - began)

    async def _validated(self, request: TextRequest) -> tuple[Job, Adapter | None]:
        """Tokenizes in a thread: a body may hold two million bytes, and streams go on meanwhile."""
        job = await asyncio.to_thread(validate, request, self._limits, self._codec.encode)
        adapter = self._adapters.get(job.adapter_id)
        self._metrics.input_length.observe(len(job.prompt))
        self._metrics.max_new_tokens.observe(job.max_new_tokens)
        return job, adapter

    @asynccontextmanager
    async def _running(self, job: Job, adapter: Adapter | None) -> AsyncIterator[AsyncIterator[Step]]:
        """Steps of a submitted job; the job is cancelled when the block is left."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        sequence = self._engine.submit(job, adapter, sink)
        try:
            yield _steps(events)
        finally:
            self._engine.cancel(sequence)

    @contextmanager
    def _counted(self) -> Iterator[_Outcome]:
        """Counts a request and how it ended: as the block said, or by the error that left it."""
        self._metrics.request_count.add()
        outcome = _Outcome(self._metrics)
        try:
            yield outcome
        except ShortstackError as error:
            outcome.failed(wire_error(error).metric)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome.failed("dropped")
            raise


class _Outcome:
    """How one request ended; the first word counts, so a client that leaves after the last token was served."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._settled = False

    def failed(self, reason: str) -> None:
        """Counts a failure."""
        if not self._settled:
            self._metrics.request_failure.add(err=reason)
        self._settled = True

    def succeeded(self, answer: Answer, validation: float, total: float) -> None:
        """Counts an answer that was sent whole; times in seconds."""
        self._settled = True
        self._metrics.request_success.add()
        self._metrics.generated_tokens.observe(answer.tokens)
        times = self._metrics.request_times
        times.total.observe(total)
        times.validation.observe(validation)
        times.queue.observe(answer.times.queue)
        times.inference.observe(answer.times.inference)
        times.per_token.observe(answer.times.inference / answer.tokens)
        self._metrics.skipped_tokens.observe_zeros(answer.tokens)


async def _steps(events: asyncio.Queue[Event]) -> AsyncIterator[Step]:
    """Events until the one with the answer; a failure is raised."""
    while True:
        event = await events.get()
        if isinstance(event, Failure):
            raise event.error
        yield event
        if event.answer is not None:
            return
