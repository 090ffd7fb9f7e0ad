"""What a reader yields: items with their place, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shortstack.core.errors import Poison

__all__ = ["Item", "Limits", "Malformed", "Unreadable"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what an untrusted file may cost.

    Attributes:
        item_bytes: longest single item (line, array element) that is held in memory; a longer one is malformed.
        decompressed_bytes: most bytes that a compressed file may unfold to.
        ratio: most bytes that a compressed byte may unfold to, once ``ratio_floor`` bytes have come out.
        ratio_floor: below this many bytes no ratio is a bomb.
    """

    item_bytes: int = 8 * 1024 * 1024
    decompressed_bytes: int = 64 * 1024**3
    ratio: int = 250
    ratio_floor: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was read: a mapping by column name for tables, any JSON value otherwise.

    Attributes:
        place: where it stands in its file, for people: ``line 4182``, ``row 7``, ``item 3``.
    """

    place: str
    value: Any


@dataclass(frozen=True, slots=True)
class Malformed:
    """An item that could not be read or compiled.

    Attributes:
        raw: the beginning of its text, for whoever mends it.
    """

    place: str
    reason: str
    raw: str = ""


class Unreadable(Poison):
    """A file that cannot be read to its end, so that nobody knows what it holds; fails its publication.

    Attributes:
        code: short name of the kind, for API errors.
    """

    def __init__(self, what: str, *, code: str = "unreadable_source", where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.code = code
