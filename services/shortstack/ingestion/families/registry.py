"""Every family by name, and telling which one a file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shortstack.ingestion.families.columns import ALPACA, H2OGPT, PROMPT_COMPLETION
from shortstack.ingestion.families.conversations import MESSAGES, SHAREGPT
from shortstack.ingestion.families.family import Family
from shortstack.ingestion.reading.items import Unreadable

__all__ = ["FAMILIES", "UNKNOWN_FAMILY", "detect_family", "rename"]

FAMILIES: Final[dict[str, Family]] = {
    family.name: family for family in (MESSAGES, SHAREGPT, ALPACA, H2OGPT, PROMPT_COMPLETION)
}
"""In the order in which they are tried."""

UNKNOWN_FAMILY: Final = "unknown"
"""Of a file that holds no object at all; every item of it is malformed."""


def rename(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """``item`` with its columns named as meant; a column that takes another's name wins over it."""
    if not columns:
        return dict(item)
    renamed = {column: value for column, value in item.items() if column not in columns}
    for given, meant in columns.items():
        if given in item:
            renamed[meant] = item[given]
    return renamed


def detect_family(sample: Sequence[Mapping[str, Any]]) -> str:
    """The family that most of ``sample`` (renamed items) looks like.

    Raises:
        Unreadable: there are items, and none looks like any family; names their columns.
    """
    votes = Counter(
        next((name for name, family in FAMILIES.items() if family.matches(item)), UNKNOWN_FAMILY) for item in sample
    )
    best = next((name for name, _ in votes.most_common() if name != UNKNOWN_FAMILY), UNKNOWN_FAMILY)
    if best == UNKNOWN_FAMILY and sample:
        columns = ", ".join(sorted({str(column) for item in sample for column in item})[:30])
        raise Unreadable(
            f"no known family of records has these columns: {columns}",
            code="unknown_format",
            remedy='Map them by "columns": {"YOURS": "instruction", …}, or name the family in "format": '
            f"{', '.join(FAMILIES)}.",
        )
    return best
