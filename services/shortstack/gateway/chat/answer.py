"""One answer, from the server's tokens to text that a client may see: stops cut, usage counted whatever happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shortstack.gateway.chat.stops import StopCutter
from shortstack.gateway.chat.upstream import Token, TokenStream

__all__ = ["Answer", "Piece", "Usage"]

_FINISH: Final[Mapping[str, str]] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
"""TGI's finish reasons → OpenAI's."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's ``usage`` object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


@dataclass(slots=True)
class Piece:
    """Text to send, and the log probabilities of the tokens that it came from, where asked for."""

    text: str
    logprobs: list[dict[str, Any]] | None


class Answer:
    """Reads a token stream to its end, to a stop string, or until it is closed.

    Attributes:
        finish_reason: OpenAI's; ``stop`` until known otherwise.
        logprobs: whether pieces carry log probabilities.
    """

    def __init__(
        self, stream: TokenStream, *, prompt_tokens: int, stops: Sequence[str], max_tokens: int, logprobs: bool
    ) -> None:
        self._stream = stream
        self._stops = frozenset(stops)
        self._cutter = StopCutter(stops)
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._tokens = 0
        self._pending: list[dict[str, Any]] | None = [] if logprobs else None
        self.finish_reason = "stop"
        self.logprobs = logprobs

    @property
    def usage(self) -> Usage:
        """Tokens so far: right also when the client or the server left in the middle."""
        return Usage(self._prompt_tokens, self._tokens)

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """The answer's text, in batches that came together; a piece may hold several tokens' text.

        Raises:
            ApiError: the server failed in mid-answer.
        """
        whole = False
        try:
            async for batch in self._stream.batches():
                whole = batch[-1].last
                pieces = [piece for token in batch if (piece := self._take(token)) is not None]
                if pieces:
                    yield pieces
                if self._cutter.stopped:
                    return
            if rest := self._cutter.flush():
                yield [self._piece(rest)]
        finally:
            if whole:
                self._stream.finish()
            else:
                self._stream.close()

    def _take(self, token: Token) -> Piece | None:
        if self._cutter.stopped:
            return None
        self._tokens += 1
        if token.last:
            self._finish(token)
        if token.special:
            # No text of the answer; but a format's own stop may be a special token.
            if token.text not in self._stops:
                return None
            # TGI says "length" where this was the last token it had leave to make; the model ended all the same.
            self._cutter.stopped = True
            self.finish_reason = "stop"
            return self._held_back()
        if self._pending is not None:
            self._pending.append(_logprob(token))
        text = self._cutter.feed(token.text)
        if self._cutter.stopped:
            self.finish_reason = "stop"
        return self._piece(text) if text else None

    def _held_back(self) -> Piece | None:
        rest = self._cutter.flush()
        return self._piece(rest) if rest else None

    def _piece(self, text: str) -> Piece:
        if self._pending is None:
            return Piece(text, None)
        logprobs, self._pending = self._pending, []
        return Piece(text, logprobs)

    def _finish(self, token: Token) -> None:
        reason = token.details.get("finish_reason")
        # Without details, an answer as long as it may be was cut.
        guess = "length" if self._tokens >= self._max_tokens and not token.special else "stop"
        self.finish_reason = _FINISH.get(str(reason), guess)
        self._tokens = token.details.get("generated_tokens", self._tokens)
        self._prompt_tokens = token.details.get("input_length", self._prompt_tokens)


def _logprob(token: Token) -> dict[str, Any]:
    entry = _one_logprob(token.text, token.logprob)
    entry["top_logprobs"] = [_one_logprob(str(one["text"]), float(one["logprob"])) for one in token.top]
    return entry


def _one_logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
