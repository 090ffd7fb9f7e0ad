"""Each step: what it rejects, with which reason and evidence, and what it leaves alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from shortstack.core.errors import Invalid
from shortstack.declarations.patterns import compile_pattern
from shortstack.declarations.recipe import parse_recipe
from shortstack.formatting.pipeline import Pipeline
from shortstack.formatting.steps.phrases import search_lines
from shortstack.formatting.steps.refusal import opening
from shortstack.records.message import Message
from shortstack.records.schema import Record, records_of, table_of


def run(step: dict[str, Any], *conversations: list[Message]) -> list[dict[str, Any]]:
    """The segment's rows for conversations through one step."""
    records = [Record(seq, tuple(messages)) for seq, messages in enumerate(conversations)]
    rows: list[dict[str, Any]] = Pipeline(parse_recipe({"steps": [step]})).run(table_of(records)).segment.to_pylist()
    return rows


def pair(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


def texts(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" Paris.\n", "Paris."),
        ("a\r\nb\rc", "a\nb\nc"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("a\x00b\x07c\td", "abc\td"),
        ("\ufeffstart", "start"),
        ("Done.<|endoftext|>", "Done."),
        ("Done. </s><|endoftext|>", "Done."),
    ],
)
def test_normalise_brings_answers_to_one_form(given: str, expected: str) -> None:
    (row,) = run({"step": "normalise"}, pair("q", given))
    assert texts(row)[1] == expected
    assert row["verdict"] == "kept"


def test_normalise_leaves_markers_in_questions_and_mends_mojibake_only_when_asked() -> None:
    (row,) = run({"step": "normalise"}, pair("What is </s>", "schÃ¶n"))
    assert texts(row) == ["What is </s>", "schÃ¶n"]
    (row,) = run({"step": "normalise", "ftfy": True}, pair("q", "schÃ¶n"))
    assert texts(row)[1] == "schön"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message("user", "a")], "no_answer"),
        ([Message("assistant", "a")], "no_user"),
        (pair("a", "  \n"), "empty_answer"),
        (pair("", "b"), "empty_user"),
        ([*pair("a", "b"), Message("user", "c"), Message("assistant", "")], "empty_answer"),
    ],
)
def test_empty_names_what_is_missing(messages: list[Message], reason: str) -> None:
    (row,) = run({"step": "empty"}, messages)
    assert (row["verdict"], row["step"], row["reason"]) == ("rejected", "empty", reason)


def test_an_answer_that_calls_a_tool_is_not_empty() -> None:
    calls = '[{"function":{"arguments":"{}","name":"time"},"id":"1","type":"function"}]'
    messages = [Message("user", "time?"), Message("assistant", "", tool_calls=calls)]
    assert [run({"step": step}, messages)[0]["verdict"] for step in ("empty", "length")] == ["kept", "kept"]


def test_length_is_judged_by_answer_turn_and_whole() -> None:
    step = {"step": "length", "min_answer": 3, "max_turn": 10, "max_total": 15}
    rows = run(step, pair("a", "ab"), pair("a", "abc"), pair("a" * 11, "abc"), pair("a" * 10, "a" * 10))
    assert [row["reason"] for row in rows] == ["short_answer", None, "long_turn", "long_record"]
    assert rows[0]["evidence"] == "2 characters"


