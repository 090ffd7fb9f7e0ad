"""Base models and exports in the object store, and on the disk of the pod that needs them.

A base model lies under ``bases/NAME/``, its manifest last; an export under ``models/DIGEST/`` as training stored it.
Each file is checked against its manifest, and a folder is there whole or not at all: it is made beside its place and
renamed. ``python -m shortstack.storage.weights --help`` does the same for init containers; `fetch` reads what it
needs from variables, so that one template of a pod serves every model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.digest import canonical_json, file_sha256, identity, sha256_hex
from shortstack.core.errors import Conflict, Fatal, Invalid, NotFound, Poison, ShortstackError, Transient, wire_code
from shortstack.declarations.base_models import BaseModel
from shortstack.storage.blobs import BlobStore, check_key, disk_errors

__all__ = ["base_manifest_key", "fetch_base", "fetch_export", "import_base"]

_MANIFEST: Final = "manifest.json"
_EXPORT_MANIFEST: Final = "export.manifest.json"
_MERGED: Final = "merged/"
_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"})
"""Suffixes of files that hold weights; all others are small."""
_LOOK_S: Final = 2.0
_SAY_S: Final = 30.0
_ALONE_S: Final = 20.0
"""Seconds that one base model alone is waited for, where others are there."""


def base_manifest_key(name: str) -> str:
    """Object key of a base model's manifest.

    Raises:
        Invalid: the name cannot be part of a key.
    """
    return check_key(f"bases/{name}/{_MANIFEST}")


def import_base(blobs: BlobStore, name: str, folder: Path) -> str:
    """Stores a base model in Hugging Face layout, its manifest last; the same again changes nothing.

    Files are those that the folder's own ``manifest.json`` names, else all beside one another in it.

    Returns:
        The base's digest, as `BaseModel.digest` gives it.

    Raises:
        Invalid: the folder holds no model.
        Poison: a file is not what the folder's manifest says.
        Conflict: another base was imported under that name, as a whole or in part.
    """
    key = base_manifest_key(name)
    files = _files_to_import(name, folder)
    digest = identity("base model", sorted((file, entry["sha256"]) for file, entry in files.items()))
    if blobs.exists(key):
        stored = _read_manifest(blobs.get(key), key)
        if stored["digest"] == digest:
            return digest
        raise _used(name, f"it names {stored['digest']}, the folder holds {digest}")
    layers = sorted(BaseModel(name, folder).linear_layers())
    for file in sorted(files):
        try:
            blobs.put_file(f"bases/{name}/{file}", folder / file)
        except Conflict as error:
            raise _used(name, f"an import that was not finished has left another {file}") from error
    blobs.put(key, canonical_json({"name": name, "digest": digest, "files": files, "linear_layers": layers}))
    return digest


def fetch_base(blobs: BlobStore, name: str, target: Path, *, weights: bool = True, sha256: str | None = None) -> Path:
    """Fetches a base model, its ``manifest.json`` with it, so that `BaseModel` knows digest and layers by that alone.

    Args:
        weights: False leaves out the files of weights.
        sha256: 64 hex digits that the manifest must have.

    Raises:
        NotFound: no base of that name was imported.
        Poison: an object is not what it should be.
    """
    key = base_manifest_key(name)
    try:
        text = blobs.get(key)
    except NotFound as error:
        raise NotFound(
            f'base model "{name}" is not in the object store',
            remedy=f"Import it: python -m shortstack.storage.weights import-base {name} FOLDER",
        ) from error
    _check_manifest(text, key, sha256)
    entries = _read_manifest(text, key)["files"]
    wanted = {file: entry for file, entry in entries.items() if weights or Path(file).suffix not in _WEIGHTS}
    return _fetch(blobs, _Wanted(key, text, wanted), target, _MANIFEST, lambda file: file)


def fetch_export(
    blobs: BlobStore,
    manifest_key: str,
    manifest_sha256: str,
    target: Path,
    parts: Sequence[str] = ("",),
    *,
    strip: str = "",
) -> Path:
    """Fetches those files of an export whose names begin with one of ``parts``, and ``export.manifest.json``.

    Args:
        strip: taken off the beginning of names, so that ``merged/config.json`` becomes ``config.json``.

    Raises:
        NotFound: an object is missing, or no file has such a name.
        Poison: the manifest or a file is not the one that training named.
    """
    text = blobs.get(manifest_key)
    _check_manifest(text, manifest_key, manifest_sha256)
    entries = _read_manifest(text, manifest_key)["files"]
    wanted = {file: entry for file, entry in entries.items() if file.startswith(tuple(parts))}
    if not wanted:
        raise NotFound(f"the export holds no file that begins with {' or '.join(parts)}", where=manifest_key)
    return _fetch(
        blobs,
        _Wanted(manifest_key, text, wanted),
        target,
        _EXPORT_MANIFEST,
        lambda file: file.removeprefix(strip),
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A manifest by key and text, and those of its files that are to be fetched: name → sha256 and bytes."""

    key: str
    text: bytes
    files: Mapping[str, Mapping[str, Any]]

    @property
    def prefix(self) -> str:
        return self.key.rpartition("/")[0]


