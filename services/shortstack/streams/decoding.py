"""The one place that bounds what kafka-python unpacks, and steps over what it cannot read.

The client decompresses whole batches before it looks at them: 400 MiB of zeros, 13 kB on the wire, cost 1.2 GB.
Here every codec stops at `MAX_UNPACKED` bytes. A batch that unpacks to more, or not at all, is delivered as one empty
message per record with the header `UNREADABLE`, so that it is set aside by position and the next one flows. So is a
single record whose bytes are not what the format says, such as a header's name that is no UTF-8: any client may write
one, no broker refuses it, and an exception inside ``poll()`` would come again for ever.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import lz4.frame
import snappy
import zstandard
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint, encode_varint

from shortstack.core.errors import Poison
from shortstack.streams.limits import MAX_UNPACKED

__all__ = ["UNREADABLE", "bound_decompression", "unpack"]

UNREADABLE: Final = "shortstack-unreadable"
"""Header of a message that could not be unpacked or read; its value says why."""

_MOST_PLACEHOLDERS: Final = 10_000
_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = 16


def bound_decompression() -> None:
    """Puts the bounded decoders in the place of kafka-python's; calling it twice changes nothing."""
    DefaultRecordBatch._maybe_uncompress = _unpack_batch
    DefaultRecordBatch.__iter__ = _records
    LegacyRecordBatch._decompress = _refuse_legacy


def unpack(codec: int, data: bytes) -> bytes:
    """Decompresses a batch's records, to `MAX_UNPACKED` bytes at most.

    Args:
        codec: number of the codec in the batch's attributes (KIP-98, KIP-110).
        data: the compressed records.

    Raises:
        Poison: there would be more, or ``data`` is damaged, or the codec unknown.
    """
    if codec not in _CODECS:
        raise Poison(f"compression codec {codec} is unknown")
    try:
        unpacked = _CODECS[codec](data)
    except (zlib.error, zstandard.ZstdError, RuntimeError, ValueError, struct.error, snappy.UncompressError) as error:
        raise Poison(f"compressed batch is damaged: {error}") from error
    if len(unpacked) > MAX_UNPACKED:
        raise _bomb()
    return unpacked


def _bomb() -> Poison:
    return Poison(
        f"batch unpacks to more than {MAX_UNPACKED} bytes",
        remedy="Send smaller batches, or put the content in the object store and send its key.",
    )


def _gunzip(data: bytes) -> bytes:
    parts: list[bytes] = []
    room = MAX_UNPACKED + 1
    while data and room > 0:
        member = zlib.decompressobj(wbits=31)
        part = member.decompress(data, room)
        parts.append(part)
        room -= len(part)
        if room > 0 and not member.eof:
            raise ValueError("gzip ends early")
        data = member.unused_data
    return b"".join(parts)


def _unsnappy(data: bytes) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return _unsnappy_block(data, MAX_UNPACKED)
    parts: list[bytes] = []
    room, place = MAX_UNPACKED, _XERIAL_HEADER
    while place < len(data):
        (size,) = struct.unpack_from("!i", data, place)
        if size <= 0:
            raise ValueError(f"snappy block of {size} bytes")
        part = _unsnappy_block(data[place + 4 : place + 4 + size], room)
        parts.append(part)
        room -= len(part)
        place += 4 + size
    return b"".join(parts)


def _unsnappy_block(block: bytes, room: int) -> bytes:
    """A snappy block begins with its unpacked length, as a varint of at most 5 bytes."""
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    if length > room:
        raise _bomb()
    return bytes(snappy.uncompress(block))


def _unlz4(data: bytes) -> bytes:
    decoder = lz4.frame.LZ4FrameDecompressor()
    unpacked = bytes(decoder.decompress(data, max_length=MAX_UNPACKED + 1))
    if len(unpacked) <= MAX_UNPACKED and not decoder.eof:
        raise ValueError("lz4 ends early")
    return unpacked


