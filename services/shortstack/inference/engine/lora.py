"""LoRA adapters applied row by row: one batch, one pass over the base weights, each request its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Adapter", "AdapterRows", "LoraLinear", "LoraPair", "make_adaptable"]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One layer's update: y += x · down · up, with ``down`` ``[in, rank]`` and ``up`` ``[rank, out]``, scaled."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter; immutable, so a request keeps the weights it began with.

    Attributes:
        id: name that requests give as ``adapter_id``.
        folder: where it was read from.
        digest: sha256 of its weights and config files.
        pairs: module name of the base model → update.
    """

    id: str
    folder: Path
    digest: str
    rank: int
    pairs: Mapping[str, LoraPair]

    @property
    def targets(self) -> list[str]:
        """Last parts of the module names it changes, sorted."""
        return sorted({name.rpartition(".")[2] for name in self.pairs})


class AdapterRows:
    """Which rows of the pass about to run belong to which adapter; shared by all layers of one model."""

    def __init__(self) -> None:
        self.groups: list[tuple[Adapter, Tensor | None]] = []

    def aim(self, adapters: Sequence[Adapter | None], device: torch.device) -> None:
        """Sets the adapter of each row; None is the base model."""
        rows: dict[int, list[int]] = {}
        by_identity: dict[int, Adapter] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(id(adapter), []).append(row)
                by_identity[id(adapter)] = adapter
        self.groups = [
            (by_identity[key], None if len(members) == len(adapters) else torch.tensor(members, device=device))
            for key, members in rows.items()
        ]

    def release(self) -> None:
        """Forgets the last pass, so that a dropped adapter's memory is free."""
        self.groups = []


class LoraLinear(nn.Module):
    """A linear layer of the base model that adds the updates of the rows' adapters.

    The update is computed in the adapter's type (float32, as peft does by default) and added before rounding to
    the model's.
    """

    def __init__(self, name: str, base: nn.Linear, rows: AdapterRows) -> None:
        super().__init__()
        self._name = name
        self.base = base
        self._adapter_rows = rows

    @property
    def weight(self) -> Tensor:
        """The base weights; some models look at a layer's type through them."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[rows, tokens, in]`` → ``[rows, tokens, out]``."""
        y: Tensor = self.base(x)
        for adapter, rows in self._adapter_rows.groups:
            pair = adapter.pairs.get(self._name)
            if pair is None:
                continue
            if rows is None:
                y = (y + (x.to(pair.down.dtype) @ pair.down) @ pair.up).to(x.dtype)
            else:
                update = (x[rows].to(pair.down.dtype) @ pair.down) @ pair.up
                y[rows] = (y[rows] + update).to(x.dtype)
        return y


def make_adaptable(model: nn.Module) -> tuple[AdapterRows, dict[str, tuple[int, int]]]:
    """Replaces every linear layer of ``model`` by a `LoraLinear`.

    Returns:
        The rows to aim before each pass, and the (in, out) sizes of each layer by name.
    """
    rows = AdapterRows()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, layer in layers.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, LoraLinear(name, layer, rows))
    return rows, {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
