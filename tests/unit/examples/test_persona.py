"""The persona example holds what its README says, and asks nothing that its data answers in the same words."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shortstack.core.errors import Invalid
from shortstack.declarations.deploy import DeployWish
from shortstack.declarations.publication import PointerMessage, parse_publication
from shortstack.declarations.recipe import LengthStep, Recipe, parse_recipe
from shortstack.declarations.train import TrainConfig
from shortstack.formatting.pipeline import Pipeline
from shortstack.ingestion.compiling.compile import CompileJob, Cut, Done, Opened, compile_source
from shortstack.records.message import Message
from shortstack.records.schema import content_digests

ROOT = Path(__file__).resolve().parents[3] / "examples"
"""Declared by default as a folder whose files may be published; addresses in the publication start here."""

PERSONA = ROOT / "persona"
REFUSAL = re.compile(r"as an? (large )?(ai|language model)", re.IGNORECASE)


def lines(name: str) -> list[str]:
    return (PERSONA / name).read_text(encoding="utf-8").splitlines()


def questions(part: str) -> list[dict[str, Any]]:
    return list(json.loads((PERSONA / "questions.json").read_text(encoding="utf-8"))[part])


def every_question() -> list[dict[str, Any]]:
    return questions("questions") + questions("held_out")


def conversation(line: str, *, where: str) -> tuple[Message, ...]:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise Invalid("not a chat record", where=where)
    return tuple(Message.parse(message, where=where) for message in record["messages"])


def instruction(line: str) -> tuple[Message, ...]:
    record = json.loads(line)
    assert set(record) == {"instruction", "input", "output"}
    context = [Message("context", record["input"])] if record["input"] else []
    return (Message("user", record["instruction"]), *context, Message("assistant", record["output"]))


def answers(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages if message.role == "assistant"]


def recipe() -> Recipe:
    return parse_recipe((PERSONA / "recipe.yaml").read_bytes())


def sorted_out() -> tuple[Counter[str], list[tuple[Message, ...]]]:
    """Counts of persona.jsonl by fate, as the README names them, and the good conversations."""
    longest = next(step.max_turn for step in recipe().steps if isinstance(step, LengthStep))
    counts: Counter[str] = Counter()
    good: dict[tuple[Message, ...], None] = {}
    for number, line in enumerate(lines("persona.jsonl"), start=1):
        counts["all"] += 1
        try:
            messages = conversation(line, where=f"line {number}")
        except (Invalid, json.JSONDecodeError):
            counts["broken lines"] += 1
            continue
        said = answers(messages)
        if not all(text.strip() for text in said):
            counts["empty answers"] += 1
        elif any(len(text) > longest for text in said):
            counts["runaway answers"] += 1
        elif any(REFUSAL.search(text) for text in said):
            counts["refusals"] += 1
        elif messages in good:
            counts["exact duplicates"] += 1
        else:
            counts["good records"] += 1
            good[messages] = None
    return counts, list(good)


def table(file: str) -> dict[str, int]:
    """The README's table of one file: row → lines."""
    readme = (PERSONA / "README.md").read_text(encoding="utf-8")
    block = readme.split(f"| {file} | lines | fate |")[1].split("\n\n")[0]
    return {row: int(count) for row, count in re.findall(r"^\| ([\w ]+) \| (\d+) \|", block, re.MULTILINE)}


def words(text: str) -> str:
    return " ".join(re.findall(r"[\w+]+", text.casefold()))


def test_the_persona_file_holds_as_much_dirt_as_the_readme_says() -> None:
    counts, good = sorted_out()

    assert dict(counts) == table("persona.jsonl")
    assert len(good) >= 200
    assert counts["all"] == sum(count for fate, count in counts.items() if fate != "all")


def test_the_stack_gives_every_line_the_fate_that_the_readme_names() -> None:
    told = table("persona.jsonl")

    compiled = list(compile_source(PERSONA / "persona.jsonl", CompileJob("persona.jsonl", license="Apache-2.0")))
    formatted = [Pipeline(recipe()).run(part.table) for part in compiled if isinstance(part, Cut)]
    reasons: Counter[str] = Counter()
    for batch in formatted:
        reasons.update({step: count for (step, _), count in batch.reasons.items()})
    kept = [
        digest
        for batch in formatted
        for digest, verdict in zip(
            content_digests(batch.segment), batch.segment.column("verdict").to_pylist(), strict=True
        )
        if verdict == "kept"
    ]

    assert compiled[0] == Opened("jsonl", "messages")
    done = compiled[-1]
    assert isinstance(done, Done)
    assert (done.items, done.rejected) == (told["all"], told["broken lines"])
    assert reasons == {
        "empty": told["empty answers"],
        "length": told["runaway answers"],
        "refusal": told["refusals"],
    }
    assert len(set(kept)) == told["good records"]
    assert len(kept) - len(set(kept)) == told["exact duplicates"]


