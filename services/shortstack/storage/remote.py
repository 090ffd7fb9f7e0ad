"""Objects in S3 and what speaks like it, in Google Cloud Storage, or in Azure; by obstore.

Addresses and credentials come from the environment, under the names that each cloud documents (``AWS_…``,
``GOOGLE_…``, ``AZURE_…``). Of S3's: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE, or a
role of the machine; AWS_REGION (us-east-1); for another server than Amazon's AWS_ENDPOINT_URL, asked with the bucket in
the path; and AWS_CA_BUNDLE where an authority of your own signed its certificate.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from shortstack.core.errors import Fatal, ShortstackError, Transient, did_you_mean
from shortstack.storage.blobs import BlobStore, check_key, differs, disk_errors, missing, same_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore.store import ClientConfig, ObjectStore

__all__ = ["RemoteBlobStore"]

_PIECE: Final = 4 * 1024 * 1024
"""Bytes of one request for a part of an object."""

_AT_ONCE: Final = 32 * 1024 * 1024
"""Up to here an object is one put, which the server refuses where the key is taken; longer ones go in parts."""

_PART: Final = 8 * 1024 * 1024
_MOST_PARTS: Final = 9_000
"""S3 takes 10,000 parts of one object at most."""

_SETTING: Final = "SHORTSTACK_STORAGE_URL"
_S3: Final = ("s3", "s3a")
_SCHEMES: Final = (*_S3, "gs", "az", "abfs", "abfss")

_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)

_CHECK_CREDENTIALS: Final = (
    "Check its credentials (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), and that they may "
    "read, write, list and delete there."
)
_REMEDIES: Final[Mapping[str, str]] = {
    "NoSuchBucket": "Create the bucket, or name another one in SHORTSTACK_STORAGE_URL.",
    "InvalidBucketName": "Name another bucket in SHORTSTACK_STORAGE_URL.",
    "PermanentRedirect": "Set AWS_REGION to the bucket's region.",
    "AuthorizationHeaderMalformed": "Set AWS_REGION to the bucket's region.",
    "IllegalLocationConstraintException": "Set AWS_REGION to the bucket's region.",
    "ExpiredToken": "Renew AWS_SESSION_TOKEN and the keys that belong to it.",
    "InvalidToken": "Renew AWS_SESSION_TOKEN and the keys that belong to it.",
    "NotImplemented": "Take a server that knows puts with If-None-Match; without them objects could change.",
    "ContainerNotFound": "Create the container, or name another one in SHORTSTACK_STORAGE_URL.",
}
"""Refusals that trying again does not mend: the server's code for it, and what does."""

_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,300})</Message>")
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]+)"')
_BAD_CERTIFICATE: Final = re.compile(r"InvalidCertificate\(\s*(\w+)")


