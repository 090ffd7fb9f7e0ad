"""What a request can fail with, and how each failure reads on TGI's wire::

Rejected          422 validation    the request breaks a rule                (Invalid)
Overloaded        429 overloaded    every permit is taken                    (Transient)
GenerationFailed  424 generation    the model failed while it ran            (Transient)
Incomplete        500 incomplete_…  the server ended before the answer did   (Transient)
BodyRefused       text/plain        the body is no generate request at all   (Invalid)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Invalid, ShortstackError, Transient

__all__ = ["BodyRefused", "GenerationFailed", "Incomplete", "Overloaded", "Rejected", "WireError", "wire_error"]


class Rejected(Invalid):
    """The request breaks a rule of the API."""


class Overloaded(Transient):
    """All permits are taken; there is no waiting room."""

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationFailed(Transient):
    """The model failed while it worked on this request."""


class Incomplete(Transient):
    """The server stopped before the answer was whole."""


class BodyRefused(Invalid):
    """The body could not be read as a request; answered in plain text, as axum's extractors do."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True, slots=True)
class WireError:
    """One failure as TGI sends it.

    Attributes:
        status: HTTP status of a reply that is no stream.
        error: text of the field ``error``.
        error_type: value of the field ``error_type``.
        metric: label ``err`` of ``tgi_request_failure``.
    """

    status: int
    error: str
    error_type: str
    metric: str

    @property
    def body(self) -> dict[str, str]:
        """The JSON object of the reply or event."""
        return {"error": self.error, "error_type": self.error_type}


_KINDS: Final[dict[type[ShortstackError], tuple[int, str, str, str]]] = {
    Rejected: (422, "Input validation error: ", "validation", "validation"),
    Overloaded: (429, "", "overloaded", "overloaded"),
    GenerationFailed: (424, "Request failed during generation: Server error: ", "generation", "generation"),
    Incomplete: (500, "", "incomplete_generation", "incomplete"),
}


def wire_error(error: ShortstackError) -> WireError:
    """How ``error`` reads; anything undeclared is a failure during generation."""
    status, prefix, error_type, metric = _KINDS.get(type(error), _KINDS[GenerationFailed])
    return WireError(status, f"{prefix}{error}", error_type, metric)
