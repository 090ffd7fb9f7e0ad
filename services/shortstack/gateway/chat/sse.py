"""Server-sent events as TGI writes them: ``data: JSON``, a blank line, and comments while it is silent."""

from __future__ import annotations

__all__ = ["SseParser"]


class SseParser:
    """Bytes in, the data of whole events out, however the bytes were cut.

    Keep-alive comments (lines that begin with a colon) and fields other than ``data`` are skipped; ``data:``
    counts with and without the space. Source: the HTML standard, "Server-sent events".
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes."""
        buffer = self._rest + data if self._rest else data
        *frames, self._rest = buffer.split(b"\n\n")
        return [event for frame in frames if (event := _data(frame)) is not None]

    def end(self) -> list[bytes]:
        """The event that stood without its blank line when the stream ended, if one did."""
        frame, self._rest = self._rest, b""
        event = _data(frame)
        return [] if event is None else [event]


def _data(frame: bytes) -> bytes | None:
    if frame.startswith(b"data:") and b"\n" not in frame:
        return frame[5:].strip()
    lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