class RemoteBlobStore(BlobStore):
    """Objects behind a server whose put can be refused where the key is taken.

    An object of up to 32 MiB is one put with that condition, so of two writers at once exactly one wins. A longer one
    is sent in parts, which the server shows only when all are there; between the look whether its key is free and that
    moment another writer may come in. Every key of the stack under which such an object lies carries a digest of the
    content or has one writer.

    Args:
        store: of obstore; its root is where keys begin.
        url: for error messages.
    """

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store = store
        self._url = url

    @classmethod
    def connect(cls, url: str) -> RemoteBlobStore:
        """The store at ``url``, as the environment says. Asks the server nothing yet.

        Raises:
            Fatal: there is no such scheme, or the environment lacks what it needs.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES or not rest.strip("/"):
            remedy = did_you_mean(scheme, [*_SCHEMES, "file", "memory"]) or "Write s3://BUCKET/PREFIX."
            raise Fatal(f'cannot open "{url}"', where=_SETTING, remedy=remedy)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        if scheme in _S3 and endpoint and not any(os.environ.get(name) for name in _CREDENTIALS):
            raise Fatal(
                f'no credentials for "{url}" at {endpoint}',
                where="AWS_ACCESS_KEY_ID",
                remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_SKIP_SIGNATURE=true where none are asked.",
            )
        try:
            store = from_url(
                url,
                client_options=_client(endpoint if scheme in _S3 else ""),
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
            )
        except (BaseError, ValueError) as error:
            raise Fatal(f'cannot open "{url}": {_first_line(error)}', where=_SETTING) from error
        return cls(store, url)

    def put(self, key: str, data: bytes) -> None:
        """See `BlobStore.put`; one request."""
        check_key(key)
        try:
            with self._errors(key, writes=True):
                obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError as error:
            # Also where our own put arrived and its answer did not, and the client asked again.
            self._check_same(key, len(data), lambda: io.BytesIO(data), error)

    def put_file(self, key: str, path: Path) -> None:
        """See `BlobStore.put_file`."""
        check_key(key)
        with disk_errors(path):
            size = path.stat().st_size
            data = path.read_bytes() if size <= _AT_ONCE else None
        if data is not None:
            self.put(key, data)
        elif self.exists(key):
            self._check_same(key, size, lambda: path.open("rb"))
        else:
            with self._errors(key, writes=True):
                part = max(_PART, -(-size // _MOST_PARTS))
                # An error in the pieces ends the upload before its parts become an object.
                obstore.put(self._store, key, _pieces(path, size), chunk_size=part, max_concurrency=4)

    def stream(self, key: str) -> BinaryIO:
        """See `BlobStore.stream`. What it gives can seek, and asks for 4 MiB at a time."""
        return cast(BinaryIO, io.BufferedReader(_ObjectReader(self._range, key, self.size(key)), _PIECE))

    def get(self, key: str) -> bytes:
        """See `BlobStore.get`; one request."""
        check_key(key)
        with self._errors(key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        return self._size(key) is not None

    def size(self, key: str) -> int:
        """See `BlobStore.size`."""
        size = self._size(key)
        if size is None:
            raise missing(key)
        return size

    def delete_prefix(self, prefix: str) -> int:
        """See `BlobStore.delete_prefix`."""
        found = [prefix] if self.exists(prefix) else []
        with self._errors(prefix, writes=True):
            found += [entry["path"] for chunk in obstore.list(self._store, f"{prefix}/") for entry in chunk]
            if found:
                obstore.delete(self._store, found)
        return len(found)

    def _size(self, key: str) -> int | None:
        check_key(key)
        with self._errors(key):
            try:
                return int(obstore.head(self._store, key)["size"])
            except FileNotFoundError:
                return None

    def _range(self, key: str, start: int, length: int) -> bytes:
        with self._errors(key):
            return obstore.get_range(self._store, key, start=start, length=length).to_bytes()

    def _check_same(
        self, key: str, size: int, source: Callable[[], BinaryIO], refused: Exception | None = None
    ) -> None:
        stored = self._size(key)
        if stored is None:
            raise Transient(f"object {key} is being written by another", where=self._url) from refused
        with self.stream(key) as there, source() as here:
            if stored != size or not same_bytes(there, here):
                raise differs(key)

    @contextmanager
    def _errors(self, key: str, *, writes: bool = False) -> Iterator[None]:
        """Turns obstore's errors into ours. ``writes``: nothing that is not there can only be the bucket."""
        try:
            yield
        except (ShortstackError, AlreadyExistsError):
            raise
        except FileNotFoundError as error:
            if writes or "NoSuchBucket" in str(error):
                raise self._fatal(error, "NoSuchBucket") from error
            raise missing(key) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._fatal(error, "AccessDenied") from error
        except (BaseError, OSError, ValueError) as error:
            code = _CODE.search(str(error))
            if code is not None and code[1] in _REMEDIES:
                raise self._fatal(error, code[1]) from error
            certificate = _BAD_CERTIFICATE.search(str(error))
            if certificate is not None:
                remedy = "Set AWS_CA_BUNDLE to the PEM file of the authority that signed it."
                raise Fatal(f"its certificate is refused: {certificate[1]}", where=self._url, remedy=remedy) from error
            cause = _CAUSE.findall(str(error))[-1:]
            raise Transient(": ".join(["object store", _first_line(error), *cause]), where=self._url) from error

    def _fatal(self, error: Exception, code: str) -> Fatal:
        text = str(error)
        said = [found[1] for found in (_CODE.search(text), _MESSAGE.search(text)) if found is not None]
        remedy = _REMEDIES.get(code, _CHECK_CREDENTIALS)
        return Fatal(f"refused: {': '.join(said) or code}", where=self._url, remedy=remedy)


class _ObjectReader(io.RawIOBase):
    """Reads an object by requests for ranges of it, each of which the client repeats when it breaks off."""

    def __init__(self, fetch: Callable[[str, int, int], bytes], key: str, size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, which is before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._at)
        if length <= 0:
            return 0
        data = self._fetch(self._key, self._at, length)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        whole = bytearray()
        while data := self.read(_PIECE):
            whole += data
        return bytes(whole)


def _client(endpoint: str) -> ClientConfig:
    options: ClientConfig = {"connect_timeout": "5s", "timeout": "60s"}
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle:
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise Fatal(f"cannot read {bundle}: {error.strerror}", where="AWS_CA_BUNDLE") from error
    return options


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """The content of a file that must still have ``size`` bytes when all of it was read."""
    left = size
    with disk_errors(path), path.open("rb") as source:
        while piece := source.read(_PART):
            left -= len(piece)
            yield piece
    if left:
        raise Transient(f"it changed while it was stored: {size} bytes before, {size - left} read", where=str(path))


def _first_line(error: Exception) -> str:
    """obstore's errors go on with how they look inside."""
    return str(error).partition("\n")[0][:300]
