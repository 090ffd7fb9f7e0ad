"""What may be read, how it is pinned, and how uploads become whole."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.core.errors import Conflict, Forbidden, Invalid, NotFound, Poison, Transient
from shortstack.declarations.publication import PointerMessage, parse_publication
from shortstack.ingestion.composition import wish_checker
from shortstack.ingestion.config import IngestionConfig
from shortstack.ingestion.sources.pinning import Pins
from shortstack.ingestion.sources.policy import SourcePolicy
from shortstack.ingestion.sources.uploads import Uploads, json_lines
from shortstack.storage.blobs import MemoryBlobStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
RECORDS = [{"prompt": str(number), "completion": "x"} for number in range(12)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", ".hidden.jsonl"):
        (root / name).write_bytes(name.encode())
    (tmp_path / "secret.jsonl").write_bytes(b"secret")
    return root


@pytest.fixture
def policy(root: Path) -> SourcePolicy:
    blobs = MemoryBlobStore()
    blobs.put("files/default/file-1", b"mine")
    blobs.put("files/other/file-2", b"theirs")
    return SourcePolicy([root], blobs)


class CountingBlobs(MemoryBlobStore):
    """Counts how often parts are asked for."""

    parts_read = 0

    def get(self, key: str) -> bytes:
        self.parts_read += "/part-" in key
        return super().get(key)


def contents(policy: SourcePolicy, uri: str) -> list[bytes]:
    found = []
    for address in policy.resolve(uri, "default"):
        with address.open() as source:
            found.append(source.read())
    return found


def test_files_below_a_root_are_read_by_any_way_of_naming_them(policy: SourcePolicy, root: Path) -> None:
    for uri in ("deep/c.jsonl", f"{root}/deep/c.jsonl", f"file://{root}/deep/c.jsonl"):
        assert contents(policy, uri) == [b"deep/c.jsonl"]
    assert contents(policy, "blob://files/default/file-1") == [b"mine"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENAMETOOLONG, Invalid), (errno.EACCES, Forbidden), (errno.EIO, Transient), (errno.ESTALE, Transient)],
)
def test_a_disk_that_fails_is_not_the_publishers_fault(
    policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def is_file(path: Path) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "is_file", is_file)
    with pytest.raises(kind, match="cannot be matched"):
        policy.resolve("*.jsonl", "default")


def test_a_pattern_gives_its_files_in_sorted_order(policy: SourcePolicy, root: Path) -> None:
    assert contents(policy, "*.jsonl") == [b"a.jsonl", b"b.jsonl"]
    assert contents(policy, f"{root}/*.jsonl") == [b"a.jsonl", b"b.jsonl"]
    assert [a.uri for a in policy.resolve("file://*.jsonl", "default")] == ["file://a.jsonl", "file://b.jsonl"]
    assert [a.name for a in policy.resolve("deep/*", "default")] == ["c.jsonl"]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("../secret.jsonl", Forbidden),
        ("deep/../../secret.jsonl", Forbidden),
        ("/etc/hostname", Forbidden),
        ("file:///etc/hostname", Forbidden),
        ("blob://files/other/file-2", Forbidden),
        ("blob://files/default/../other/file-2", Poison),
        ("blob://files/default/absent", NotFound),
        ("absent.jsonl", NotFound),
        ("absent*.jsonl", NotFound),
        ("deep", Forbidden),
        ("https://example.org/x.jsonl", Forbidden),
        ("hf://databricks/dolly", Forbidden),
        ("s3://bucket/key", Forbidden),
        ("simplecache::file://a.jsonl", Forbidden),
        ("ftp://host/x", Invalid),
        ("upload://never", NotFound),
        ("", Invalid),
    ],
)
def test_what_may_not_be_read_is_refused(policy: SourcePolicy, uri: str, kind: type[Poison]) -> None:
    with pytest.raises(kind):
        policy.resolve(uri, "default")


def test_links_are_not_followed_wherever_they_stand(policy: SourcePolicy, root: Path) -> None:
    (root / "link.jsonl").symlink_to(root.parent / "secret.jsonl")
    (root / "out").symlink_to(root.parent)
    for uri in ("link.jsonl", "out/secret.jsonl"):
        with pytest.raises(Forbidden):
            policy.resolve(uri, "default")
    assert contents(policy, "*.jsonl") == [b"a.jsonl", b"b.jsonl"]
    with pytest.raises(NotFound):
        policy.resolve("out/*.jsonl", "default")


def test_a_link_slipped_in_after_the_check_is_not_followed(policy: SourcePolicy, root: Path) -> None:
    (address,) = policy.resolve("a.jsonl", "default")
    (root / "a.jsonl").unlink()
    (root / "a.jsonl").symlink_to(root.parent / "secret.jsonl")
    with pytest.raises(Forbidden):
        address.open()


def test_a_pipe_is_no_file(policy: SourcePolicy, root: Path) -> None:
    os.mkfifo(root / "pipe.jsonl")
    with pytest.raises(Forbidden, match="no plain file"):
        policy.resolve("pipe.jsonl", "default")


def test_a_pinned_source_is_named_by_its_digest_and_outlives_the_file(
    policy: SourcePolicy, root: Path, tmp_path: Path
) -> None:
    blobs = MemoryBlobStore()
    pins = Pins(blobs, tmp_path / "work", max_bytes=100)
    pinned = pins.pin(policy.resolve("a.jsonl", "default")[0], "default")
    (root / "a.jsonl").write_bytes(b"changed")
    sha256 = hashlib.sha256(b"a.jsonl").hexdigest()
    assert (pinned.key, pinned.sha256, pinned.size) == (f"sources/default/{sha256}", sha256, 7)
    with pins.scratch() as scratch:
        assert pins.local(pinned.key, sha256, scratch).read_bytes() == b"a.jsonl"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_source_above_the_limit_is_refused(policy: SourcePolicy, tmp_path: Path) -> None:
    pins = Pins(MemoryBlobStore(), tmp_path / "work", max_bytes=3)
    with pytest.raises(Invalid, match="larger than 3 bytes"):
        pins.pin(policy.resolve("a.jsonl", "default")[0], "default")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(1, 11), max_size=5), st.randoms(use_true_random=False))
def test_parts_in_any_order_and_number_make_the_same_source(cuts: set[int], chance: object) -> None:
    uploads = Uploads(MemoryBlobStore())
    edges = [0, *sorted(cuts), 12]
    parts = [(first, RECORDS[first:last]) for first, last in itertools.pairwise(edges)]
    sent = [*parts, *parts[:2]]
    chance.shuffle(sent)  # type: ignore[attr-defined]
    for number, (seq, records) in enumerate(sent):
        whole = uploads.missing("o", "u", 12) is None
        assert whole == ({seq for seq, _ in sent[:number]} == {seq for seq, _ in parts})
        uploads.add("o", "u", seq, records, where="test")
    with uploads.joined("o", "u", 12) as joined:
        assert joined.read() == json_lines(RECORDS)


def test_contradictions_in_an_upload_are_refused_by_name() -> None:
    uploads = Uploads(MemoryBlobStore())
    uploads.add("o", "u", 0, RECORDS[:5], where="upload u")
    with pytest.raises(Conflict, match="sent before with other records"):
        uploads.add("o", "u", 0, RECORDS[1:6], where="upload u")
    closing = {"dataset": "d", "upload": "u", "complete": True, "records": 8}
    uploads.close("o", "u", closing, at=AT, where="upload u")
    uploads.close("o", "u", closing, at=AT, where="upload u")
    with pytest.raises(Conflict, match="closed before"):
        uploads.close("o", "u", {**closing, "records": 9}, at=AT, where="upload u")
    with pytest.raises(Invalid, match="after the end"):
        uploads.add("o", "u", 5, RECORDS[5:], where="upload u")
    assert uploads.missing("o", "u", 8) == "the part from 5 on"
    with pytest.raises(Invalid, match="hold at least 5 records"):
        uploads.missing("o", "u", 4)
    assert uploads.missing("other", "u", 8) == "the part from 0 on"


def test_a_part_within_another_is_refused_and_the_upload_goes_on() -> None:
    blobs = MemoryBlobStore()
    for uploads in (Uploads(blobs), Uploads(blobs)):  # the second knows what the first left
        uploads.add("o", "u", 0, RECORDS[:8], where="upload u")
        for seq, records in ((4, [{"lost": 1}]), (4, RECORDS[5:8]), (6, RECORDS[6:10])):
            with pytest.raises(Conflict, match="sent before, in the part from 0"):
                uploads.add("o", "u", seq, records, where="upload u")
        uploads.add("o", "u", 4, RECORDS[4:6], where="upload u")  # cut anew, the same records
        uploads.add("o", "u", 10, RECORDS[10:], where="upload u")
        with pytest.raises(Conflict, match="records 10 to 10 were sent before, in the part from 10"):
            uploads.add("o", "u", 8, [*RECORDS[8:10], {"other": 1}], where="upload u")
    uploads.add("o", "u", 8, RECORDS[8:10], where="upload u")
    assert uploads.missing("o", "u", 12) is None
    with uploads.joined("o", "u", 12) as joined:
        assert joined.read() == json_lines(RECORDS)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), st.booleans()), max_size=12))
def test_no_record_that_was_taken_is_lost(parts: list[tuple[int, int, bool]]) -> None:
    uploads, taken = Uploads(MemoryBlobStore()), dict[int, object]()
    for seq, count, other in parts:
        records = [{"other": seq}] * count if other else RECORDS[seq : seq + count]
        with suppress(Conflict):
            uploads.add("o", "u", seq, records, where="test")
            taken |= dict(enumerate(records, seq))
    missing = uploads.missing("o", "u", 1000) or ""
    reached = int(missing.removeprefix("the part from ").removesuffix(" on"))
    with uploads.joined("o", "u", reached) as joined:
        assert {number: orjson.loads(line) for number, line in enumerate(joined)} == {
            number: record for number, record in taken.items() if number < reached
        }


def test_a_part_is_read_once_however_many_come_late() -> None:
    blobs = CountingBlobs()
    uploads = Uploads(blobs)
    uploads.close("o", "u", {"records": 100}, at=AT, where="upload u")
    for seq in reversed(range(100)):
        uploads.add("o", "u", seq, [seq], where="upload u")
        assert (uploads.missing("o", "u", 100) is None) == (seq == 0)
    assert blobs.parts_read <= 102


def test_a_part_beyond_the_end_is_refused_and_not_forgotten() -> None:
    """Its records were acknowledged: an upload closed with fewer than were sent must not pass for whole."""
    uploads = Uploads(MemoryBlobStore())
    uploads.add("o", "u", 0, RECORDS[:5], where="upload u")
    uploads.add("o", "u", 5, RECORDS[5:], where="upload u")
    with pytest.raises(Invalid, match="hold at least 12 records, the upload was closed with 5"):
        uploads.missing("o", "u", 5)


def test_an_upload_that_failed_takes_no_more() -> None:
    uploads = Uploads(MemoryBlobStore())
    uploads.add("o", "u", 0, RECORDS[:5], where="upload u")
    assert uploads.incomplete("o", "u") == 'the message with "complete": true, or the part from 5 on'
    uploads.fail("o", "u")
    with pytest.raises(Invalid, match="has failed"):
        uploads.add("o", "u", 5, RECORDS[5:], where="upload u")
    with pytest.raises(Invalid, match="has failed"):
        uploads.close("o", "u", {"records": 12}, at=AT, where="upload u")


def test_closing_again_keeps_the_time_of_the_first() -> None:
    uploads = Uploads(MemoryBlobStore())
    for at in (AT, AT + timedelta(hours=1)):
        uploads.close("o", "u", {"records": 12}, at=at, where="upload u")
    closing = uploads.closing("o", "u")
    assert closing is not None
    assert (closing.at, closing.records) == (AT, 12)


def test_a_recipe_that_is_too_long_is_refused_and_not_cut(root: Path, tmp_path: Path) -> None:
    (root / "long.yaml").write_text("name: faq\n" + "# a remark\n" * 30_000 + "seed: 7\n", encoding="utf-8")
    checker = wish_checker(IngestionConfig(var=tmp_path), SourcePolicy([root], MemoryBlobStore()))
    message = parse_publication({"dataset": "faq", "source": "a.jsonl", "recipe": {"uri": "long.yaml"}})
    assert isinstance(message, PointerMessage)
    with pytest.raises(Invalid, match="longer than 262144 bytes"):
        checker.check(message, "default")
