"""A thread that follows a topic by a `Reader`, from the broker's first answer to the stop of its service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shortstack.core.errors import Transient
from shortstack.core.lifecycle import Background
from shortstack.streams.broker import Broker, Reader

__all__ = ["Following"]

_RETRY_S: Final = 1.0


class Following(Background):
    """A component around ``step``, which is called again and again and takes what its reader has.

    Args:
        topic: name.
        step: one poll and what follows from it. A `Transient` makes it wait a little; anything else ends the process.
        from_end: leave out what stands on the topic already.
    """

    def __init__(self, broker: Broker, topic: str, step: Callable[[Reader], None], *, from_end: bool = False) -> None:
        super().__init__(f"following {topic}")
        self._broker, self._topic, self._step, self._from_end = broker, topic, step, from_end

    def _run(self) -> None:
        reader: Reader | None = None
        try:
            while not self._stopping.is_set():
                try:
                    # Until then the broker may be away, or the topic not created yet.
                    reader = reader or self._broker.reader([self._topic], from_end=self._from_end)
                    self._step(reader)
                except Transient:
                    self._stopping.wait(_RETRY_S)
        finally:
            if reader is not None:
                reader.close()
