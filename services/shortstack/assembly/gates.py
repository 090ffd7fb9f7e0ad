"""Balanced is not good: what a whole dataset must also be before anything trains on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shortstack.assembly.ledger import PublicationLedger

__all__ = ["Gates", "Ruling"]

_TOP_REASONS = 3


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the gates say: ``ready``, ``held`` or ``failed``, with why and what to do."""

    verdict: str
    message: str = ""
    remedy: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds, from the recipe.

    Attributes:
        max_failed: records that may fail in a step before the dataset is held.
        max_rejected: share of records (0 to 1) that may be malformed or rejected before it is held.
        min_kept: kept records below which it is held; without any it fails.
        strict: any malformed or rejected record fails the dataset, because the recipe lets none go (``verbatim``): it
            has no step, and fails at the first malformed line. Its name does not matter.
    """

    max_failed: int = 0
    max_rejected: float = 0.9
    min_kept: int = 1
    strict: bool = False

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Gates:
        """The gates of a resolved recipe."""
        gates, usual = recipe.get("gates") or {}, cls()
        return cls(
            max_failed=int(gates.get("max_failed", usual.max_failed)),
            max_rejected=float(gates.get("max_rejected", usual.max_rejected)),
            min_kept=int(gates.get("min_kept", usual.min_kept)),
            strict=recipe.get("malformed") == "fail" and not recipe.get("steps"),
        )

    def rule(self, ledger: PublicationLedger, *, accepted: bool) -> Ruling:
        """Judges a complete ledger; ``accepted`` is an operator's word to let a held one through."""
        totals = ledger.totals
        name = ledger.publication.dataset
        reject = f"See them with: shortstack datasets rejected {name}"
        if self.strict and totals.malformed + totals.rejected + totals.failed:
            return Ruling("failed", self._strict_message(ledger), reject, "invalid_training_file")
        if totals.kept == 0:
            why = f"no usable record: {self._described(ledger)}"
            return Ruling("failed", why, f"{reject}. Mend the source and publish it again.", "no_usable_record")
        return Ruling("ready") if accepted else self._hold(ledger, reject)

    def _hold(self, ledger: PublicationLedger, reject: str) -> Ruling:
        """Held for the first gate that it misses, else ready."""
        totals, name = ledger.totals, ledger.publication.dataset
        offered = totals.announced + totals.malformed
        refused = totals.rejected + totals.malformed
        why, code = "", ""
        if totals.failed > self.max_failed:
            why, code = f"{totals.failed} records failed: {self._described(ledger)}", "failed_records"
        elif refused > self.max_rejected * offered:
            share = f"{refused} of {offered} records are rejected (limit {self.max_rejected:.0%})"
            why, code = f"{share}: {self._described(ledger)}", "mostly_rejected"
        elif totals.kept < self.min_kept:
            why, code = f"{totals.kept} records kept, fewer than {self.min_kept}", "too_few_kept"
        if not why:
            return Ruling("ready")
        again = f" Or mend the cause and read it again: shortstack datasets retry {name}" if totals.failed else ""
        return Ruling("held", why, f"{reject}. Let it through with: shortstack datasets accept {name}.{again}", code)

    @staticmethod
    def _described(ledger: PublicationLedger) -> str:
        reasons = [f"{r.records} {r.reason}" for r in ledger.totals.reason_counts()[:_TOP_REASONS]]
        if ledger.totals.malformed:
            sample = next((s for a in ledger.announced.values() for s in a.samples), "")
            reasons.append(f"{ledger.totals.malformed} malformed" + (f" ({sample})" if sample else ""))
        if ledger.totals.errors:
            reasons.append(f"first error: {ledger.totals.errors[0]}")
        return "; ".join(reasons) or "the sources hold no records"

    @classmethod
    def _strict_message(cls, ledger: PublicationLedger) -> str:
        samples = [sample for announced in ledger.announced.values() for sample in announced.samples]
        return samples[0] if samples else cls._described(ledger)
