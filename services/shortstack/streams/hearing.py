"""Tells a quiet topic from a client that no longer hears."""

from __future__ import annotations

from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Transient
from shortstack.streams.broker import Consumer

__all__ = ["Hearing"]

_SILENCE_S: Final = 5.0
"""Without a message for so long, the broker is asked whether there are any; twice in a row means a deaf client."""


class Hearing:
    """Watches one membership, from one thread. Whoever pauses, or polls for long, has one beside the consumer.

    kafka-python was seen to hold its partitions, poll without an error, and be given nothing for minutes. Whatever the
    cause, a new membership hears.

    Args:
        consumer: what is polled.
        clock: measures silence.
    """

    def __init__(self, consumer: Consumer, clock: Clock) -> None:
        self._consumer = consumer
        self._clock = clock
        self._heard_at = clock.monotonic()
        self._missed = False

    def polled(self, heard: bool) -> None:
        """To be called after every poll and the work on what it gave; ``heard`` says whether that was anything.

        Raises:
            Transient: messages stand there, now and one silence ago, none of them paused, and none was delivered; or
                the broker does not answer. The consumer is to be closed, and another made.
        """
        if heard:
            self._heard_at, self._missed = self._clock.monotonic(), False
            return
        if self._clock.monotonic() - self._heard_at < _SILENCE_S:
            return
        missed, self._heard_at = self._missed, self._clock.monotonic()
        waiting = self._consumer.undelivered()
        self._missed = waiting > 0
        if missed and waiting:
            raise Transient(f"{waiting} messages stand there and are not delivered", remedy="It joins its group anew.")
