"""What only a store on a server can do wrong, and what it then says: asked of a real S3 server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.contract.storage.test_blobs import LARGE, UnreadablePath
from tests.s3 import S3Server

from shortstack.core.errors import Fatal, NotFound, Transient
from shortstack.storage.blobs import BlobStore
from shortstack.storage.remote import RemoteBlobStore


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own cloud reaches a test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def store(server: S3Server, monkeypatch: pytest.MonkeyPatch, **more: str) -> BlobStore:
    """A store in a new bucket, opened with what the server's environment says and ``more``."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    server.make_bucket(bucket)
    return opened(server, bucket, monkeypatch, **more)


def opened(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, **more: str) -> BlobStore:
    for name, value in {**server.environment, **more}.items():
        monkeypatch.setenv(name, value)
    return BlobStore.open(f"s3://{bucket}/prefix")


def asks(blobs: BlobStore) -> Iterable[Callable[[str], object]]:
    """Every way to ask for a key."""
    return (blobs.get, blobs.stream, blobs.exists, blobs.size, blobs.delete_prefix)


def test_objects_lie_below_the_prefix_under_their_own_names(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = store(s3, monkeypatch)
    blobs.put("a b/100%.json", b"{}")
    (bucket,) = [b["Name"] for b in s3.client().list_buckets()["Buckets"][-1:]]
    listed = s3.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == ["prefix/a b/100%.json"]


def test_more_objects_than_one_page_of_a_listing_are_deleted(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = store(s3, monkeypatch)
    for number in range(1_010):
        blobs.put(f"many/{number}", b"")
    blobs.put("many-more", b"")
    assert blobs.delete_prefix("many") == 1_010
    assert [blobs.exists(key) for key in ("many/0", "many/1009", "many-more")] == [False, False, True]


def test_an_upload_cut_short_leaves_no_parts_behind(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blobs = store(s3, monkeypatch)
    broken = UnreadablePath(tmp_path / "source")
    with Path(broken).open("wb") as file:
        file.truncate(LARGE)
    with pytest.raises(Transient):
        blobs.put_file("large", broken)
    bucket = s3.client().list_buckets()["Buckets"][-1]["Name"]
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)


def test_a_file_that_shrinks_while_it_is_sent_is_not_stored(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Shrinking(type(Path())):
        def open(self, *arguments: object, **named: object) -> object:
            os.truncate(self, LARGE - 1)
            return super().open(*arguments, **named)

    blobs = store(s3, monkeypatch)
    path = Shrinking(tmp_path / "source")
    with Path(path).open("wb") as file:
        file.truncate(LARGE)
    with pytest.raises(Transient, match="changed while it was stored"):
        blobs.put_file("large", path)
    assert not blobs.exists("large")


def test_wrong_credentials_are_fatal_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path / "server.log") as server:
        server.make_bucket("bucket")
        server.ask_for_credentials()
        opened(server, "bucket", monkeypatch).put("a", b"x")
        for wrong in ({"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}):
            blobs = opened(server, "bucket", monkeypatch, **wrong)
            for ask in (partial(blobs.put, "b", b"x"), *(partial(one, "a") for one in asks(blobs))):
                with pytest.raises(Fatal, match="s3://bucket/prefix: refused: ") as raised:
                    ask()
                assert "AWS_ACCESS_KEY_ID" in raised.value.remedy
                assert "wrong" not in str(raised.value)
        assert opened(server, "bucket", monkeypatch).get("a") == b"x"


def test_a_server_that_is_away_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path / "server.log") as server:
        blobs = store(server, monkeypatch)
        blobs.put("a", b"x")
        server.stop()
        (tmp_path / "large").touch()
        os.truncate(tmp_path / "large", LARGE)
        stores = (partial(blobs.put, "b", b"x"), partial(blobs.put_file, "large", tmp_path / "large"))
        for ask in (*stores, *(partial(one, "a") for one in asks(blobs))):
            with pytest.raises(Transient, match="Connection refused"):
                ask()


def test_a_store_works_on_once_its_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path / "server.log") as server:
        server.make_bucket("bucket")
        blobs = opened(server, "bucket", monkeypatch)
        blobs.put("a", b"x" * 10_000_000)
        with blobs.stream("a") as source:
            assert source.read(1) == b"x"
            server.stop()
            with pytest.raises(Transient):
                source.read()
        server.start()
        server.make_bucket("bucket")
        blobs.put("a", b"y")
        assert blobs.get("a") == b"y"


def test_a_bucket_that_is_not_there_is_no_missing_object(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = opened(s3, "never-made", monkeypatch)
    for ask in (lambda: blobs.put("a", b"x"), lambda: blobs.get("a"), lambda: blobs.delete_prefix("a")):
        with pytest.raises(Fatal, match="NoSuchBucket") as raised:
            ask()
        assert "Create the bucket" in raised.value.remedy


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.make(tmp_path)
    with S3Server(tmp_path / "server.log", authority=authority) as server:
        server.make_bucket("bucket")
        blobs = opened(server, "bucket", monkeypatch, AWS_CA_BUNDLE=str(authority.path))
        blobs.put("a", b"x")
        assert blobs.get("a") == b"x"
        monkeypatch.delenv("AWS_CA_BUNDLE")
        with pytest.raises(Fatal, match="certificate is refused") as raised:
            opened(server, "bucket", monkeypatch).get("a")
        assert "AWS_CA_BUNDLE" in raised.value.remedy
        with pytest.raises(Fatal, match="AWS_CA_BUNDLE: cannot read"):
            opened(server, "bucket", monkeypatch, AWS_CA_BUNDLE=str(tmp_path / "nothing"))


def test_missing_credentials_are_said_before_anything_is_asked(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    with pytest.raises(Fatal, match="no credentials") as raised:
        BlobStore.open("s3://bucket/prefix")
    assert "AWS_SECRET_ACCESS_KEY" in raised.value.remedy


@pytest.mark.parametrize("url", ["s4://bucket/x", "s3://", "http://127.0.0.1/x"])
def test_what_is_no_store_is_refused_by_name(url: str) -> None:
    with pytest.raises(Fatal, match="cannot open") as raised:
        BlobStore.open(url)
    assert "s3" in raised.value.remedy


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "az://container/prefix"])
def test_the_other_clouds_are_opened_by_their_own_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert isinstance(BlobStore.open(url), RemoteBlobStore)


def test_an_object_gone_while_it_is_read_is_missing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = store(s3, monkeypatch)
    blobs.put("a", b"x" * 10_000_000)
    with blobs.stream("a") as source:
        assert source.read(1) == b"x"
        assert blobs.delete_prefix("a") == 1
        with pytest.raises(NotFound, match="no object a"):
            source.read()
