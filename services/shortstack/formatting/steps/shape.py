"""empty and length: what a record must have to be worth a step of training."""

from __future__ import annotations

from dataclasses import dataclass

from shortstack.declarations.recipe import EmptyStep, LengthStep
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.step import Outcome, Rejection

__all__ = ["Empty", "Length"]


@dataclass(frozen=True, slots=True)
class Empty:
    """Reasons: ``no_user``, ``empty_user``, ``no_answer``, ``empty_answer`` (an answer that calls a tool is none)."""

    settings: EmptyStep

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        asked, answered = set(), set()
        rejected: dict[int, Rejection] = {}
        for index, (row, role) in enumerate(zip(batch.rows, batch.roles, strict=True)):
            blank = not batch.contents[index] or batch.contents[index].isspace()
            if role == "assistant":
                answered.add(row)
                if blank and not batch.calls[index]:
                    rejected.setdefault(row, Rejection("empty_answer", f"turn {index - batch.offsets[row] + 1}"))
            elif role == "user":
                asked.add(row)
                if blank:
                    rejected.setdefault(row, Rejection("empty_user", f"turn {index - batch.offsets[row] + 1}"))
        if len(asked) < len(batch) or len(answered) < len(batch):
            for row in range(len(batch)):
                if row not in answered:
                    rejected[row] = Rejection("no_answer")
                elif row not in asked:
                    rejected[row] = Rejection("no_user")
        return Outcome(rejected)


@dataclass(frozen=True, slots=True)
class Length:
    """Reasons: ``short_answer``, ``long_turn``, ``long_record``; evidence is the length in characters.

    A record whose answers only call tools has no short answer.
    """

    settings: LengthStep

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        size = len(batch)
        answers, totals, longest = [0] * size, [0] * size, [0] * size
        calling = set()
        for row, role, content, calls in zip(batch.rows, batch.roles, batch.contents, batch.calls, strict=True):
            length = len(content)
            totals[row] += length
            longest[row] = max(longest[row], length)
            if role == "assistant":
                answers[row] += length
                if calls:
                    calling.add(row)
        rejected: dict[int, Rejection] = {}
        limits = self.settings
        for row in range(size):
            if answers[row] < limits.min_answer and row not in calling:
                rejected[row] = Rejection("short_answer", f"{answers[row]} characters")
            elif longest[row] > limits.max_turn:
                rejected[row] = Rejection("long_turn", f"{longest[row]} characters")
            elif totals[row] > limits.max_total:
                rejected[row] = Rejection("long_record", f"{totals[row]} characters")
        return Outcome(rejected)
