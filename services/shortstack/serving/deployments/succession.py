"""After an upgrade of the template: which servers wait for their successors, whose turn it is, who was given up."""

from __future__ import annotations

from dataclasses import dataclass

from shortstack.core.clock import Clock

__all__ = ["Succession"]


@dataclass(slots=True)
class _Wait:
    """One server of an earlier template.

    Attributes:
        successor: the server of the template of now.
        began: when that was first asked for; none while it waits for its turn.
        why: why it has not come.
        given_up: it will not be asked for again.
    """

    successor: str
    began: float | None = None
    why: str = ""
    given_up: bool = False


class Succession:
    """What is remembered of an upgrade, by the server that is to go. From one thread.

    A third template forgets what was given up of the second: its servers have other names. So does a restart.

    Args:
        patience_s: seconds after which a successor is given up that is not there.
    """

    def __init__(self, clock: Clock, patience_s: float) -> None:
        self._clock, self._patience_s = clock, patience_s
        self._turn = ""
        self._waits: dict[str, _Wait] = {}

    def take_turn(self, successor: str) -> str:
        """Takes the turn if it is free: one at a time, for each wants room beside its old one; whose it is now."""
        self._turn = self._turn or successor
        return self._turn

    def wait(self, before: str, successor: str, why: str) -> None:
        """Notes why a successor has not come."""
        self._of(before, successor).why = why

    def waited(self, before: str, successor: str) -> float:
        """Seconds since a successor was first asked for; the first call is that."""
        now, wait = self._clock.monotonic(), self._of(before, successor)
        wait.began = now if wait.began is None else wait.began
        return now - wait.began

    def is_late(self, before: str, successor: str) -> bool:
        """Whether patience is at its end."""
        return self.waited(before, successor) > self._patience_s

    def give_up(self, before: str, successor: str, why: str) -> None:
        """The old server stays, the next one has its turn."""
        waited = self.waited(before, successor)
        again = "It is tried again with another template, or when the serving service is started again"
        said = f"server-{successor} was given up after {waited:.0f} s: {why.rstrip('.')}. {again}"
        self.wait(before, successor, said)
        self._of(before, successor).given_up = True
        self.pass_turn(successor)

    def has_given_up(self, before: str, successor: str) -> bool:
        """Whether exactly this successor was given up."""
        known = self._waits.get(before)
        return known is not None and known.successor == successor and known.given_up

    def why(self, before: str) -> str:
        """Why a server is still needed; empty if it has no successor, or nobody asked yet."""
        return self._waits[before].why if before in self._waits else ""

    def forget(self, before: str) -> None:
        """The successor has come, or there is nothing to go back to any more."""
        self._waits.pop(before, None)

    def pass_turn(self, successor: str) -> None:
        """Gives the turn to the next one, if it is this one's."""
        if self._turn == successor:
            self._turn = ""

    def needed(self, before: str, successor: str) -> set[str]:
        """Which of the two must stay for a route that leads to ``before`` ("" if there is none)."""
        return {before, successor} - {"", successor if self.has_given_up(before, successor) else ""}

    def keep(self, needed: set[str]) -> None:
        """Forgets servers that nobody needs any more."""
        if self._turn not in needed:
            self._turn = ""
        self._waits = {before: wait for before, wait in self._waits.items() if before in needed}

    def _of(self, before: str, successor: str) -> _Wait:
        known = self._waits.get(before)
        if known is None or known.successor != successor:
            known = self._waits[before] = _Wait(successor)
        return known