def _unzstd(data: bytes) -> bytes:
    """Twice: the reader is bounded but takes a cut-off frame for the end, the other is the reverse."""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        unpacked = reader.read(MAX_UNPACKED + 1)
    while data and len(unpacked) <= MAX_UNPACKED:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frame.decompress(data)
        if not frame.eof:
            raise ValueError("zstd ends early")
        data = frame.unused_data
    return unpacked


_CODECS: Final[dict[int, Callable[[bytes], bytes]]] = {1: _gunzip, 2: _unsnappy, 3: _unlz4, 4: _unzstd}


def _unpack_batch(batch: Any) -> None:
    """Takes the place of ``DefaultRecordBatch._maybe_uncompress``: same fields, bounded."""
    if batch._decompressed:
        return
    if batch.compression_type:
        try:
            records = unpack(batch.compression_type, bytes(memoryview(batch._buffer)[batch._pos :]))
        except Poison as error:
            batch._num_records = batch.records_count if 0 < batch.records_count <= _MOST_PLACEHOLDERS else 1
            records = _placeholders(batch._num_records, f"{error}; {batch.records_count} records")
        batch._buffer = bytearray(records)
        batch._pos = 0
    batch._decompressed = True


def _records(batch: Any) -> Iterator[Any]:
    """Takes the place of ``DefaultRecordBatch.__iter__``: the same records, and a placeholder for an unreadable one."""
    batch._maybe_uncompress()
    least = 0  # the next record's place in the batch, unless compaction has left a gap
    while batch._next_record_index < batch._num_records:
        begin = batch._pos
        try:
            record = next(batch)
        except CorruptRecordError as error:
            record = _unreadable(batch, begin, least, f"record cannot be read: {error}")
        least = record.offset - batch.base_offset + 1
        yield record


def _unreadable(batch: Any, begin: int, least: int, why: str) -> Any:
    """Stands for the record at ``begin``; where its end is not known either, for all that follow in the batch too."""
    end, delta = _extent(batch._buffer, begin)
    if end is None:
        rest = batch._num_records - batch._next_record_index
        rest = rest if rest <= _MOST_PLACEHOLDERS else 1
        batch._num_records = batch._next_record_index + rest
        batch._buffer, batch._pos = bytearray(_placeholders(rest, why, least)), 0
        return next(batch)
    batch._pos = end
    batch._next_record_index += 1
    place = delta if delta is not None and least <= delta <= batch.last_offset_delta else least
    header = (UNREADABLE, why.encode())
    offset, stamp = batch.base_offset + place, batch.max_timestamp
    return DefaultRecord(end - begin, offset, stamp, batch.timestamp_type, None, None, [header])


def _extent(buffer: bytearray, begin: int) -> tuple[int | None, int | None]:
    """Where the record at ``begin`` ends, and its place in the batch; each None where the bytes do not say."""
    try:
        length, start = decode_varint(buffer, begin)
        if length < 0 or start + length > len(buffer):
            return None, None
    except (ValueError, IndexError):
        return None, None
    try:
        _, pos = decode_varint(buffer, start + 1)  # behind the attributes: the time, then the place
        delta, _ = decode_varint(buffer, pos)
    except (ValueError, IndexError):
        return start + length, None
    return start + length, delta


def _placeholders(count: int, why: str, first: int = 0) -> bytes:
    """``count`` records of format v2 without key and value, with the header `UNREADABLE`."""
    name, text = UNREADABLE.encode(), why.encode()
    out = bytearray()
    for delta in range(first, first + count):
        record = bytearray(b"\x00")  # attributes
        for number in (0, delta, -1, -1, 1, len(name)):  # time, offset, no key, no value, one header
            encode_varint(number, record.append)
        record += name
        encode_varint(len(text), record.append)
        record += text
        encode_varint(len(record), out.append)
        out += record
    return bytes(out)


def _refuse_legacy(_batch: Any, _key_offset: int) -> bytes:
    raise Poison("message format v0 or v1 is not read", remedy="Use a producer of Kafka 0.11 or newer.")
