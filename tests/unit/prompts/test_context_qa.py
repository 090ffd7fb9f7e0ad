"""Context-obedient questions and the plain-code mark: what is built is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.prompts.context_qa import UNANSWERABLE, ContextBlock, ContextQuestion, SourcedAnswer
from shortstack.prompts.plain_format import asks_plain, code_alone, with_mark, without_mark

TAGS = ("BEGININPUT", "BEGINCONTEXT", "ENDCONTEXT", "ENDINPUT", "BEGININSTRUCTION", "ENDINSTRUCTION", "Source:")
line = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: text not in TAGS
)
paragraphs = st.lists(line, min_size=1, max_size=3).map("\n".join)
pairs = st.dictionaries(st.text("abcdez_ ", min_size=1, max_size=6), line, max_size=3)
blocks = st.lists(st.builds(ContextBlock, paragraphs, pairs), min_size=1, max_size=3).map(tuple)


@given(blocks, paragraphs)
def test_a_question_is_read_back_as_it_was_built(blocks: tuple[ContextBlock, ...], instruction: str) -> None:
    assume(instruction.strip())
    question = ContextQuestion(blocks, instruction)
    assert ContextQuestion.parse(question.build()) == question


@given(paragraphs, pairs)
def test_an_answer_is_read_back_with_its_source(text: str, source: dict[str, str]) -> None:
    answer = SourcedAnswer(text, source)
    assert SourcedAnswer.parse(answer.build()) == answer


def test_the_reference_case_comes_out_exactly(shared_dir: Path) -> None:
    case = json.loads((shared_dir / "spec" / "prompt-golden.json").read_text(encoding="utf-8"))["context_obedient_qa"]
    blocks = tuple(ContextBlock(one["text"], one["metadata"]) for one in case["blocks"])
    assert ContextQuestion(blocks, case["instruction"]).build() == case["text"]
    assert ContextQuestion.parse(case["text"]).instruction == case["instruction"]
    assert SourcedAnswer.parse(case["answer"]) == SourcedAnswer("Blueberries are now green.", blocks[0].metadata)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("BEGININSTRUCTION\nWhy?\nENDINSTRUCTION", "at least one block"),
        ("BEGININPUT\nx\nENDINPUT", "line 2: 'x' stands where BEGINCONTEXT belongs"),
        ("BEGININPUT\nBEGINCONTEXT\nurl\nENDCONTEXT\nx\nENDINPUT", 'no "key: value"'),
        ("BEGININPUT\nBEGINCONTEXT\nENDCONTEXT\nx\nENDINPUT\nBEGININSTRUCTION\nWhy?", "the end stands where ENDINSTR"),
    ],
)
def test_a_broken_question_is_an_error_that_names_the_line(text: str, complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        ContextQuestion.parse(text)


def test_a_text_that_would_close_its_own_block_is_refused() -> None:
    with pytest.raises(Invalid, match="the tag ENDINPUT"):
        ContextQuestion((ContextBlock("a\nENDINPUT\nb"),), f"Why? {UNANSWERABLE}")


def test_a_coding_instruction_has_its_plain_twin() -> None:
    for own_line in (False, True):
        twin = with_mark("Print 1 in Python.", own_line=own_line)
        assert asks_plain(twin)
        assert without_mark(twin) == "Print 1 in Python."
        assert with_mark(twin) == twin
    assert not asks_plain("What does PLAINFORMAT mean?")


def test_talk_and_fences_are_stripped_from_code() -> None:
    assert code_alone("Sure!\n```python\nprint(1)\n```\nThat prints 1.") == "print(1)"
    assert code_alone("```\na\n```\nand\n```sh\nb\n\n```") == "a\n\nb"
    assert code_alone("No code here, ```or``` so.") is None
