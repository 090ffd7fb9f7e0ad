"""One partition of the broker in memory."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from shortstack.streams.broker import Delivery

__all__ = ["Log"]


@dataclass(slots=True)
class Log:
    """One partition: messages in order of offset, with gaps where compaction was."""

    messages: list[Delivery] = field(default_factory=list)
    end: int = 0

    def read(self, offset: int, count: int) -> list[Delivery]:
        """Up to ``count`` messages from ``offset`` on."""
        start = bisect_left(self.messages, offset, key=lambda message: message.offset)
        return self.messages[start : start + count]

    def compact(self) -> None:
        """Keeps the last message of each key; a deleted key vanishes."""
        last = {message.key: message.offset for message in self.messages}
        self.messages = [m for m in self.messages if last[m.key] == m.offset and m.value is not None]
