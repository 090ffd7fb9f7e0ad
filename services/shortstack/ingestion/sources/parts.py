"""What a process knows of an upload's parts, so that none is read twice and none hides within another."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator

__all__ = ["PartIndex"]


class PartIndex:
    """Parts of one upload by the number of their first record. Parts never change, so what is known stays true.

    Attributes:
        lock: to be held while anything here is used.
        known: records of each part that is stored.
        reached: records from 0 on without a gap, as far as is known; the end of a part.
        loaded: whether the store was asked how far they reach.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known: dict[int, int] = {}
        self.reached = 0
        self.loaded = False
        self._claimed: dict[int, int] = {}
        self._starts: list[int] = []

    def claim(self, seq: int, count: int) -> bool:
        """Keeps the place of a part that is about to be stored; False if one from ``seq`` on has it."""
        if seq in self._claimed:
            return False
        self._claimed[seq] = count
        bisect.insort(self._starts, seq)
        return True

    def release(self, seq: int) -> None:
        """Gives up the place of a part that was not stored."""
        if seq not in self.known:  # else it came by another way meanwhile
            del self._claimed[seq]
            self._starts.remove(seq)

    def store(self, seq: int, count: int) -> None:
        """Notes that a part is stored."""
        self.claim(seq, count)
        self.known[seq] = count
        while (further := self.known.get(self.reached)) is not None:
            self.reached += further

    def overlapping(self, seq: int, count: int) -> Iterator[tuple[int, int]]:
        """(first, count) of each part that shares records with ``seq`` to ``seq + count`` and begins elsewhere."""
        after = bisect.bisect_left(self._starts, seq)
        if after and (first := self._starts[after - 1]) + self._claimed[first] > seq:
            yield first, self._claimed[first]
        for first in self._starts[bisect.bisect_right(self._starts, seq) :]:
            if first >= seq + count:
                return
            yield first, self._claimed[first]
