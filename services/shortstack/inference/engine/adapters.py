"""The adapters by id: loaded and dropped while requests run.

The rule for one in use: a request holds the weights it began with. Dropping an id (or replacing it by another
folder) takes effect for the next request; those under way finish undisturbed, and the memory goes with the last.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from shortstack.core.errors import did_you_mean
from shortstack.inference.engine.adapter_files import adapter_digest, read_adapter
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.errors import Rejected

__all__ = ["Adapters"]


class Adapters:
    """A table of loaded adapters; safe to use from several threads."""

    def __init__(self, layers: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self._layers = layers
        self._device = device
        self._loaded: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def put(self, adapter_id: str, folder: Path) -> Adapter:
        """Loads ``folder`` under the id; does nothing if the same content is there already.

        Raises:
            Rejected: the folder holds no adapter that this model can apply.
        """
        if not adapter_id:
            raise Rejected("the adapter id is empty", remedy="Name it.", param="id")
        present = self._loaded.get(adapter_id)
        if present is not None and present.folder == folder and present.digest == adapter_digest(folder):
            return present
        adapter = read_adapter(adapter_id, folder, self._layers, self._device)
        with self._lock:
            self._loaded = {**self._loaded, adapter_id: adapter}
        return adapter

    def drop(self, adapter_id: str) -> Adapter | None:
        """Forgets the id; returns what it named, or None if it named nothing."""
        with self._lock:
            loaded = dict(self._loaded)
            dropped = loaded.pop(adapter_id, None)
            self._loaded = loaded
        return dropped

    def get(self, adapter_id: str | None) -> Adapter | None:
        """The adapter of a request; None for None, the base model.

        Raises:
            Rejected: the id is unknown. (TGI answers from the base model instead, silently.)
        """
        if adapter_id is None:
            return None
        loaded = self._loaded
        if adapter_id not in loaded:
            what = f"`adapter_id` {adapter_id!r} is not loaded"
            raise Rejected(what, remedy=did_you_mean(adapter_id, loaded), param="adapter_id")
        return loaded[adapter_id]

    def all(self) -> list[Adapter]:
        """Every loaded adapter, by id."""
        loaded = self._loaded
        return [loaded[name] for name in sorted(loaded)]
