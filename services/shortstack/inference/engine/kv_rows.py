"""Keys and values of all requests under way: one row a request, one buffer a layer.

Row r holds tokens 0, 1, 2, … of its request at columns 0, 1, 2, …: no left padding, so a rotary position is a
column and a row can be taken over as it is. Unused cells are zero; a masked cell with NaN would still spoil its
row's sum (0 × NaN), so a freed row is wiped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KeyValueRows", "KeyValueShape"]

_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """Sizes of one model's cache: layers, key/value heads, numbers a head; type and place of the cells."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


class KeyValueRows:
    """A cache for transformers' attention layers, aimed at some rows before each forward pass.

    Buffers are ``[rows, heads, columns, width]`` and grow by need; `clear` gives them back.
    """

    def __init__(self, shape: KeyValueShape) -> None:
        self._shape = shape
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = 0
        self._columns = 0
        self._first = 0
        self._count = 0
        self._span = 0
        self._positions = torch.zeros(0, dtype=torch.long)
        self._index = torch.zeros(0, dtype=torch.long)

    def reserve(self, rows: int, columns: int) -> None:
        """Makes room for ``rows`` × ``columns``, keeping what is there."""
        if rows <= self._rows and columns <= self._columns:
            return
        if rows > self._rows:
            rows = max(rows, 2 * self._rows)
        if columns > self._columns:
            columns = -(-max(columns, self._columns * 3 // 2) // _COLUMNS) * _COLUMNS
        rows, columns = max(rows, self._rows), max(columns, self._columns)
        self._keys = self._grown(self._keys, rows, columns)
        self._values = self._grown(self._values, rows, columns)
        self._rows, self._columns = rows, columns

    def _grown(self, buffers: list[Tensor], rows: int, columns: int) -> list[Tensor]:
        s = self._shape
        grown: list[Tensor] = []
        for layer in range(s.layers):
            fresh = torch.zeros(rows, s.heads, columns, s.width, dtype=s.dtype, device=s.device)
            if buffers:
                fresh[: self._rows, :, : self._columns] = buffers[layer]
            grown.append(fresh)
        return grown

    def clear(self) -> None:
        """Gives all memory back; for when no request is under way."""
        self._keys, self._values = [], []
        self._rows = self._columns = 0

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies the first ``columns`` of one row over another, and wipes the source.

        A row that nothing was written to yet may lie beyond the buffers; it is zero like any other free row.
        """
        if source == target:
            return
        if source >= self._rows:
            self.wipe(target)
            return
        for buffer in (*self._keys, *self._values):
            buffer[target].zero_()
            buffer[target, :, :columns] = buffer[source, :, :columns]
        self.wipe(source)

    def wipe(self, row: int) -> None:
        """Zeroes a row that is free again."""
        if row >= self._rows:
            return
        for buffer in (*self._keys, *self._values):
            buffer[row].zero_()

    def aim_at_prompt(self, row: int, start: int, count: int) -> tuple[Tensor, Tensor]:
        """The next pass reads ``count`` prompt tokens of ``row`` from position ``start``.

        Returns:
            Positions int64 ``[1, count]`` and a mask bool ``[1, 1, count, start + count]``, True where a token
            may look.
        """
        self.reserve(row + 1, start + count)
        device = self._shape.device
        self._first, self._count, self._span = row, 1, start + count
        positions = torch.arange(start, start + count, device=device)
        self._positions = positions
        mask = torch.arange(self._span, device=device) <= positions[:, None]
        return positions[None], mask[None, None]

    def aim_at_batch(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next pass reads one token of each of the first ``len(lengths)`` rows, at column ``lengths[row]``.

        Returns:
            Positions int64 ``[rows, 1]`` and a mask bool ``[rows, 1, 1, columns]``.
        """
        self.reserve(len(lengths), max(lengths) + 1)
        device = self._shape.device
        self._first, self._count, self._span = 0, len(lengths), max(lengths) + 1
        self._positions = torch.tensor(lengths, device=device)
        self._index = torch.arange(len(lengths), device=device)
        mask = torch.arange(self._span, device=device) <= self._positions[:, None]
        return self._positions[:, None], mask[:, None, None]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Stores new keys and values ``[rows, heads, tokens, width]``; returns all that the rows may look at.

        This is the one method of transformers' `Cache` that attention layers call.
        """
        return self._stored(self._keys[layer], key), self._stored(self._values[layer], value)

    def _stored(self, buffer: Tensor, fresh: Tensor) -> Tensor:
        if self._count == 1:
            start = self._span - fresh.shape[2]
            buffer[self._first, :, start : self._span] = fresh[0]
        else:
            buffer[self._index, :, self._positions] = fresh[:, :, 0]
        return buffer[self._first : self._first + self._count, :, : self._span]
