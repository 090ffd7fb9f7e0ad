"""One request on its way through the engine."""

from __future__ import annotations

import re

import torch

from shortstack.inference.engine.answer import Answer, FinishReason, Sink, Step, Times, Token
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.engine.sampling import Choice, Chooser
from shortstack.inference.text import IncrementalDecoder, TextCodec
from shortstack.inference.validation import Job

__all__ = ["Sequence"]

_STOP_WINDOW = 4_096
"""Characters of the answer's end in which a stop text is looked for; longer ones are matched by themselves."""


class Sequence:
    """Prompt, answer so far, and how it goes on. ``cancelled`` may be set by any thread; the rest by the engine's.

    Attributes:
        ids: prompt and generated tokens.
        read: prompt tokens that are in the cache.
    """

    def __init__(
        self, job: Job, adapter: Adapter | None, sink: Sink, codec: TextCodec, device: torch.device, now: float
    ) -> None:
        self.job = job
        self.adapter = adapter
        self.sink = sink
        self.ids = list(job.prompt)
        self.read = 0
        self.cancelled = False
        self.started = now
        self.chooser = Chooser(job.sampling, job.top_n, device)
        self._codec = codec
        self._decoder = IncrementalDecoder(codec, job.prompt)
        self._queued = now
        self._tail = ""
        self._window = max(_STOP_WINDOW, *(2 * len(stop) for stop in job.stop)) if job.stop else 0
        # TGI's stop rule: the text ends with the stop text, or with it and one line break (`$` in its regex).
        self._stops = [re.compile(re.escape(stop) + "$") for stop in job.stop]

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - len(self.job.prompt)

    def advance(self, choice: Choice, now: float) -> Step:
        """Takes the next token; the step to send, with the answer if this was the last."""
        self.ids.append(choice.id)
        text = self._decoder.push(choice.id)
        token = Token(choice.id, text, choice.logprob, choice.id in self._codec.special)
        reason = self._finish(choice.id, text)
        return Step(token, tuple(self._shown(*pair) for pair in choice.top), self._answer(reason, now))

    def _shown(self, token_id: int, logprob: float) -> Token:
        text = self._codec.decode([token_id], skip_special=False)
        return Token(token_id, text, logprob, token_id in self._codec.special)

    def _finish(self, token_id: int, text: str) -> FinishReason | None:
        """Length, then end token, then stop texts: TGI's order."""
        if self.generated >= self.job.max_new_tokens:
            return FinishReason.LENGTH
        if token_id in self._codec.eos:
            return FinishReason.EOS
        if not self._stops:
            return None
        self._tail = (self._tail + text)[-self._window :]
        return FinishReason.STOP if any(stop.search(self._tail) for stop in self._stops) else None

    def _answer(self, reason: FinishReason | None, now: float) -> Answer | None:
        if reason is None:
            return None
        return Answer(
            text=self._decoder.full_text(),
            reason=reason,
            tokens=self.generated,
            seed=self.job.sampling.seed,
            prompt_tokens=len(self.job.prompt),
            times=Times(queue=self.started - self._queued, inference=now - self.started),
        )
