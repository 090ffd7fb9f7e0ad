"""A message cannot make its reader unpack more than the bound, whatever the codec."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import lz4.frame
import pytest
import snappy
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from shortstack.core.errors import Poison
from shortstack.streams.decoding import UNREADABLE, bound_decompression, unpack
from shortstack.streams.limits import MAX_UNPACKED

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
ENCODERS: dict[int, Callable[[bytes], bytes]] = {
    GZIP: gzip_encode,
    SNAPPY: snappy_encode,
    LZ4: lz4_encode,
    ZSTD: zstd_encode,
}
ZEROS = b"\0" * (1024 * 1024)


@given(content=st.binary(max_size=5000), codec=st.sampled_from(sorted(ENCODERS)))
def test_what_a_client_packed_comes_out(content: bytes, codec: int) -> None:
    assert unpack(codec, ENCODERS[codec](content)) == content


def test_variants_that_other_clients_write_come_out() -> None:
    assert unpack(SNAPPY, snappy.compress(b"one block")) == b"one block"
    assert unpack(GZIP, gzip.compress(b"two ") + gzip.compress(b"members")) == b"two members"


def bomb(codec: int) -> bytes:
    """Zeros, a little more than the bound, written piece by piece so that the test stays small."""
    pieces = MAX_UNPACKED // len(ZEROS) + 1
    if codec == GZIP:
        packer = gzip.zlib.compressobj(9, wbits=31)  # type: ignore[attr-defined]
        return b"".join([packer.compress(ZEROS) for _ in range(pieces)] + [packer.flush()])
    if codec == LZ4:
        frame = lz4.frame.LZ4FrameCompressor()
        return bytes(frame.begin() + b"".join(frame.compress(ZEROS) for _ in range(pieces)) + frame.flush())
    if codec == ZSTD:
        packer = zstandard.ZstdCompressor().compressobj()
        return b"".join([packer.compress(ZEROS) for _ in range(pieces)] + [packer.flush()])
    block = snappy.compress(ZEROS)
    header = snappy_encode(b"")[:16]
    return header + (len(block).to_bytes(4, "big") + bytes(block)) * pieces


@pytest.mark.parametrize("codec", sorted(ENCODERS))
def test_a_bomb_is_refused_in_bounded_memory(codec: int) -> None:
    data = bomb(codec)
    tracemalloc.start()
    try:
        with pytest.raises(Poison, match="unpacks to more than"):
            unpack(codec, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_UNPACKED


@pytest.mark.parametrize("codec", sorted(ENCODERS))
@given(junk=st.binary(min_size=1, max_size=200))
def test_junk_is_poison_at_worst(codec: int, junk: bytes) -> None:
    with suppress(Poison):
        assert len(unpack(codec, junk)) <= MAX_UNPACKED


@pytest.mark.parametrize("codec", sorted(ENCODERS))
def test_a_cut_off_batch_is_poison(codec: int) -> None:
    packed = ENCODERS[codec](bytes(range(256)) * 40)
    with pytest.raises(Poison, match="damaged"):
        unpack(codec, packed[: len(packed) // 2])


def batch(codec: int, *values: bytes) -> bytes:
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=1 << 20)
    for value in values:
        builder.append(timestamp=None, key=b"k", value=value, headers=[])
    builder.close()
    return bytes(builder.buffer())


@pytest.mark.parametrize("codec", [0, *sorted(ENCODERS)])
def test_the_client_reads_batches_as_before(codec: int) -> None:
    bound_decompression()
    records = MemoryRecords(batch(codec, b"1" * 1000, b"2" * 1000))
    assert [record.value for record in records.next_batch()] == [b"1" * 1000, b"2" * 1000]


def test_a_batch_that_cannot_be_unpacked_comes_as_that_many_unreadable_messages() -> None:
    bound_decompression()
    good = bytearray(batch(ZSTD, b"1" * 1000, b"2" * 1000, b"3" * 1000))
    good[61:] = b"\xff" * (len(good) - 61)  # the records, behind the batch's header
    found = list(MemoryRecords(bytes(good)).next_batch())
    assert [record.offset for record in found] == [0, 1, 2]
    assert {(record.key, record.value) for record in found} == {(None, None)}
    name, why = found[0].headers[0]
    assert name == UNREADABLE
    assert b"damaged" in why
    assert b"3 records" in why


class NotUtf8(str):
    """A header's name as a client may write it that sends bytes as they are."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"caf\xe9"


def with_headers(codec: int, *headers: list[tuple[str, bytes]]) -> bytearray:
    """A batch with one record for each list of headers; its checksum is not asked for here."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=1 << 20)
    for number, some in enumerate(headers):
        builder.append(timestamp=5, key=b"k", value=b"%d" % number * 100, headers=some)
    builder.close()
    return bytearray(builder.buffer())


def read(data: bytes | bytearray) -> list[tuple[int, bytes | None, str | None]]:
    """Offset, value, and why it is unreadable, of each record."""
    bound_decompression()
    found = []
    for record in MemoryRecords(bytes(data)).next_batch():
        why = dict(record.headers).get(UNREADABLE)
        found.append((record.offset, record.value, None if why is None else why.decode()))
    return found


@pytest.mark.parametrize("codec", [0, *sorted(ENCODERS)])
def test_a_header_whose_name_is_no_utf8_makes_its_record_unreadable_and_no_other(codec: int) -> None:
    first, second, third = read(with_headers(codec, [("a", b"1")], [(NotUtf8("x"), b"1")], []))
    assert (first, third) == ((0, b"0" * 100, None), (2, b"2" * 100, None))
    assert second[:2] == (1, None)
    assert "utf-8" in str(second[2])


def test_a_header_of_negative_length_makes_its_record_unreadable_and_no_other() -> None:
    data = with_headers(0, [], [("name", b"1")], [])
    place = data.index(b"\x08name")  # 4, as the format's signed varint
    data[place] = 0x01  # -1
    first, second, third = read(data)
    assert (first, third) == ((0, b"0" * 100, None), (2, b"2" * 100, None))
    assert second[:2] == (1, None)
    assert "negative header key" in str(second[2])


def test_where_a_record_does_not_say_its_end_all_that_follow_are_unreadable() -> None:
    data = with_headers(0, [], [], [])
    second = data.index(b"1" * 100) - 9  # its length, attributes, time, place, key and the value's own length
    data[second : second + 2] = b"\xff\xff"
    found = read(data)
    assert [(offset, value) for offset, value, _ in found] == [(0, b"0" * 100), (1, None), (2, None)]
    assert found[0][2] is None
    assert all("cannot be read" in str(why) for _, _, why in found[1:])


@given(
    junk=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=20), codec=st.sampled_from([0, ZSTD])
)
def test_whatever_the_bytes_of_its_records_a_batch_is_read_to_its_end(junk: list[tuple[int, int]], codec: int) -> None:
    data = with_headers(codec, [("a", b"1")], [("b", b"2")], [])
    begin = DefaultRecordBatch.HEADER_STRUCT.size
    for place, byte in junk:
        if begin + place < len(data):
            data[begin + place] = byte
    assert len(read(data)) == 3
