"""refusal: answers that decline the task. Rules, phrase lists and their measured quality: docs/filters.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shortstack.declarations.patterns import compile_pattern
from shortstack.declarations.recipe import RefusalStep
from shortstack.formatting.conversations import Conversations
from shortstack.formatting.steps.phrases import search_lines
from shortstack.formatting.steps.step import Outcome, Rejection, excerpt

__all__ = ["IHOP_PHRASES", "Refusal", "opening"]

IHOP_PHRASES: Final = (
    "as a language model",
    "as an AI language model",
    "as an AI",
    "as an AI language",
    "as a large language",
)
"""The list of IHOP's filter, matched anywhere in an answer, without regard to case."""

_OPENING_MIN: Final = 40
_OPENING_MAX: Final = 300
_SENTENCE_END: Final = re.compile(r"[.!?](?=\s|$)|\n")

_I: Final = r"\b(?:i|we)\b"
_CANNOT: Final = (
    r"(?: really| simply| just)?(?:"
    r" can(?:not|['’]?t| not)"
    r"| will not| won['’]t| must decline| have to decline| refuse| decline"
    r"|(?: am|['’]m| are|['’]re)(?: \w+)? (?:unable|not able|not allowed|not permitted|not programmed|not comfortable"
    r"|not capable)"
    r"| (?:do not|don['’]t) (?:feel comfortable|have the (?:ability|capability|capacity)|have access)"
    r")"
)
_DO: Final = (
    r"(?:,? \w+){0,3} (?:assist|help|comply|fulfil|provid|support|creat|generat|writ|produc|engag|offer|giv|shar|answer"
    r"|discuss|participat|do (?:that|this|so)|encourag|recommend|facilitat|complet|perform|promot|respond|access|order"
    r"|book|suggest|endors|condon|brows|predict)\w*"
)
_LEAD: Final = r"^(?:\[[^\]\n]{1,30}\] ?)?(?:\w+: )?(?:no[,.]? |unfortunately[,.]? |oh[,.]? )?"
_SORRY: Final = r"(?:(?:i|we)(?:['’]m| am|['’]re| are)? |my |please )?(?:\w+ ){0,2}(?:sorry|apolog\w+|afraid|regret\w*)"
_AI: Final = r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
_LACKS: Final = (
    rf"(?:{_CANNOT}| (?:do not|don['’]t) (?:have|possess|experience|feel)| am not"
    r"| (?:not able|unable|not capable)| lack)"
)

_RULES: Final = (
    # "I can't help with that", "No, I cannot assist", "I'm sorry, but I am unable to provide".
    rf"{_LEAD}(?:{_SORRY}[^\n]{{0,120}}?)?{_I}{_CANNOT}{_DO}",
    # "I understand that …, however, I cannot comply".
    rf"^[^\n]{{0,200}}\b(?:but|however|therefore|so),? {_I}{_CANNOT}{_DO}",
    # "Sorry, but that is not something I can help with", "Sorry, I can't".
    rf"{_LEAD}{_SORRY}[^\n]{{0,80}}?(?:not something (?:i|we) can|(?:i|we) can(?:not|['’]?t)[.!]?$)",
    # "As an AI language model, I don't have opinions".
    rf"^[^\n]{{0,60}}{_AI}[^\n]{{0,60}}?{_LACKS}",
    # "This goes against my programming".
    r"^[^\n]{0,200}\b(?:against|violat\w+) (?:my|our|openai['’]?s?) [^\n]{0,30}?"
    r"(?:programming|guidelines|polic|principles)",
)

_IDIOMS: Final = re.compile(r" (?:but|wonder|thinking|feeling|falling|myself|ourselves)\b")
"""What follows "I can't help" where nothing is declined: "I can't help but smile"."""


def opening(answer: str) -> str:
    """The first sentence, on one line; with the next one if it is shorter than 40 characters; 300 at most."""
    start = answer[:_OPENING_MAX]
    end = _SENTENCE_END.search(start, min(_OPENING_MIN, len(start)))
    return _folded(start[: end.end()] if end else start)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Looks at every answer of a record: one that declines rejects the record. Reason: ``refusal``.

    ``method: opening`` takes the first sentence of an answer by rules on its grammar; ``ihop`` searches the whole
    answer for `IHOP_PHRASES`. ``phrases`` of the recipe are searched in what the method looks at, besides.
    """

    settings: RefusalStep
    _pattern: Any = field(init=False)

    def __post_init__(self) -> None:
        # As what is looked at is folded: a phrase with a line break of its own would match across two answers.
        fold = _folded if self.settings.method == "opening" else _one_line
        own = [re.escape(fold(phrase)) for phrase in self.settings.phrases]
        given = _RULES if self.settings.method == "opening" else [rf"\b{re.escape(p)}\b" for p in IHOP_PHRASES]
        alternatives = "|".join(f"(?:{rule})" for rule in [*given, *own])
        object.__setattr__(self, "_pattern", compile_pattern(f"(?im){alternatives}"))

    def __call__(self, batch: Conversations) -> Outcome:
        """See `Step`."""
        answers = [index for index, role in enumerate(batch.roles) if role == "assistant" and batch.contents[index]]
        look = opening if self.settings.method == "opening" else _one_line
        lines = [look(batch.contents[index]) for index in answers]
        rejected: dict[int, Rejection] = {}
        for line, evidence in self.found(lines).items():
            rejected.setdefault(batch.rows[answers[line]], Rejection("refusal", excerpt(evidence)))
        return Outcome(rejected)

    def found(self, lines: Sequence[str]) -> dict[int, str]:
        """Line → the words that decline, for the lines that do."""
        hits = search_lines(self._pattern, lines)
        return {line: words for line, (words, after) in hits.items() if not _idiom(words, after)}


def _idiom(words: str, after: str) -> bool:
    return words.lower().endswith("help") and _IDIOMS.match(after) is not None


def _folded(text: str) -> str:
    return " ".join(text.split())


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
