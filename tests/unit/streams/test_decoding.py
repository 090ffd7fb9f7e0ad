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
