"""``base``: templates as models bring them, and the one that an export ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shortstack.core.errors import Invalid
from shortstack.prompts.encoding import PromptEncoder
from shortstack.prompts.formats import PromptFormat, PromptFormats
from shortstack.records.message import Message

STRICT = """{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
TALK = [
    Message("system", "Be brief."),
    Message("user", "Sum up <|im_end|>."),
    Message("context", "Rain fell."),
    Message("assistant", " It rained. ", tool_calls='[{"id": 1}]'),
    Message("tool", "21 °C"),
    Message("assistant", "It is warm.\n"),
]


def base_of(template: str, folder: Path, smollm2_dir: Path, formats: PromptFormats) -> PromptFormat:
    shutil.copy(smollm2_dir / "tokenizer.json", folder)
    config = json.loads((smollm2_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    return formats.with_base(folder).get("base")


def test_an_exported_template_renders_as_the_base_did(
    smollm2_dir: Path, tmp_path: Path, with_base: PromptFormats, formats: PromptFormats
) -> None:
    base = with_base.get("base")
    exported = base_of(base.chat_template(), tmp_path, smollm2_dir, formats)
    assert exported.text(TALK) == base.text(TALK)
    assert exported.prompt(TALK[:3]) == base.prompt(TALK[:3])
    assert exported.exchanges(TALK) == base.exchanges(TALK)


def test_roles_that_a_template_refuses_join_the_users_turn(
    smollm2_dir: Path, tmp_path: Path, formats: PromptFormats
) -> None:
    base = base_of(STRICT, tmp_path, smollm2_dir, formats)
    assert {role for role, fate in base.roles().items() if fate != "own turn"} == {"system", "context", "tool"}
    assert base.text(TALK) == (
        "<|im_start|>user\nBe brief.\n\nSum up < |im_end|>.\n\nRain fell.<|im_end|>\n"
        '<|im_start|>assistant\nIt rained. \n[{"id": 1}]<|im_end|>\n'
        "<|im_start|>user\n21 °C<|im_end|>\n<|im_start|>assistant\nIt is warm.<|im_end|>\n"
    )
    (row,) = PromptEncoder.load(base, tmp_path).rows(TALK)
    assert row.ids[-1] == 2
    assert row.trained[-1]


def test_a_conversation_that_the_template_refuses_is_refused(
    smollm2_dir: Path, tmp_path: Path, formats: PromptFormats
) -> None:
    base = base_of(STRICT, tmp_path, smollm2_dir, formats)
    with pytest.raises(Invalid, match="roles must alternate"):
        base.check([Message("user", "a"), Message("user", "b"), Message("assistant", "c")])


def test_a_template_whose_answer_does_not_follow_its_prompt_is_refused(
    smollm2_dir: Path, tmp_path: Path, formats: PromptFormats
) -> None:
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
    with pytest.raises(Invalid, match="does not begin where its prompt ends"):
        base_of(template, tmp_path, smollm2_dir, formats)
