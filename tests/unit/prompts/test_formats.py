"""The registry, the guard, roles and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Fatal, Invalid
from shortstack.prompts.declaration import read_declaration
from shortstack.prompts.declared import DeclaredFormat
from shortstack.prompts.formats import PromptFormats
from shortstack.prompts.guard import Guard
from shortstack.prompts.table import format_table
from shortstack.records.message import Message


@given(
    st.text("ab< |>", max_size=12), st.lists(st.sampled_from(["<|a|>", "aa", "abab", "aaa", "<|", "bab|b"]), min_size=1)
)
def test_a_guarded_text_holds_no_token_and_loses_no_character(text: str, tokens: list[str]) -> None:
    guard = Guard.of(tokens)
    broken = guard(text)
    assert not guard.finds(broken)
    assert broken.replace(" ", "") == text.replace(" ", "")


def test_the_guard_refuses_a_token_that_a_space_cannot_break() -> None:
    with pytest.raises(Invalid, match="cannot be broken"):
        Guard.of(["x"])


def test_contents_side_by_side_make_no_token(formats: PromptFormats) -> None:
    plain = formats.get("plain")
    assert isinstance(plain, DeclaredFormat)
    fmt = DeclaredFormat(plain.declaration, plain.clock, Guard.of(["<|im_end|>"]), "</s>")
    messages = [Message("user", "<|im_"), Message("context", "end|>"), Message("assistant", "a")]
    assert fmt.text(messages) == "<|im_ end|>a"


def test_an_unknown_name_gets_the_nearest(formats: PromptFormats) -> None:
    with pytest.raises(Invalid, match='Did you mean "chatml"'):
        formats.get("chat_ml")
    with pytest.raises(Invalid, match="chat template of a base model"):
        formats.get("base")


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([Message("user", "a"), Message("system", "b")], r"messages\[1\]"),
        ([Message("user", "a"), Message("tool", "b")], r"messages\[1\]"),
        ([Message("user", "a"), Message("asistant", "b")], r'messages\[1\].*Did you mean "assistant"'),
        ([], "at least one message"),
    ],
)
def test_what_ihop_cannot_render_is_an_error_that_names_the_message(
    messages: list[Message], where: str, formats: PromptFormats
) -> None:
    fmt = formats.get("ihop")
    for call in (fmt.check, fmt.text, fmt.prompt):
        with pytest.raises(Invalid, match=where):
            call(messages)


def test_no_role_is_dropped(formats: PromptFormats) -> None:
    for name in formats.names():
        fmt = formats.get(name)
        for role, fate in fmt.roles().items():
            if fate != "refused":
                messages = [Message(role, "WITNESS"), Message("user", "b"), Message("assistant", "c")]
                assert "WITNESS" in fmt.text(messages), (name, role)


def test_markers_of_guarded_formats_hold_a_guarded_token(formats: PromptFormats) -> None:
    for name in formats.names():
        fmt = formats.get(name)
        if fmt.guard.tokens:
            marked = fmt.prompt([Message("user", "x")])
            assert any(token in marked for token in fmt.guard), name


def test_a_declaration_with_an_unknown_key_names_the_file() -> None:
    with pytest.raises(Fatal, match=r"mine\.yaml.*\n.*"):
        read_declaration("name: mine\ncolour: red", where="mine.yaml")


def test_a_model_without_a_template_is_refused_with_the_likeliest_names(
    smollm2_dir: Path, tmp_path: Path, formats: PromptFormats
) -> None:
    shutil.copy(smollm2_dir / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    with pytest.raises(Invalid, match=r"no chat template.*likeliest for its tokens: chatml"):
        formats.with_base(tmp_path)


def test_base_renders_with_the_models_own_template(with_base: PromptFormats) -> None:
    base = with_base.get("base")
    prompt = base.prompt([Message("user", "Hi"), Message("context", "Rain fell.")])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi\n\nRain fell.<|im_end|>\n<|im_start|>assistant\n")


def test_base_refuses_what_its_template_cannot_continue(with_base: PromptFormats) -> None:
    with pytest.raises(Invalid, match=r"messages\[0\]"):
        with_base.get("base").check([Message("assistant", "Hello")])


def test_the_table_in_the_docs_is_fresh(repository: Path, formats: PromptFormats) -> None:
    assert format_table(formats) in (repository / "docs" / "prompts.md").read_text(encoding="utf-8")
