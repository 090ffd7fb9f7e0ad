"""A controller's thread: open once, then one turn after another, until told to stop.

What is transient (the broker is away, the object store hiccups) is tried again after a pause and shows in readiness;
anything else ends the process, which says why.
"""

from __future__ import annotations

from typing import Final, Protocol

from shortstack.core.clock import Clock
from shortstack.core.errors import Transient
from shortstack.core.health import Health
from shortstack.core.lifecycle import Background
from shortstack.core.telemetry import Telemetry

__all__ = ["Loop", "Turning"]

_PAUSE_S: Final = 1.0


class Turning(Protocol):
    """What a loop drives; all three run in the loop's thread."""

    def open(self) -> None:
        """Gets ready to turn. After a `Transient` it is called again, from the beginning."""
        ...

    def turn(self) -> None:
        """One round; should take well under a second. After a `Transient` the next round goes on."""
        ...

    def close(self) -> None:
        """Lets go of what `open` took, however far it got."""
        ...


class Loop(Background):
    """A component around a `Turning`.

    Args:
        name: of the thread, and of its part in readiness.
    """

    def __init__(self, name: str, turning: Turning, health: Health, telemetry: Telemetry, clock: Clock) -> None:
        super().__init__(name)
        self._name, self._turning, self._health = name, turning, health
        self._telemetry, self._clock = telemetry, clock
        self._waits = telemetry.metrics.waits.labels(name)
        health.ready(name, False, "starting")

    def _run(self) -> None:
        try:
            self._turn()
        finally:
            self._turning.close()

    def _turn(self) -> None:
        opened = False
        while not self._stopping.is_set():
            try:
                if not opened:
                    self._turning.open()
                    opened = True
                self._turning.turn()
                self._health.ready(self._name, True)
            except Transient as error:
                self._waits.inc()
                self._health.ready(self._name, False, str(error))
                self._telemetry.log.warning("trying again", part=self._name, error=str(error))
                self._clock.wait(self._stopping, _PAUSE_S)
            self._health.progress()
