"""How often a message was begun and not ended: what tells a message that kills its reader from bad luck. Pure.

The count stands in the metadata of the group's committed offset, because only that outlives a process that was
killed. The first life at an offset is counted when the partition is taken over, without a commit per message. Who
finds such a mark takes the messages one at a time, counting each before it begins; so a count above one belongs to
exactly one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_ATTEMPTS", "AttemptMark"]

MAX_ATTEMPTS: Final = 5
"""Attempts that ended in death after which a message is set aside unread."""

_PREFIX: Final = "attempt="


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """``attempts`` began at ``offset``, and none of them has ended."""

    offset: int
    attempts: int = 0

    @property
    def metadata(self) -> str:
        """For the commit; empty where nothing is under way."""
        return f"{_PREFIX}{self.attempts}" if self.attempts else ""

    def begun(self) -> AttemptMark:
        """One attempt more."""
        return AttemptMark(self.offset, self.attempts + 1)

    @classmethod
    def read(cls, committed: tuple[int, str] | None) -> AttemptMark | None:
        """The mark in a commit; None if the group never committed. Foreign metadata counts as no attempt."""
        if committed is None:
            return None
        offset, metadata = committed
        text = metadata.removeprefix(_PREFIX)
        return cls(offset, int(text) if metadata.startswith(_PREFIX) and text.isdecimal() else 0)
