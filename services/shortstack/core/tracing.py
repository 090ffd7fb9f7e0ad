"""Trace context that follows a dataset through topics, gRPC and logs, in W3C ``traceparent`` form.

Only OpenTelemetry's API is needed; with its SDK installed, its spans are what is carried.
Source of the format: W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace

__all__ = ["TRACEPARENT", "current_trace_id", "extract", "inject", "span"]

TRACEPARENT: Final = "traceparent"
"""Name of the header, on Kafka messages and in gRPC metadata."""

_SAMPLED: Final = trace.TraceFlags(trace.TraceFlags.SAMPLED)


def inject() -> str:
    """The current span as a ``traceparent``; outside of any span, a trace that begins here."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{int(current.trace_flags):02x}"


def extract(traceparent: str | None) -> trace.SpanContext | None:
    """The remote span that ``traceparent`` names; None if there is none or it is malformed.

    A malformed header starts a new trace instead of failing the message, as the W3C text asks.
    """
    parts = (traceparent or "").split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:4])
    except ValueError:
        return None
    found = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return found if found.is_valid else None


@contextmanager
def span(traceparent: str | None = None) -> Iterator[str]:
    """Runs the block as a child of ``traceparent`` (else of the current span, else of nothing); gives its trace id."""
    parent = extract(traceparent) or trace.get_current_span().get_span_context()
    child = trace.SpanContext(
        parent.trace_id if parent.is_valid else secrets.randbits(128) or 1,
        secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=parent.trace_flags if parent.is_valid else _SAMPLED,
    )
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(child)))
    try:
        yield f"{child.trace_id:032x}"
    finally:
        context.detach(token)


def current_trace_id() -> str | None:
    """32 hex digits of the current trace; None outside of one."""
    current = trace.get_current_span().get_span_context()
    return f"{current.trace_id:032x}" if current.is_valid else None
