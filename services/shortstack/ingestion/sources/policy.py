"""Which addresses a publication may name: a closed table of schemes, and for files the declared roots alone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from shortstack.core.errors import Forbidden, Invalid, NotFound, Poison, Transient, did_you_mean
from shortstack.core.identity import check_name
from shortstack.ingestion.sources.uploads import Uploads
from shortstack.storage.blobs import BlobStore

__all__ = ["SCHEMES", "Address", "SourcePolicy", "source_name"]

SCHEMES: Final = ("file", "blob", "upload")
"""Schemes that are open. An address without one is a file."""

_CLOSED: Final = ("hf", "s3", "gs", "az", "https", "http")
_WILD: Final = frozenset("*?[")
_MAX_FILES: Final = 1000


@dataclass(frozen=True, slots=True)
class Address:
    """One source that may be read.

    Attributes:
        uri: as published; of a pattern, that of the one file.
        open: opens it for reading; what it opens is what was judged, not a link put there since.
    """

    uri: str
    open: Callable[[], BinaryIO]

    @property
    def name(self) -> str:
        """Name of the file, for people and for its suffix."""
        return source_name(self.uri)


def source_name(uri: str) -> str:
    """The last part of an address."""
    return PurePosixPath(unquote(uri.partition("://")[2] or uri)).name


class SourcePolicy:
    """What an owner may read.

    Args:
        roots: folders whose files may be published; relative ones stand below the working folder.
        blobs: where ``blob://`` addresses point.
    """

    def __init__(self, roots: Sequence[Path], blobs: BlobStore) -> None:
        self._roots = [root.expanduser().absolute() for root in roots]
        self._blobs = blobs
        self._uploads = Uploads(blobs)

    def resolve(self, uri: str, owner: str) -> list[Address]:
        """The sources that ``uri`` names: one, or for a pattern all that match, in sorted order.

        Raises:
            Invalid: the scheme is unknown, or the address is malformed.
            Forbidden: the scheme is closed here, or the file lies outside of every root, or behind a link.
            NotFound: there is no such file or object.
        """
        if "::" in uri:
            raise Forbidden(f'"{uri}": chained addresses are not read', where="source", param="source.uri")
        scheme, separator, rest = uri.partition("://")
        if not separator:
            return self._files(uri, uri)
        kinds: dict[str, Callable[[], list[Address]]] = {
            "file": lambda: self._files(uri, _file_path(uri)),
            "blob": lambda: [self._blob(uri, rest, owner)],
            "upload": lambda: [self._upload(uri, rest, owner)],
        }
        if scheme in _CLOSED:
            raise Forbidden(
                f'"{scheme}://" is closed here',
                where=f"source {uri}",
                remedy="Download the data to a declared root (SHORTSTACK_SOURCE_ROOTS), or upload it by /v1/files; "
                f"open schemes: {', '.join(SCHEMES)}.",
                param="source.uri",
            )
        if scheme not in kinds:
            known = did_you_mean(scheme, SCHEMES)
            raise Invalid(f'scheme "{scheme}" is not known', where=f"source {uri}", remedy=known, param="source.uri")
        return kinds[scheme]()

    def _blob(self, uri: str, key: str, owner: str) -> Address:
        """An object of the owner's own: a file uploaded to the gateway, or a source pinned before."""
        allowed = (f"files/{owner}/", f"sources/{owner}/")
        if not key.startswith(allowed):
            raise Forbidden(
                f'object "{key}" is not one that {owner} may publish',
                where=f"source {uri}",
                remedy=f"Objects below {' and '.join(allowed)} may be.",
                param="source.uri",
            )
        if not self._blobs.exists(key):
            raise NotFound(f"there is no object {key}", where=f"source {uri}", remedy="Upload it again.")
        return Address(uri, lambda: self._blobs.stream(key))

    def _upload(self, uri: str, upload: str, owner: str) -> Address:
        """An upload of parts that is closed and whole."""
        check_name(upload, param="source.uri")
        closing = self._uploads.closing(owner, upload)
        missing = "its end" if closing is None else self._uploads.missing(owner, upload, closing.records)
        if closing is None or missing:
            raise NotFound(f'upload "{upload}" is not whole: {missing} is missing', where=f"source {uri}")
        return Address(uri, lambda: self._uploads.joined(owner, upload, closing.records))

    def _files(self, uri: str, path: str) -> list[Address]:
        if not PurePosixPath(path).parts or "\0" in path:
            raise Invalid("an empty path", where=f"source {uri}", param="source.uri")
        if ".." in PurePosixPath(path).parts:
            raise Forbidden('".." is not followed', where=f"source {uri}", remedy="Name the file from a declared root.")
        if _WILD & set(path):
            return self._matching(uri, path)
        root, inside = self._place(uri, path)
        return [_file_address(uri, root, inside)]

    def _matching(self, uri: str, pattern: str) -> list[Address]:
        prefix = uri[: -len(pattern)] if uri.endswith(pattern) else "file://"
        found: list[Address] = []
        for root, inside in self._candidates(pattern):
            # Links are neither matched nor followed, and a name that begins with a dot is not meant.
            names = _matches(root, inside, uri)
            files = [name for name in names if "/." not in f"/{name}" and not _linked(root, name)]
            absolute = Path(pattern).is_absolute()
            found = [_file_address(f"{prefix}{root / name if absolute else name}", root, name) for name in files]
            if found:
                break
        if not found:
            raise NotFound(f'no file matches "{pattern}"', where=f"source {uri}", remedy=self._roots_remedy())
        if len(found) > _MAX_FILES:
            raise Invalid(
                f'{len(found)} files match "{pattern}"; at most {_MAX_FILES}',
                where=f"source {uri}",
                remedy="Publish fewer, larger files.",
            )
        return found

    def _place(self, uri: str, path: str) -> tuple[Path, str]:
        """(root, path below it) of the first root that has the file."""
        candidates = self._candidates(path)
        if not candidates:
            raise Forbidden(
                f'"{path}" lies outside of the declared roots',
                where=f"source {uri}",
                remedy=self._roots_remedy(),
                param="source.uri",
            )
        for root, inside in candidates:
            if os.path.lexists(root / inside):
                return root, inside
        raise NotFound(
            f'there is no file "{path}"', where=f"source {uri}", remedy=self._roots_remedy(), param="source.uri"
        )

    def _candidates(self, path: str) -> list[tuple[Path, str]]:
        """Where ``path`` may stand: below each root, and, from the working folder, below a root."""
        given = Path(path)
        places = []
        if not given.is_absolute():
            places = [(root, path) for root in self._roots]
            given = Path.cwd() / given
        for root in self._roots:
            if given.is_relative_to(root) and given != root:
                places.append((root, given.relative_to(root).as_posix()))
        return places

    def _roots_remedy(self) -> str:
        listed = ", ".join(str(root) for root in self._roots) or "none"
        return f"Files may be published from: {listed}. An operator adds roots by SHORTSTACK_SOURCE_ROOTS."


