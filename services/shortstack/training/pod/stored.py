"""Checkpoints in the object store: what an attempt leaves there, the next one finds in a new pod.

``runs/RUN/checkpoints/STEP.aATTEMPT/…`` holds the files, ``runs/RUN/stored/K.json`` names them and is written after
them: an entry is whole. K counts from 1 over all attempts, so the newest is found without listing a folder.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from shortstack.core.digest import canonical_json, file_sha256, sha256_hex
from shortstack.core.errors import Conflict, Poison, ShortstackError
from shortstack.storage.blobs import BlobStore, disk_errors
from shortstack.training.pod.objects import RUNS, Log
from shortstack.training.trainer.checkpoints import MANIFEST, Checkpoint

__all__ = ["StoredCheckpoints", "drop_stored"]

_KEPT: Final = 2
"""Checkpoints whose files are kept: if the newest turns out damaged, the one before it serves."""
_PAPERS: Final = ("metrics.jsonl", "usage.json", "samples.before.json")
"""Files of the run folder that a later attempt goes on with."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A stored checkpoint.

    Attributes:
        name: its folder in the store; other than in the run folder it carries the attempt, for an attempt that died
            while it stored one may have left other bytes of the same step.
        files, papers: sha256 by relative path, of the checkpoint and of the run folder.
    """

    attempt: int
    step: int
    name: str
    files: Mapping[str, str]
    papers: Mapping[str, str]


class StoredCheckpoints:
    """The stored checkpoints of one run."""

    def __init__(self, blobs: BlobStore, run: str, log: Log) -> None:
        self._blobs, self._run, self._log = blobs, run, log

    def next_number(self) -> int:
        """The number that the next one gets."""
        return next(k for k in itertools.count(1) if not self._blobs.exists(self._entry_key(k)))

    def restore(self, run_dir: Path, following: int) -> int | None:
        """Puts the newest checkpoint before number ``following`` into a run folder, with what goes with it.

        Returns:
            Its step; None where there is none that is whole.
        """
        for number in range(following - 1, max(0, following - 1 - _KEPT), -1):
            entry = self._entry(number)
            try:
                self._fetch(entry, run_dir)
            except Poison as error:  # it was damaged or dropped; its absence costs steps, not the run
                self._log.warning("checkpoint passed over", run=self._run, step=entry.step, error=str(error))
                continue
            return entry.step
        return None

    def store(self, checkpoint: Checkpoint, run_dir: Path, attempt: int, number: int) -> int:
        """Stores a sealed checkpoint as ``number``, or the next free one; the number after it.

        It is stored once its entry is, whatever becomes of older ones.

        Raises:
            FileNotFoundError: the trainer has removed it meanwhile, for a newer one.
        """
        held = run_dir / ".storing"
        shutil.rmtree(held, ignore_errors=True)
        try:
            entry = self._put_files(_hold(checkpoint.path, held), run_dir, checkpoint.step, attempt)
        finally:
            shutil.rmtree(held, ignore_errors=True)
        number = self._put_entry(entry, number)
        try:
            self._drop_older(number)
        except ShortstackError as error:
            self._log.warning("an older checkpoint is still there", run=self._run, error=str(error))
        return number + 1

    def _put_entry(self, entry: _Entry, number: int) -> int:
        """Writes it under the first number that is free; its number. No two entries share a folder, which goes with
        one of them: an entry of the same folder is this one, from a try whose answer was lost."""
        while True:
            try:
                self._blobs.put(self._entry_key(number), canonical_json(asdict(entry)))
            except Conflict:
                if self._entry(number).name == entry.name:
                    return number
                number += 1
            else:
                return number

    def _put_files(self, held: Path, run_dir: Path, step: int, attempt: int) -> _Entry:
        name = f"{step}.a{attempt}"
        sealed = orjson.loads((held / MANIFEST).read_bytes())["files"]
        files = {**sealed, MANIFEST: file_sha256(held / MANIFEST)}
        for path in sorted(files):
            self._blobs.put_file(f"{self._prefix(name)}/checkpoint/{path}", held / path)
        papers = {}
        for path in _PAPERS:
            if (run_dir / path).is_file():
                # Read once: the trainer goes on writing it.
                text = (run_dir / path).read_bytes()
                papers[path] = sha256_hex(text)
                self._blobs.put(f"{self._prefix(name)}/papers/{papers[path]}", text)
        return _Entry(attempt, step, name, files, papers)

    def _fetch(self, entry: _Entry, run_dir: Path) -> None:
        target = run_dir / f"checkpoint-{entry.step}"
        partial = run_dir / f".checkpoint-{entry.step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for path, sha256 in entry.files.items():
            self._blobs.fetch(f"{self._prefix(entry.name)}/checkpoint/{path}", partial / path, sha256)
        for path, sha256 in entry.papers.items():
            self._blobs.fetch(f"{self._prefix(entry.name)}/papers/{sha256}", run_dir / path, sha256)
        with disk_errors(target):
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)

    def _drop_older(self, newest: int) -> None:
        if newest > _KEPT:
            self._blobs.delete_prefix(self._prefix(self._entry(newest - _KEPT).name))

    def _entry(self, number: int) -> _Entry:
        return _Entry(**orjson.loads(self._blobs.get(self._entry_key(number))))

    def _entry_key(self, number: int) -> str:
        return f"{RUNS}/{self._run}/stored/{number}.json"

    def _prefix(self, name: str) -> str:
        return f"{RUNS}/{self._run}/checkpoints/{name}"


def drop_stored(blobs: BlobStore, run: str) -> None:
    """Deletes every stored checkpoint of a run that is over, the entries first."""
    for part in ("stored", "checkpoints"):
        blobs.delete_prefix(f"{RUNS}/{run}/{part}")


def _hold(folder: Path, held: Path) -> Path:
    """Hard links to a checkpoint's files: the trainer may rotate the checkpoint away while it is being stored."""
    names = orjson.loads((folder / MANIFEST).read_bytes())["files"]
    for name in [*names, MANIFEST]:
        (held / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / name, held / name)
    return held