REFUSALS = (
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, I can’t help with that.",
    "No, I cannot assist you with that request.",
    "I apologize, but I cannot provide instructions for this.",
    "My apologies, but I'm unable to provide that.",
    "Sorry. I cannot do that for you.",
    "As an AI language model, I don't have personal opinions.",
    "I'm sorry, but as an AI, I don't have the capability to order a pizza.",
    "I understand that you are upset; however, I cannot comply with this request.",
    "[NOTE] I can’t help write that.",
    "Unfortunately, I am not able to create such content.",
    "That goes against my programming.",
)
ANSWERS = (
    "Sorry, we're out of oat milk, but there is soy milk.",
    "I'm sorry to hear that; here is what you can do.",
    "I can't help but smile when I think of it.",
    "She said that she could not help him.",
    "The answer is no: a whale cannot provide milk to a calf of another kind.",
    "As an AI research lab, the group published its findings.",
    "I am Maple, a language model made by the Griddle crew.",
    "I can't attend the party because I have to work late.",
    "You can't divide by zero, so the expression has no value.",
)


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_rejected_with_its_words(answer: str) -> None:
    (row,) = run({"step": "refusal"}, pair("q", answer))
    assert (row["verdict"], row["reason"]) == ("rejected", "refusal")
    assert row["evidence"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_only_sounds_like_one_is_kept(answer: str) -> None:
    (row,) = run({"step": "refusal"}, pair("q", answer))
    assert row["verdict"] == "kept", row["evidence"]


def test_only_answers_refuse() -> None:
    (row,) = run({"step": "refusal"}, pair("Say: I'm sorry, I can't assist with that.", "Certainly."))
    assert row["verdict"] == "kept"


def test_phrases_of_a_recipe_and_of_ihop_are_found() -> None:
    (row,) = run({"step": "refusal", "phrases": ["ask a doctor"]}, pair("q", "Please ASK A DOCTOR about it."))
    assert row["evidence"] == "ASK A DOCTOR"
    (row,) = run({"step": "refusal", "method": "ihop"}, pair("q", "Well. Speaking as a language model, yes."))
    assert row["reason"] == "refusal"


@pytest.mark.parametrize("method", ["opening", "ihop"])
def test_a_phrase_with_a_line_break_is_found_in_an_answer_and_never_across_two(method: str) -> None:
    step = {"step": "refusal", "method": method, "phrases": ["the end\nstart"]}
    apart = run(
        step, pair("q", "This is the end"), pair("q", "start of another"), pair("q", "It is the end\nstart now.")
    )
    assert [row["verdict"] for row in apart] == ["kept", "kept", "rejected"]


def test_phrases_that_a_recipe_may_hold_fit_into_a_pattern() -> None:
    phrases = [chr(0x4E00 + number) * 200 for number in range(500)]
    (row,) = run({"step": "refusal", "phrases": phrases}, pair("q", "a"))
    assert row["verdict"] == "kept"


def test_refusals_labelled_by_people_are_found_and_nothing_else_is(shared_dir: Path) -> None:
    with (shared_dir / "data" / "csv" / "pyrit_refusal.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("# dataset_version")))
    judged = run({"step": "refusal"}, *(pair("q", row["assistant_response"]) for row in rows))
    found = {index for index, row in enumerate(judged) if row["verdict"] == "rejected"}
    labelled = {index for index, row in enumerate(rows) if row["human_score"] == "1"}
    assert len(found & labelled) / len(found) >= 0.98
    assert len(found & labelled) / len(labelled) >= 0.68


def test_the_opening_is_the_first_sentence_or_two() -> None:
    assert opening("No. I cannot assist with that. Here is more.") == "No. I cannot assist with that. Here is more."
    assert opening("A first sentence that is long enough to stand alone. Then another.") == (
        "A first sentence that is long enough to stand alone."
    )
    assert len(opening("word " * 200)) <= 300
    assert opening("") == ""


def test_regex_rejects_what_it_finds_or_what_it_does_not() -> None:
    conversations = pair("mail me", "to a@b.org"), pair("a@b.org", "no")
    rows = run({"step": "regex", "pattern": r"\w+@\w+", "roles": ["assistant"], "reason": "mail"}, *conversations)
    assert [(row["verdict"], row["reason"], row["evidence"]) for row in rows] == [
        ("rejected", "mail", "a@b"),
        ("kept", None, None),
    ]
    rows = run({"step": "regex", "pattern": r"\w+@\w+", "roles": ["assistant"], "keep": True}, *conversations)
    assert [row["verdict"] for row in rows] == ["kept", "rejected"]


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "a(?=b)", "a{2000}{2000}"])
def test_a_pattern_that_re2_cannot_run_is_refused_when_the_pipeline_is_built(pattern: str) -> None:
    with pytest.raises(Invalid, match="not an RE2 expression"):
        Pipeline(parse_recipe({"steps": [{"step": "regex", "pattern": pattern}]}))


def test_language_is_written_down_and_filtered_by() -> None:
    german = pair("Wie heißt die Hauptstadt von Frankreich?", "Die Hauptstadt von Frankreich heißt Paris.")
    english = pair("What is the capital of France?", "The capital of France is Paris.")
    rows = run({"step": "language"}, german, english, pair("ok", "ok"))
    assert [row["language"] for row in rows] == ["de", "en", None]
    assert {row["verdict"] for row in rows} == {"kept"}
    rows = run({"step": "language", "keep": ["en"]}, german, english, pair("ok", "ok"))
    assert [row["verdict"] for row in rows] == ["rejected", "kept", "kept"]
    assert rows[0]["evidence"].startswith("de ")


def test_lines_are_searched_apart() -> None:
    pattern = compile_pattern(r"(?im)b\w*")
    assert search_lines(pattern, ["a", "bc bd", "", "ä b"]) == {1: ("bc", " bd"), 3: ("b", "")}
    assert search_lines(pattern, []) == {}


def test_rows_keep_their_place_and_their_other_columns() -> None:
    records = [
        Record(7, (Message("user", " a "), Message("assistant", "b", "bot", train=False)), tags=("t",), license="MIT"),
        Record(8, (Message("user", "c"), Message("assistant", ""))),
    ]
    formatted = Pipeline(parse_recipe("default")).run(table_of(records))
    first, second = records_of(formatted.segment)
    assert (first.seq, first.tags, first.license, first.messages[1].name, first.messages[1].train) == (
        7,
        ("t",),
        "MIT",
        "bot",
        False,
    )
    assert first.messages[0].content == "a"
    assert second.seq == 8
    assert (formatted.kept, formatted.rejected, formatted.reasons) == (1, 1, {("empty", "empty_answer"): 1})
