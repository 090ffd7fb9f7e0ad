"""Opening a file of any compression with a bound on what comes out."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, cast

import zstandard

from shortstack.ingestion.reading.items import Limits, Unreadable

__all__ = ["check_unfolded", "open_capped"]

_MAGIC: Final[dict[bytes, str]] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_ZSTD_PIECE: Final = 2048
"""Compressed bytes handed on at a time: 4 bytes can stand for 128 KiB, so what comes out is 64 MiB at most."""


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after another. The library's own reader takes a file that breaks off for a whole one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        # A frame may ask for a window of 2 GiB; 128 MiB is what `zstd --ultra` without --long needs at most.
        self._context = zstandard.ZstdDecompressor(max_window_size=128 * 1024**2)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = b""
        self._out = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        while not self._out:
            piece = self._rest or self._raw.read(_ZSTD_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError("the last frame is not whole")
                return b""
            self._frame = self._frame or self._context.decompressobj()
            self._out, self._rest = memoryview(self._frame.decompress(piece)), b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        given, self._out = bytes(self._out[:size]), self._out[size:]
        return given


_OPENERS: Final[dict[str, Callable[[BinaryIO], BinaryIO]]] = {
    "gzip": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb")),
    "zstd": lambda raw: cast(BinaryIO, _Zstd(raw)),
}


def check_unfolded(out: int, packed: int, limits: Limits) -> None:
    """Judges how far ``packed`` bytes have unfolded: to ``out`` so far.

    Raises:
        Unreadable: beyond ``limits``.
    """
    bomb = out > limits.ratio_floor and out > limits.ratio * max(1, packed)
    if bomb or out > limits.decompressed_bytes:
        raise Unreadable(
            f"{packed} compressed bytes unfold to more than {out}",
            code="source_too_large",
            remedy="Publish it uncompressed or in smaller files, if it is no mistake.",
        )


class _Capped(io.RawIOBase):
    """Reads through, counting; stops a bomb long before it fills anything."""

    def __init__(self, inner: BinaryIO, raw: BinaryIO, compressed_bytes: int, limits: Limits) -> None:
        self._inner = inner
        self._raw = raw
        self._compressed = max(1, compressed_bytes)
        self._limits = limits
        self._out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed names it WriteableBuffer
        try:
            data = self._inner.read(min(len(buffer), 1 << 18))
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise Unreadable(
                f"the compressed data breaks off or is damaged: {error}",
                code="damaged_source",
                remedy="Compress and publish the file again.",
            ) from error
        self._out += len(data)
        check_unfolded(self._out, self._compressed, self._limits)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        self._raw.close()  # gzip leaves what it was given open
        super().close()


def open_capped(path: Path, limits: Limits) -> io.BufferedReader:
    """Opens ``path`` for reading, unpacking gzip and zstd, told by their first bytes.

    Raises, while reading:
        Unreadable: the data is damaged, breaks off, or unfolds beyond ``limits``.
    """
    raw = path.open("rb")
    start = raw.read(4)
    raw.seek(0)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None:
        return raw
    return io.BufferedReader(_Capped(_OPENERS[kind](raw), raw, path.stat().st_size, limits), buffer_size=1 << 18)
