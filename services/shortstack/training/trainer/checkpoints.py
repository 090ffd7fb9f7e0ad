"""Checkpoints that are whole or ignored.

A checkpoint is a folder ``checkpoint-STEP`` in Hugging Face layout. Its manifest, with the SHA-256 of every
file, is written last and atomically: a folder without one was cut short by a crash.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.training.trainer.files import file_digests, sync_tree, verified, write_json

__all__ = ["MANIFEST", "Checkpoint", "newest_sealed", "newest_whole", "remove_broken", "rotate", "seal"]

MANIFEST: Final = "checkpoint.manifest.json"
_NAME: Final = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: its step, folder, and the number of processes that wrote it."""

    step: int
    path: Path
    ranks: int


def seal(folder: Path, *, step: int, ranks: int, attempt: int) -> None:
    """Makes a written checkpoint whole: everything durable first, then the manifest."""
    sync_tree(folder)
    files = file_digests(folder, leave_out=[MANIFEST])
    write_json(folder / MANIFEST, {"step": step, "ranks": ranks, "attempt": attempt, "files": files})


def newest_whole(run_dir: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest step; each file is read and compared with its digest."""
    for step, folder in reversed(_folders(run_dir)):
        manifest = _manifest(folder)
        if manifest is not None and verified(folder, manifest["files"]):
            return Checkpoint(step, folder, int(manifest["ranks"]))
    return None


def newest_sealed(run_dir: Path) -> Checkpoint | None:
    """The checkpoint with the highest step that has its manifest. No file is read: for one that was sealed here, while
    the trainer works on, and may remove it."""
    for step, folder in reversed(_folders(run_dir)):
        try:
            manifest = _manifest(folder)
        except FileNotFoundError:
            continue  # removed between the look and the reading
        if manifest is not None:
            return Checkpoint(step, folder, int(manifest["ranks"]))
    return None


def remove_broken(run_dir: Path, newest: Checkpoint | None) -> list[str]:
    """Deletes every checkpoint newer than the newest whole one, so that no stale file mixes with new ones.

    Returns the names of what was removed.
    """
    reached = newest.step if newest else -1
    broken = [folder for step, folder in _folders(run_dir) if step > reached]
    for folder in broken:
        shutil.rmtree(folder)
    return [folder.name for folder in broken]


def rotate(run_dir: Path, keep: int) -> None:
    """Deletes all but the newest ``keep`` checkpoints. Only called once the newest is sealed."""
    for _, folder in _folders(run_dir)[:-keep]:
        # The manifest goes first: a crash half-way leaves a folder that counts as broken.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _folders(run_dir: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in run_dir.iterdir() if path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest: dict[str, Any] = json.loads(path.read_bytes())
    return manifest
