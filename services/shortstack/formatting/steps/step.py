"""What a step is: it looks at a batch and says what becomes of each record. Pure: no input or output, no chance.

A step's verdict on a record depends on that record alone, so that it is the same however records are batched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shortstack.formatting.conversations import Conversations

__all__ = ["EVIDENCE_CHARACTERS", "Outcome", "Rejection", "Step", "excerpt"]

EVIDENCE_CHARACTERS = 200
"""Longest evidence that is kept with a verdict."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record is dropped: a short name of the reason, and what in the record shows it."""

    reason: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step found.

    Attributes:
        rejected: record → why; the others are kept.
        contents: the texts of all turns, edited; None leaves them.
        languages: record → ISO 639-1 code, for the column ``language``.
    """

    rejected: Mapping[int, Rejection] = field(default_factory=dict)
    contents: Sequence[str] | None = None
    languages: Mapping[int, str] = field(default_factory=dict)


class Step(Protocol):
    """One step with its settings."""

    def __call__(self, batch: Conversations) -> Outcome:
        """Looks at every record of ``batch``."""
        ...


def excerpt(text: str) -> str:
    """``text`` on one line, cut to `EVIDENCE_CHARACTERS`."""
    line = " ".join(text[: 2 * EVIDENCE_CHARACTERS].split())
    return line if len(line) <= EVIDENCE_CHARACTERS else line[: EVIDENCE_CHARACTERS - 1] + "…"
