"""Exact bytes: the project's own table, and the cases of the reference material where that is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortstack.prompts.formats import PromptFormat, PromptFormats
from shortstack.records.message import Message

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "renders.yaml").read_text(encoding="utf-8"))
DOCUMENTED_OTHERWISE = {"human_bot": "human_bot_code", "summarize": "summarize_code"}


def render(fmt: PromptFormat, messages: list[Message]) -> str:
    return fmt.text(messages) if messages[-1].role == "assistant" else fmt.prompt(messages)


def three_parts(case: dict[str, str], *, with_empty: bool) -> list[Message]:
    asked = [Message("user", case["instruction"]), Message("context", case["input"])]
    return [*(one for one in asked if one.content or with_empty), Message("assistant", case["output"])]


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((shared_dir / "spec" / "prompt-golden.json").read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize("name", PromptFormats.builtin().names())
def test_every_format_renders_what_the_table_says(name: str, formats: PromptFormats) -> None:
    for case, expected in TABLE["renders"][name].items():
        messages = [Message(**one) for one in TABLE["cases"][case]]
        assert render(formats.get(name), messages) == expected, case


@pytest.mark.parametrize("with_empty", [False, True])
def test_the_renders_of_h2ogpt_come_out_exactly(
    with_empty: bool, golden: dict[str, Any], formats: PromptFormats
) -> None:
    for case in golden["h2ogpt_faq"]:
        fmt, messages = formats.get(case["prompt_type"]), three_parts(case, with_empty=with_empty)
        assert fmt.text(messages) == case["text"]
        if case["prompt"] is not None:
            assert fmt.prompt(messages[:-1]) == case["prompt"]
    for kind in golden["h2ogpt_code"]:
        name = DOCUMENTED_OTHERWISE.get(kind["prompt_type"], kind["prompt_type"])
        assert list(formats.get(name).stop) == kind["stop"]
        for case in kind["renders"]:
            assert formats.get(name).text(three_parts(case, with_empty=with_empty)) == case["text"], name


def test_the_renders_of_ihop_and_airoboros_come_out_exactly(golden: dict[str, Any], formats: PromptFormats) -> None:
    assert formats.get("ihop").default_system == golden["ihop"]["default_system"]
    for name in ("ihop", "airoboros"):
        fmt = formats.get(name)
        assert list(fmt.stop) == golden[name]["stop"]
        for case in golden[name]["cases"]:
            messages = [Message(**one) for one in case["messages"]]
            if "prompt" in case:
                assert fmt.prompt(messages) == case["prompt"]
            if "text" in case:
                assert fmt.text(messages) == case["text"]
    preamble = golden["airoboros"]["preamble"]
    talk = [Message(**one) for one in golden["airoboros"]["cases"][1]["messages"]]
    assert formats.get("airoboros").prompt(talk) == f"{preamble} USER: Q1 ASSISTANT: A1</s> USER: Q2 ASSISTANT: "


def test_a_preamble_is_chosen_by_the_first_turn_alone(formats: PromptFormats) -> None:
    first = [Message("user", "Sum up."), Message("assistant", "No.")]
    later = [Message("user", "And this?"), Message("context", "Rain fell.")]
    for name in ("instruct", "quality", "alpaca"):
        fmt = formats.get(name)
        assert fmt.prompt([*first, *later]).startswith(fmt.text(first))
        assert fmt.prompt([*later, *first[1:], *first[:1]]).startswith(fmt.prompt(later))
        assert not fmt.prompt(later).startswith(fmt.prompt(first[:1]).splitlines(keepends=True)[0])
