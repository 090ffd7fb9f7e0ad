"""The error tree of the whole stack, and how its kinds read on the wire.

Every error says what was wrong, where it stands (dataset, file, line, field), and what to do.
What happens next follows from the kind alone: retry, set aside, or stop.

    ShortstackError
    ├── Transient            try again: broker away, upstream 503   → back off, same place
    ├── Poison               this input never works: bytes, schema  → dead letter, next
    │   ├── Invalid          the caller's fault; names the field and the nearest valid value
    │   ├── NotFound         there is no such dataset, run, model, file
    │   ├── Conflict         it exists already, or its state forbids the request
    │   └── Forbidden        a policy or a scope forbids it
    └── Fatal                nothing works here: config, disk, version → exit, non-zero
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Conflict",
    "Fatal",
    "Forbidden",
    "Invalid",
    "NotFound",
    "Poison",
    "ShortstackError",
    "Transient",
    "WireCode",
    "did_you_mean",
    "wire_code",
]


class ShortstackError(Exception):
    """What went wrong, where, and what to do about it.

    Args:
        what: one sentence that names the offending value.
        where: the place, narrowest last, for example ``"dataset faq, tickets.jsonl line 4182"``.
        remedy: what the reader can do, as an instruction.
        param: the request field at fault, in dotted form, for API errors.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", param: str | None = None) -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.param = param

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if not self.remedy:
            return text
        return f"{text.rstrip('.')}. {self.remedy}"


class Transient(ShortstackError):
    """Trying the same thing again may work."""


class Poison(ShortstackError):
    """This input never works, however often it is tried."""


class Invalid(Poison):
    """The request or record breaks its contract."""


class NotFound(Poison):
    """The thing that was asked for does not exist."""


class Conflict(Poison):
    """The current state forbids what was asked."""


class Forbidden(Poison):
    """A policy, key or scope does not allow it."""


class Fatal(ShortstackError):
    """This process cannot do its work at all; it should exit."""


@dataclass(frozen=True, slots=True)
class WireCode:
    """How one kind of error reads outside the process.

    Attributes:
        grpc: name of a ``grpc.StatusCode`` member.
        http: HTTP status.
        openai_type: ``error.type`` of OpenAI's error object.
        exit_code: exit status of a command, after ``sysexits.h`` where one fits.
    """

    grpc: str
    http: int
    openai_type: str
    exit_code: int


_WIRE_CODES: Final[dict[type[BaseException], WireCode]] = {
    Invalid: WireCode("INVALID_ARGUMENT", 400, "invalid_request_error", 65),
    NotFound: WireCode("NOT_FOUND", 404, "invalid_request_error", 66),
    Conflict: WireCode("FAILED_PRECONDITION", 409, "invalid_request_error", 73),
    Forbidden: WireCode("PERMISSION_DENIED", 403, "permission_error", 77),
    Poison: WireCode("INVALID_ARGUMENT", 400, "invalid_request_error", 65),
    Transient: WireCode("UNAVAILABLE", 503, "service_unavailable", 75),
    Fatal: WireCode("INTERNAL", 500, "server_error", 70),
}


def wire_code(error: BaseException) -> WireCode:
    """The codes of ``error``: those of its nearest declared ancestor, else an internal error."""
    for kind in type(error).__mro__:
        if kind in _WIRE_CODES:
            return _WIRE_CODES[kind]
    return WireCode("INTERNAL", 500, "server_error", 70)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A remedy that asks for what is close to ``given`` by name, if anything is, and then lists ``known``.

    The nearest is found by ``difflib`` with its default cutoff of 0.6, without regard to case.
    """
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1)
    listed = ", ".join(names) if names else "none"
    hint = f'Did you mean "{by_lower[close[0]]}"? ' if close else ""
    return f"{hint}Known: {listed}."
