"""What a broker's log says when it does not start, in words that help."""

from __future__ import annotations

from typing import Final

from shortstack.core.errors import Fatal

__all__ = ["broker_fault"]

_FAULTS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "No space left on device",
        "the disk is full",
        "Free some disk space, or set SHORTSTACK_VAR to a larger disk; what the broker holds is kept.",
    ),
    (
        "Address already in use",
        "its port is taken",
        "Stop what listens there, or set SHORTSTACK_PORT_BASE to another number.",
    ),
    (
        "Failed to acquire lock on file",
        "another broker runs on the same data",
        "Stop it (`shortstack down`), or set SHORTSTACK_VAR to another folder.",
    ),
    (
        "OutOfMemoryError",
        "it ran out of memory",
        "Set SHORTSTACK_KAFKA_HEAP_MB to a larger number.",
    ),
    (
        "UnsupportedClassVersionError",
        "its Java is too old",
        "Leave SHORTSTACK_JAVA unset, or name a newer Java.",
    ),
)
"""(what the log says, what that means, what to do)."""


def broker_fault(what: str, lines: list[str], log: str) -> Fatal:
    """``what`` happened, with the reason that ``lines`` of the broker's output name, if they name one."""
    text = "\n".join(lines)
    for sign, meaning, remedy in _FAULTS:
        if sign in text:
            return Fatal(f"the broker did not start: {meaning}", where=log, remedy=remedy)
    wrong = [line for line in lines if " ERROR " in line or "Exception" in line or line.startswith("Error")]
    said = (wrong or [line for line in lines if line.strip()] or ["it said nothing"])[0].strip()
    return Fatal(f"the broker did not start: {what}; it said: {said[:300]}", where=log, remedy="Read its log.")
