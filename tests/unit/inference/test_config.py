"""Settings: TGI's environment, and what it says of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from shortstack.inference.config import InferenceConfig


def test_tgis_environment_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL_ID": "/models/m",
        "PORT": "9000",
        "DTYPE": "float32",
        "MAX_TOTAL_TOKENS": "512",
        "LORA_ADAPTERS": "a=/x/a, b=/x/b",
        "USAGE_STATS": "off",
    }.items():
        monkeypatch.setenv(name, value)
    config = InferenceConfig()
    assert (config.model_id, config.port, config.dtype, config.max_total_tokens) == (
        Path("/models/m"),
        9000,
        "float32",
        512,
    )
    assert config.lora_adapters == {"a": Path("/x/a"), "b": Path("/x/b")}
    assert config.max_stop_sequences == 16


def test_an_adapter_without_a_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ID", "/models/m")
    monkeypatch.setenv("LORA_ADAPTERS", "good=/x,bare")
    with pytest.raises(ValidationError, match="'bare' names no folder"):
        InferenceConfig()


def test_limits_that_leave_no_token_are_refused() -> None:
    with pytest.raises(ValidationError, match="MAX_INPUT_TOKENS"):
        InferenceConfig(model_id=Path("/m"), max_input_tokens=10, max_total_tokens=10)
