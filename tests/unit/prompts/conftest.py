"""The real tokenizer, and every format bound to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import tokenizers

from shortstack.prompts.encoding import PromptEncoder
from shortstack.prompts.formats import PromptFormats


def noon() -> datetime:
    """A fixed time, for formats that hold the date."""
    return datetime(2026, 3, 4, 12, 5, 6, tzinfo=UTC)


@pytest.fixture(scope="session")
def formats() -> PromptFormats:
    return PromptFormats.builtin(clock=noon)


@pytest.fixture(scope="session")
def with_base(smollm2_dir: Path, formats: PromptFormats) -> PromptFormats:
    return formats.with_base(smollm2_dir)


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))


@pytest.fixture(scope="session")
def encoders(with_base: PromptFormats, tokenizer: tokenizers.Tokenizer) -> dict[str, PromptEncoder]:
    eos, bos = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|im_start|>")
    return {name: PromptEncoder(with_base.get(name), tokenizer, eos_id=eos, bos_id=bos) for name in with_base.names()}