def _fetch(blobs: BlobStore, wanted: _Wanted, target: Path, manifest: str, place: Callable[[str], str]) -> Path:
    if _is_whole(wanted, target, manifest, place):
        return target
    building = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)  # for everybody to read: the server may run under another user
    for file, entry in sorted(wanted.files.items()):
        blobs.fetch(f"{wanted.prefix}/{file}", building / place(file), entry["sha256"])
    with disk_errors(target):
        (building / manifest).write_bytes(wanted.text)
        shutil.rmtree(target, ignore_errors=True)
        building.replace(target)
    return target


def _is_whole(wanted: _Wanted, target: Path, manifest: str, place: Callable[[str], str]) -> bool:
    """Whether an earlier call has fetched the same: folders appear whole, so names and sizes say enough."""
    here = target / manifest
    if not here.is_file() or here.read_bytes() != wanted.text:
        return False
    paths = {target / place(file): entry for file, entry in wanted.files.items()}
    return all(path.is_file() and path.stat().st_size == entry["bytes"] for path, entry in paths.items())


def _files_to_import(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    where = f"base model {name}, {folder}"
    if not (folder / "config.json").is_file():
        remedy = "Name a folder in Hugging Face layout, with config.json, tokenizer.json and *.safetensors."
        raise Invalid("there is no config.json", where=where, remedy=remedy)
    own = folder / _MANIFEST
    named = _read_manifest(own.read_bytes(), str(own))["files"] if own.is_file() else None
    names = named if named is not None else [p.name for p in folder.glob("*") if p.is_file()]
    absent = [file for file in names if not (folder / file).is_file()]
    if absent:
        raise Poison(f"{absent[0]} is named by {_MANIFEST} and is not there", where=where, remedy="Make it again.")
    files = {
        file: {"sha256": file_sha256(folder / file), "bytes": (folder / file).stat().st_size} for file in sorted(names)
    }
    for file, entry in (named or {}).items():
        if files[file]["sha256"] != entry["sha256"]:
            raise Poison(f"{file} is not what {_MANIFEST} says", where=where, remedy="It was damaged; make it again.")
    return files


def _used(name: str, how: str) -> Conflict:
    return Conflict(
        f'another base model stands under "{name}": {how}',
        where=f"bases/{name}",
        remedy="A base model never changes under its name. Import it under a new name.",
    )


def _check_manifest(text: bytes, key: str, sha256: str | None) -> None:
    if sha256 is not None and sha256_hex(text) != sha256:
        raise Poison(
            f"the manifest has sha256 {sha256_hex(text)}, not the {sha256} that was named",
            where=key,
            remedy="It was damaged or exchanged. Train again, or import the base model under a new name.",
        )


def _read_manifest(text: bytes, where: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = orjson.loads(text)
        if not all({"sha256", "bytes"} <= entry.keys() for entry in manifest["files"].values()):
            raise ValueError("a file without sha256 or bytes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Poison(f"not readable as a manifest ({error})", where=where, remedy="Make or import it again.") from error
    return manifest


# The command.


def _wait_for(blobs: BlobStore, key: str, wait_s: float, clock: Clock, others: Sequence[str] = ()) -> bool:
    """Returns once the object is there or the time is over, saying now and then what it waits for.

    Returns:
        False if it was given up, since one of the other objects is there and this one was waited for long enough.
    """
    began, said, never = clock.monotonic(), float("-inf"), threading.Event()
    deadline = began + wait_s
    while (now := clock.monotonic()) < deadline:
        try:
            if blobs.exists(key):
                return True
            if now - began >= _ALONE_S and any(blobs.exists(other) for other in others):
                return False
            what = f"{key} is not in the object store yet"
        except Transient as error:
            what = str(error)
        if now - said >= _SAY_S:
            said = now
            sys.stderr.write(f"waiting up to {deadline - now:.0f} s: {what}\n")
            sys.stderr.flush()
        clock.wait(never, _LOOK_S)
    return True


def _import_base(given: argparse.Namespace, blobs: BlobStore) -> str:
    return import_base(blobs, given.name, given.folder)


def _fetch_base(given: argparse.Namespace, blobs: BlobStore) -> str:
    others = [base_manifest_key(name) for name in given.unless]
    if not _wait_for(blobs, base_manifest_key(given.name), given.wait_s, SystemClock(), others):
        return f'base model "{given.name}" was not imported yet; going on without it, since others are there'
    return str(fetch_base(blobs, given.name, given.folder, weights=not given.no_weights))


def _fetch_export(given: argparse.Namespace, blobs: BlobStore) -> str:
    parts = given.parts or [""]
    return str(fetch_export(blobs, given.manifest, given.sha256, given.folder, parts, strip=given.strip))


def _fetch_named(_given: argparse.Namespace, blobs: BlobStore) -> str:
    key, sha256, folder = (_variable(f"SHORTSTACK_WEIGHTS{end}") for end in ("", "_SHA256", "_DIR"))
    if key.startswith("bases/"):
        name = key.removeprefix("bases/").removesuffix(f"/{_MANIFEST}")
        return str(fetch_base(blobs, name, Path(folder), sha256=sha256))
    return str(fetch_export(blobs, key, sha256, Path(folder), [_MERGED], strip=_MERGED))


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise Fatal(f"{name} is not set", where="fetch", remedy="Whoever makes the pod must set it.")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shortstack.storage.weights", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    importing = commands.add_parser("import-base", help="store a base model; prints its digest")
    importing.add_argument("name")
    importing.add_argument("folder", type=Path)
    importing.set_defaults(act=_import_base)
    base = commands.add_parser("fetch-base", help="fetch a base model; prints its folder")
    base.add_argument("name")
    base.add_argument("folder", type=Path)
    base.add_argument("--no-weights", action="store_true", help="only what tokenizing and checking need")
    base.add_argument("--wait-s", type=float, default=0.0, help="seconds to wait until it was imported")
    base.add_argument(
        "--unless",
        action="append",
        default=[],
        metavar="NAME",
        help=f"another base: where that was imported, this one is left out after {_ALONE_S:.0f} s, with exit code 0",
    )
    base.set_defaults(act=_fetch_base)
    export = commands.add_parser("fetch-export", help="fetch a trained model; prints its folder")
    export.add_argument("manifest", help="object key of its export.manifest.json")
    export.add_argument("sha256", help="of that manifest")
    export.add_argument("folder", type=Path)
    export.add_argument("--parts", action="append", help="beginning of the names wanted, for example merged/")
    export.add_argument("--strip", default="", help="what to take off the beginning of names")
    export.set_defaults(act=_fetch_export)
    named = commands.add_parser(
        "fetch", help="fetch what SHORTSTACK_WEIGHTS, SHORTSTACK_WEIGHTS_SHA256 and SHORTSTACK_WEIGHTS_DIR name"
    )
    named.set_defaults(act=_fetch_named)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs a command; 0, or the exit code of the error after one line on stderr."""
    given = _parser().parse_args(arguments)
    try:
        sys.stdout.write(f"{given.act(given, BlobStore.open(ServiceConfig().storage_url))}\n")
    except ShortstackError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return wire_code(error).exit_code
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the first process of a container has no default for it
    raise SystemExit(main(sys.argv[1:]))
