"""Base models whose import ends only after a service has started: fetched then, while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from shortstack.core.clock import Clock
from shortstack.core.errors import NotFound, Poison, Transient
from shortstack.core.lifecycle import Background
from shortstack.storage.blobs import BlobStore
from shortstack.storage.weights import fetch_base

__all__ = ["LateBases"]

_LOOK_S: Final = 10.0
_MANIFEST: Final = "manifest.json"


class LateBases(Background):
    """Fetches configuration and tokenizer of each base model that is not there yet, as soon as it was imported.

    Whoever reads a base finds its folder whole or not at all, so that nobody has to be told. A service that waited
    for all of them would stand still for one whose path was misspelt.

    Args:
        folders: where each base model should be.
    """

    def __init__(
        self, folders: Mapping[str, Path], blobs: BlobStore, log: structlog.stdlib.BoundLogger, clock: Clock
    ) -> None:
        super().__init__("late-bases")
        self._missing = {name: folder for name, folder in folders.items() if not (folder / _MANIFEST).is_file()}
        self._blobs, self._log, self._clock = blobs, log, clock
        self._said: dict[str, str] = {}

    def _run(self) -> None:
        while self._missing and not self._stopping.is_set():
            self.look()
            if self._missing:
                self._clock.wait(self._stopping, _LOOK_S)

    def look(self) -> None:
        """Fetches those that are there by now; says of each other why it is not, whenever that changes."""
        for name, folder in list(self._missing.items()):
            try:
                fetch_base(self._blobs, name, folder, weights=False)
            except NotFound:
                self._say(name, "it was not imported yet; see the Job that imports base models")
            except (Poison, Transient) as error:
                self._say(name, str(error))
            else:
                del self._missing[name]
                self._log.info("base model is there now", base_model=name)

    def _say(self, name: str, words: str) -> None:
        if self._said.get(name) != words:
            self._said[name] = words
            self._log.warning("going on without a base model", base_model=name, error=words)
