"""The engine: one thread that, step by step, lets new requests in, gives every request one token, and lets the
finished and the abandoned go (continuous batching, after Orca, Yu et al. 2022)."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from shortstack.core.errors import ShortstackError
from shortstack.inference.engine.answer import Failure, Sink
from shortstack.inference.engine.batch import Batch
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.engine.model import CausalModel
from shortstack.inference.engine.sampling import choose
from shortstack.inference.engine.sequence import Sequence
from shortstack.inference.errors import GenerationFailed, Incomplete
from shortstack.inference.metrics import Metrics
from shortstack.inference.text import TextCodec
from shortstack.inference.validation import Job

__all__ = ["Engine"]

_LOG = logging.getLogger(__name__)


class Engine:
    """Runs jobs on one model.

    Args:
        max_batch: requests that decode in one step; the others wait in order of arrival.
        prefill_tokens: prompt tokens read in one step; longer prompts are read over several steps, between which
            the others get their tokens.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: CausalModel,
        codec: TextCodec,
        metrics: Metrics,
        *,
        max_batch: int,
        prefill_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._codec = codec
        self._metrics = metrics
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._clock = clock
        self._batch = Batch(model.rows)
        self._waiting: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._last_step = clock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Ends the thread after the step it is in; requests still under way fail as incomplete. Repeatable."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def give_up(self) -> None:
        """As `stop`, without waiting for the step under way."""
        self.stop(timeout=0)

    def submit(self, job: Job, adapter: Adapter | None, sink: Sink) -> Sequence:
        """Queues a job; its events go to ``sink`` from the engine's thread, until an answer or a failure."""
        sequence = Sequence(job, adapter, sink, self._codec, self._model.device, self._clock())
        with self._changed:
            if self._stopping:
                raise Incomplete("the server is stopping")
            if not self._waiting and not self._batch.all:
                # Nothing was due while it idled: what is owed from here on counts from now.
                self._last_step = self._clock()
            self._waiting.append(sequence)
            self._metrics.queue_size.set(len(self._waiting))
            self._changed.notify()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a request whose client has left: its row is free before the next token. Nothing more is sent."""
        sequence.cancelled = True

    def responsive(self, within: float) -> bool:
        """Whether the thread lives and, if it has work, got it or ended a step in the last ``within`` seconds."""
        idle = not self._batch.all and not self._waiting
        return self._thread.is_alive() and (idle or self._clock() - self._last_step < within)

    def load(self) -> dict[Adapter, int]:
        """How many requests under way use each adapter."""
        counts: dict[Adapter, int] = {}
        with self._changed:
            for sequence in [*self._batch.all, *self._waiting]:
                if sequence.adapter is not None:
                    counts[sequence.adapter] = counts.get(sequence.adapter, 0) + 1
        return counts

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                while self._wait_for_work():
                    self._guarded_step()
            finally:
                with self._changed:
                    self._stopping = True
                self._fail_all(Incomplete("the server stopped before the answer was whole"))

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception as error:  # noqa: BLE001  (the thread must outlive any request; they are told)
            _LOG.exception("a step failed; the requests in it are told so")
            self._fail_all(GenerationFailed(str(error)))
        self._last_step = self._clock()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._waiting) > 0 or len(self._batch) > 0)
            return not self._stopping

    def _step(self) -> None:
        for sequence in [s for s in self._batch.all if s.cancelled]:
            self._batch.remove(sequence)
        self._read_prompts()
        self._decode()
        self._metrics.batch_current_size.set(len(self._batch))
        self._metrics.batch_current_max_tokens.set(
            sum(len(s.job.prompt) + s.job.max_new_tokens for s in self._batch.all)
        )

    def _admit(self) -> Sequence | None:
        """The next request that is still wanted, if a row is free; it starts reading."""
        with self._changed:
            while self._waiting and len(self._batch) < self._max_batch:
                sequence = self._waiting.popleft()
                self._metrics.queue_size.set(len(self._waiting))
                if not sequence.cancelled:
                    sequence.started = self._clock()
                    self._batch.reading = sequence
                    break
        return self._batch.reading

    def _read_prompts(self) -> None:
        budget = self._prefill_tokens
        admitted = 0
        while budget > 0:
            fresh = self._batch.reading is None
            sequence = self._batch.reading or self._admit()
            if sequence is None:
                break
            admitted += fresh
            budget -= self._read_piece(sequence, budget)
        if admitted:
            self._metrics.batch_next_size.observe(admitted)
            if len(self._batch) > admitted:
                self._metrics.batch_concat.add(reason="chunking")

    def _read_piece(self, sequence: Sequence, budget: int) -> int:
        """Reads up to ``budget`` tokens of the prompt; after the last one, the first answer token. Tokens read."""
        prompt = sequence.job.prompt
        piece = prompt[sequence.read : sequence.read + budget]
        began = self._clock()
        self._metrics.batch_inference_count.add(method="prefill")
        try:
            logits = self._model.read_prompt(self._batch.reading_row, sequence.read, piece, sequence.adapter)
        except (RuntimeError, MemoryError) as error:
            _LOG.exception("reading a prompt failed; its request is told so")
            self._metrics.batch_inference_failure.add(method="prefill")
            self._fail(sequence, GenerationFailed(str(error)))
            return len(piece)
        sequence.read += len(piece)
        self._forwarded("prefill", began)
        if sequence.read == len(prompt):
            self._batch.start_decoding()
            self._give_tokens([sequence], logits, "prefill", began)
        return len(piece)

    def _decode(self) -> None:
        sequences = list(self._batch.decoding)
        if not sequences:
            return
        began = self._clock()
        self._metrics.batch_inference_count.add(method="decode")
        try:
            logits = self._model.next_tokens(
                [s.ids[-1] for s in sequences], [len(s.ids) - 1 for s in sequences], [s.adapter for s in sequences]
            )
        except (RuntimeError, MemoryError) as error:
            _LOG.exception("a decoding pass failed; its requests are told so")
            self._metrics.batch_inference_failure.add(method="decode")
            for sequence in sequences:
                self._fail(sequence, GenerationFailed(str(error)))
            return
        self._forwarded("decode", began)
        self._give_tokens(sequences, logits, "decode", began)

    def _forwarded(self, method: str, began: float) -> None:
        self._metrics.batch_forward_duration.observe(self._clock() - began, method=method)

    def _give_tokens(self, sequences: list[Sequence], logits: Tensor, method: str, began: float) -> None:
        """One token to each request, row by row of ``logits``; the finished leave."""
        chosen_from = self._clock()
        choices = choose(logits, [s.chooser for s in sequences], [s.ids for s in sequences])
        now = self._clock()
        for sequence, choice in zip(sequences, choices, strict=True):
            if choice is None:
                self._fail(sequence, GenerationFailed("the model's output is not a number"))
                continue
            step = sequence.advance(choice, now)
            if step.answer is not None:
                self._batch.remove(sequence)
            if not sequence.cancelled:
                sequence.sink(step)
        done = self._clock()
        self._metrics.batch_decode_duration.observe(now - chosen_from, method=method)
        self._metrics.batch_filter_duration.observe(done - now, method=method)
        self._metrics.batch_inference_duration.observe(done - began, method=method)
        self._metrics.batch_inference_success.add(method=method)

    def _fail(self, sequence: Sequence, error: ShortstackError) -> None:
        self._batch.remove(sequence)
        if not sequence.cancelled:
            sequence.sink(Failure(error))

    def _fail_all(self, error: ShortstackError) -> None:
        with self._changed:
            ended = [*self._batch.drop_all(), *self._waiting]
            self._waiting.clear()
        for sequence in ended:
            if not sequence.cancelled:
                sequence.sink(Failure(error))
