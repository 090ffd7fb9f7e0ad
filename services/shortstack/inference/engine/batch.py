"""Which request holds which row of the cache."""

from __future__ import annotations

from shortstack.inference.engine.kv_rows import KeyValueRows
from shortstack.inference.engine.sequence import Sequence

__all__ = ["Batch"]


class Batch:
    """Requests under way: rows 0 … n-1 decode, and row n reads its prompt, if one does.

    The decoding rows have no gap, so that one pass takes a plain slice of the cache: when a request leaves, the last
    one takes its row.
    """

    def __init__(self, rows: KeyValueRows) -> None:
        self._rows = rows
        self.decoding: list[Sequence] = []
        self.reading: Sequence | None = None

    def __len__(self) -> int:
        return len(self.decoding) + (self.reading is not None)

    @property
    def all(self) -> list[Sequence]:
        """Every request that holds a row."""
        return [*self.decoding, *([self.reading] if self.reading else [])]

    @property
    def reading_row(self) -> int:
        """The row of the request that reads its prompt."""
        return len(self.decoding)

    def start_decoding(self) -> None:
        """The prompt is read: its request joins the decoding rows, where it stands."""
        if self.reading is not None:
            self.decoding.append(self.reading)
            self.reading = None

    def drop_all(self) -> list[Sequence]:
        """Takes every request out, without a tensor operation: the device may be what failed."""
        dropped = self.all
        self.decoding, self.reading = [], None
        self._rows.clear()
        return dropped

    def remove(self, sequence: Sequence) -> None:
        """Takes a request out, closes the gap, and wipes the row that is free."""
        last = len(self.decoding)
        if sequence is self.reading:
            self.reading = None
            self._rows.wipe(last)
        else:
            gap = self.decoding.index(sequence)
            mover = self.decoding.pop()
            if mover is not sequence:
                self.decoding[gap] = mover
            self._rows.wipe(gap)
            self._rows.move(last - 1, gap, len(mover.ids))
            if self.reading is not None:
                self._rows.move(last, last - 1, self.reading.read)
        if not len(self):
            self._rows.clear()
