"""A batch as steps see it: the turns of all records in flat lists, so that no step builds an object a record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from shortstack.core.errors import Poison, did_you_mean
from shortstack.records.message import ROLES

__all__ = ["Conversations"]


@dataclass(frozen=True, slots=True)
class Conversations:
    """Turns of ``len(offsets) - 1`` records.

    Attributes:
        offsets: turns of record i are those from ``offsets[i]`` to before ``offsets[i + 1]``.
        rows: of each turn, the record it belongs to.
        roles: of each turn, one of `ROLES`.
        contents: of each turn, its text.
        calls: of each turn, whether it calls tools.
    """

    offsets: Sequence[int]
    rows: Sequence[int]
    roles: Sequence[str]
    contents: Sequence[str]
    calls: Sequence[bool]

    @classmethod
    def of(cls, table: pa.Table) -> Conversations:
        """The conversations of a table of records.

        Raises:
            Poison: a turn has a role that is none.
        """
        column = table.column("messages").combine_chunks()
        offsets = column.offsets.to_pylist()
        # A slice keeps the values of its whole array; the flat lists hold its own part, from 0.
        start = offsets[0] if offsets else 0
        roles, contents, calls = (
            column.values.field(name)[start : offsets[-1] if offsets else 0]
            for name in ("role", "content", "tool_calls")
        )
        for role in roles.unique().to_pylist():
            if role not in ROLES:
                raise Poison(f'role is "{role}"', where="records.raw", remedy=did_you_mean(role, ROLES))
        counts = [last - first for first, last in itertools.pairwise(offsets)]
        return cls(
            offsets=[offset - start for offset in offsets],
            rows=[row for row, count in enumerate(counts) for _ in range(count)],
            roles=roles.to_pylist(),
            contents=contents.to_pylist(),
            calls=calls.is_valid().to_pylist(),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def record(self, row: int) -> Conversations:
        """One record as a batch of its own."""
        first, last = self.offsets[row], self.offsets[row + 1]
        return Conversations(
            offsets=[0, last - first],
            rows=[0] * (last - first),
            roles=self.roles[first:last],
            contents=self.contents[first:last],
            calls=self.calls[first:last],
        )

    def with_contents(self, contents: Sequence[str]) -> Conversations:
        """The same turns with other texts."""
        return replace(self, contents=contents)

    def messages(self, column: pa.ChunkedArray) -> pa.ListArray:
        """``column``, from which these were made, with the texts as they are now."""
        whole = column.combine_chunks()
        first = whole.offsets[0].as_py() if len(whole) else 0
        values = whole.values.slice(first, len(self.contents))
        fields = list(whole.type.value_type)
        arrays = [
            pa.array(self.contents, type=pa.string()) if field.name == "content" else values.field(field.name)
            for field in fields
        ]
        offsets = pa.array(self.offsets, type=pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=whole.type)
