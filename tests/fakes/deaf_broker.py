"""A broker whose first consumer polls and is never given a message."""

from __future__ import annotations

from typing import Any

from shortstack.core.clock import SystemClock
from shortstack.streams.broker import Delivery
from shortstack.streams.memory import MemoryBroker

__all__ = ["DeafOnce"]


class DeafOnce(MemoryBroker):
    """Counts in ``joined`` how many consumers were made; from the second on they hear."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.joined = 0

    def consumer(self, *arguments: Any, **settings: Any) -> Any:
        """See `Broker.consumer`."""
        made = super().consumer(*arguments, **settings)
        self.joined += 1
        if self.joined == 1:
            heard = made.poll

            def poll(timeout_s: float, max_messages: int = 500) -> list[Delivery]:
                heard(0.0, 0)
                return []

            made.poll = poll  # type: ignore[method-assign]
        return made