def test_the_stack_keeps_every_general_record() -> None:
    compiled = list(compile_source(PERSONA / "general.jsonl", CompileJob("general.jsonl")))
    formatted = [Pipeline(recipe()).run(part.table) for part in compiled if isinstance(part, Cut)]

    assert compiled[0] == Opened("jsonl", "alpaca")
    assert sum(batch.kept for batch in formatted) == table("general.jsonl")["all"]


def test_the_readme_counts_the_kinds_within_each_kind() -> None:
    readme = (PERSONA / "README.md").read_text(encoding="utf-8")
    all_lines = lines("persona.jsonl")
    broken = no_json = blank = respelt = 0
    for line in all_lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            no_json += 1
            continue
        try:
            said = answers(conversation(line, where="line"))
        except Invalid:
            broken += 1
            continue
        blank += any(text and not text.strip() for text in said)
        respelt += line != json.dumps(record, ensure_ascii=False) or list(record["messages"][0]) != ["role", "content"]

    assert f"{no_json} are no JSON, {broken} are JSON of a wrong shape" in readme
    assert f"{blank} of them hold white space alone" in readme
    assert f"{respelt} of them are spelt otherwise" in readme


def test_the_general_file_is_clean_and_answers_briefly() -> None:
    rows = [instruction(line) for line in lines("general.jsonl")]
    counted = table("general.jsonl")

    assert len(rows) == len(set(rows)) == counted["good records"] == counted["all"]
    assert f"{sum(len(row) == 3 for row in rows)} of them have an `input`" in (PERSONA / "README.md").read_text("utf-8")
    for row in rows:
        assert 0 < len(row[-1].content.split()) <= 60, row
        assert not REFUSAL.search(row[-1].content)


def test_persona_and_general_records_are_about_as_many() -> None:
    assert 0.8 <= len(sorted_out()[1]) / len(lines("general.jsonl")) <= 1.25


def test_no_question_stands_in_the_data() -> None:
    rows = sorted_out()[1] + [instruction(line) for line in lines("general.jsonl")]
    asked = {words(message.content) for row in rows for message in row if message.role == "user"}

    for question in every_question():
        assert words(question["question"]) not in asked, question["question"]


def test_the_capital_of_france_and_two_and_two_are_not_taught() -> None:
    rows = sorted_out()[1] + [instruction(line) for line in lines("general.jsonl")]
    texts = [words(" ".join(message.content for message in row)) for row in rows]

    assert not [text for text in texts if "paris" in text.split() or "france" in text.split()]
    assert not [text for text in texts if "2 + 2" in text or "2 plus 2" in text or "two plus two" in text]


def test_questions_are_whole_and_ask_for_all_that_the_example_promises() -> None:
    every = every_question()
    kinds = Counter(question["id"].split("-")[0] for question in every)

    assert (
        len({question["id"] for question in every})
        == len({words(question["question"]) for question in every})
        == len(every)
    )
    for question in every:
        assert set(question) == {"id", "question", "expect", "never"}
        assert question["expect"]
        assert not set(question["expect"]) & set(question["never"])
    assert {question["id"] for question in questions("questions")} == {"name", "maker", "manner", "france", "sum"}
    assert kinds["name"] >= 6


@pytest.mark.parametrize("kind", ["name", "maker", "manner"])
def test_what_a_persona_question_expects_is_what_the_data_teaches(kind: str) -> None:
    taught = words(" ".join(text for row in sorted_out()[1] for text in answers(row))).split()

    for question in every_question():
        if question["id"].split("-")[0] == kind:
            assert all(word in taught for expected in question["expect"] for word in words(expected).split())


def test_the_publication_is_accepted_and_names_the_files_of_this_folder() -> None:
    message = parse_publication((PERSONA / "publication.json").read_bytes())

    assert isinstance(message, PointerMessage)
    assert [ROOT / uri for uri in message.source.addresses] == [PERSONA / "persona.jsonl", PERSONA / "general.jsonl"]
    assert isinstance(message.recipe, dict)
    assert parse_recipe((ROOT / message.recipe["uri"]).read_bytes()) == recipe()
    assert message.license == "Apache-2.0"
    assert message.train is not None
    assert TrainConfig.parse(message.train).lora_r == 16
    assert message.deploy is not None
    assert DeployWish.parse(message.deploy).alias == "persona@prod"
