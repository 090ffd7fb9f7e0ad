"""regex: records in which a pattern is found, or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shortstack.declarations.patterns import compile_pattern
from shortstack.declarations.recipe import RegexStep
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.step import Outcome, Rejection, excerpt

__all__ = ["Regex"]


@dataclass(frozen=True, slots=True)
class Regex:
    """Rejects records with a match in any turn of the named roles; with ``keep``, those without any.

    The pattern is RE2's: linear time, so that no recipe can stop a worker. Reason: the recipe's; evidence: the match.
    """

    settings: RegexStep
    _pattern: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", compile_pattern(self.settings.pattern))

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        roles = frozenset(self.settings.roles)
        found: dict[int, str] = {}
        for row, role, content in zip(batch.rows, batch.roles, batch.contents, strict=True):
            if role in roles and row not in found:
                match = self._pattern.search(content.encode("utf-8", "replace"))
                if match:
                    found[row] = match.group().decode("utf-8", "replace")
        reason = self.settings.reason
        if self.settings.keep:
            return Outcome({row: Rejection(reason) for row in range(len(batch)) if row not in found})
        return Outcome({row: Rejection(reason, excerpt(words)) for row, words in found.items()})
