"""What the engine says about a request while it runs: steps, an end, or a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from shortstack.core.errors import ShortstackError

__all__ = ["Answer", "Event", "Failure", "FinishReason", "Sink", "Step", "Times", "Token"]


class FinishReason(StrEnum):
    """Why an answer ended; TGI's words."""

    LENGTH = "length"
    EOS = "eos_token"
    STOP = "stop_sequence"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the wire shows it; ``text`` is '' until its character's bytes are whole."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds a request waited for its turn, and was worked on."""

    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer, sent with the last step."""

    text: str
    reason: FinishReason
    tokens: int
    seed: int | None
    prompt_tokens: int
    times: Times


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token; ``answer`` stands with the last one only."""

    token: Token
    top: tuple[Token, ...]
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The request ends here, without an answer."""

    error: ShortstackError


Event = Step | Failure
Sink = Callable[[Event], None]
"""Takes a request's events; called by the engine's thread, so it must return at once."""
