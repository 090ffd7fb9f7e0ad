"""A recipe's steps run over a batch: every record in, every record out with its verdict. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from shortstack.core.errors import ShortstackError
from shortstack.declarations.recipe import Recipe
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.registry import build_step
from shortstack.formatting.steps.step import Outcome, Rejection, Step, excerpt
from shortstack.records.schema import SEGMENT_SCHEMA, content_digests

__all__ = ["FAILED", "KEPT", "REJECTED", "Formatted", "Pipeline"]

KEPT, REJECTED, FAILED = "kept", "rejected", "failed"


@dataclass(frozen=True, slots=True)
class Formatted:
    """A batch with its verdicts.

    Attributes:
        segment: table of `SEGMENT_SCHEMA`, one row for each record that came in, in order.
        kept, rejected, failed: how many; together the rows of the segment.
        reasons: (step, reason) → records, of those not kept.
    """

    segment: pa.Table
    kept: int
    rejected: int
    failed: int
    reasons: dict[tuple[str, str], int]


@dataclass(slots=True)
class _Fates:
    """What has become of each record so far."""

    verdicts: list[str]
    steps: list[str | None]
    reasons: list[str | None]
    evidence: list[str | None]
    languages: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, size: int) -> _Fates:
        return cls([KEPT] * size, [None] * size, [None] * size, [None] * size)

    def end(self, row: int, verdict: str, step: str, why: Rejection) -> None:
        self.verdicts[row], self.steps[row] = verdict, step
        self.reasons[row], self.evidence[row] = why.reason, why.evidence or None


class Pipeline:
    """The steps of one recipe, ready to run. Keeps nothing between batches; safe to share between threads."""

    def __init__(self, recipe: Recipe) -> None:
        """Builds every step.

        Raises:
            Invalid: a step's settings cannot work.
        """
        self._steps: Sequence[tuple[str, Step]] = [(settings.step, build_step(settings)) for settings in recipe.steps]

    def run(self, table: pa.Table) -> Formatted:
        """Judges every record of ``table`` (`RECORD_SCHEMA`).

        Raises:
            Poison: the table's conversations are malformed as a whole.
        """
        batch = Conversations.of(table)
        fates = _Fates.of(len(batch))
        edited = False
        for name, step in self._steps:
            outcome, failures = _guarded(step, batch)
            live = [verdict == KEPT for verdict in fates.verdicts]
            if outcome.contents is not None:
                batch = batch.with_contents(_merged(batch, outcome.contents, live))
                edited = True
            for row, why in outcome.rejected.items():
                if live[row]:
                    fates.end(row, REJECTED, name, why)
            for row, why in failures.items():
                if live[row]:
                    fates.end(row, FAILED, name, why)
            fates.languages.update({row: code for row, code in outcome.languages.items() if live[row]})
        return _formatted(table, batch if edited else None, fates)


def _guarded(step: Step, batch: Conversations) -> tuple[Outcome, dict[int, Rejection]]:
    """Runs a step on the batch; where it breaks, on each record alone, so that one record fails and not its batch."""
    try:
        return step(batch), {}
    except ShortstackError:
        raise
    except Exception:  # noqa: BLE001 - whatever a step's library throws at odd text: the record that does it is named below
        return _one_by_one(step, batch)


def _one_by_one(step: Step, batch: Conversations) -> tuple[Outcome, dict[int, Rejection]]:
    rejected: dict[int, Rejection] = {}
    failures: dict[int, Rejection] = {}
    languages: dict[int, str] = {}
    contents = list(batch.contents)
    edited = False
    for row in range(len(batch)):
        try:
            outcome = step(batch.record(row))
        except ShortstackError:
            raise
        except Exception as error:  # noqa: BLE001 - the record fails with the error's name
            failures[row] = Rejection(type(error).__name__, excerpt(str(error)))
            continue
        if 0 in outcome.rejected:
            rejected[row] = outcome.rejected[0]
        if 0 in outcome.languages:
            languages[row] = outcome.languages[0]
        if outcome.contents is not None:
            contents[batch.offsets[row] : batch.offsets[row + 1]] = outcome.contents
            edited = True
    return Outcome(rejected, contents if edited else None, languages), failures


def _merged(batch: Conversations, contents: Sequence[str], live: Sequence[bool]) -> Sequence[str]:
    """Edits of records that are still in; the others stay as they were when their verdict fell."""
    if all(live):
        return contents
    return [new if live[row] else old for row, old, new in zip(batch.rows, batch.contents, contents, strict=True)]


def _formatted(table: pa.Table, edited: Conversations | None, fates: _Fates) -> Formatted:
    if edited is not None:
        at = table.schema.get_field_index("messages")
        table = table.set_column(at, table.schema.field(at), edited.messages(table.column("messages")))
    if fates.languages:
        at = table.schema.get_field_index("language")
        given = table.column("language").to_pylist()
        codes = [fates.languages.get(row, code) for row, code in enumerate(given)]
        table = table.set_column(at, table.schema.field(at), pa.array(codes, type=pa.string()))
    verdicts = {
        "verdict": fates.verdicts,
        "step": fates.steps,
        "reason": fates.reasons,
        "evidence": fates.evidence,
        "digest": content_digests(table),
    }
    columns = [*table.columns, *(pa.array(column, type=pa.string()) for column in verdicts.values())]
    segment = pa.table(columns, schema=SEGMENT_SCHEMA)
    counts = Counter(fates.verdicts)
    return Formatted(segment, counts[KEPT], counts[REJECTED], counts[FAILED], _reasons(fates))


def _reasons(fates: _Fates) -> dict[tuple[str, str], int]:
    ended: Iterable[tuple[str | None, str | None]] = zip(fates.steps, fates.reasons, strict=True)
    return dict(sorted(Counter((step, reason) for step, reason in ended if step and reason).items()))
