"""What the compiling child says to its parent over a pipe: a JSON head and a payload a frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import orjson

__all__ = ["Frame", "read_frames", "write_frame"]

_LENGTHS: Final = struct.Struct(">II")
_MAX: Final = 64 * 1024 * 1024
"""The child reads what strangers wrote; its parent believes no length beyond this."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``head["kind"]`` is opened, batch, done or error."""

    head: dict[str, Any]
    payload: bytes = b""


def write_frame(out: BinaryIO, head: dict[str, Any], payload: bytes = b"") -> None:
    """Writes one frame."""
    packed = orjson.dumps(head)
    out.write(_LENGTHS.pack(len(packed), len(payload)))
    out.write(packed)
    out.write(payload)


def read_frames(source: BinaryIO) -> Iterator[Frame]:
    """Frames until the pipe closes; one that breaks off is not given.

    Raises:
        ValueError: what comes are no frames.
    """
    while True:
        lengths = source.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            return
        head_bytes, payload_bytes = _LENGTHS.unpack(lengths)
        if head_bytes > _MAX or payload_bytes > _MAX:
            raise ValueError(f"a frame of {head_bytes} and {payload_bytes} bytes")
        head, payload = source.read(head_bytes), source.read(payload_bytes)
        if len(head) < head_bytes or len(payload) < payload_bytes:
            return
        yield Frame(orjson.loads(head), payload)