_REFUSALS: Final[dict[int, type[Poison]]] = {
    errno.ENAMETOOLONG: Invalid,
    errno.ELOOP: Invalid,
    errno.EINVAL: Invalid,
    errno.EACCES: Forbidden,
    errno.EPERM: Forbidden,
}
"""Whose fault it is that a pattern cannot be matched; anything else is the disk's, and may pass."""


def _matches(root: Path, pattern: str, uri: str) -> list[str]:
    """Files below ``root`` that ``pattern`` matches, in sorted order."""
    try:
        return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
    except ValueError as error:
        raise Invalid(
            f"no pattern: {error}", where=f"source {uri}", remedy='Write "**" between slashes only.', param="source.uri"
        ) from error
    except OSError as error:
        kind = _REFUSALS.get(error.errno or 0, Transient)
        raise kind(f"cannot be matched: {error.strerror}", where=f"source {uri}", param="source.uri") from error


def _file_path(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        remedy = "Write file:///FOLDER/FILE."
        raise Invalid(f"no address: {error}", where=f"source {uri}", remedy=remedy, param="source.uri") from error
    if parts.netloc not in ("", "localhost"):
        # file://examples/x.jsonl: people write it for a relative path, and it has no other meaning here.
        return unquote(parts.netloc + parts.path)
    return unquote(parts.path)


def _linked(root: Path, inside: str) -> bool:
    path = root
    for part in PurePosixPath(inside).parts:
        path = path / part
        if path.is_symlink():
            return True
    return False


def _file_address(uri: str, root: Path, inside: str) -> Address:
    """Judges a file below ``root``.

    Raises:
        Forbidden: it is a link, lies behind one, or is no plain file.
    """
    _open_beneath(root, inside, uri).close()
    return Address(uri, lambda: _open_beneath(root, inside, uri))


def _open_beneath(root: Path, inside: str, uri: str) -> BinaryIO:
    """Opens a file one folder at a time without following a link, so that none can be slipped in between."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, name = PurePosixPath(inside).parts
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Not blocking: opening a pipe would wait for whoever writes to it.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError as error:
        raise NotFound(f'there is no file "{inside}"', where=f"source {uri}") from error
    except OSError as error:
        raise Forbidden(
            f'"{inside}" cannot be opened, or is or lies behind a link: {error.strerror}',
            where=f"source {uri}",
            remedy="Copy the file to a declared root.",
            param="source.uri",
        ) from error
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Forbidden(f'"{inside}" is no plain file', where=f"source {uri}", remedy="Name a file.")
    return os.fdopen(handle, "rb")
