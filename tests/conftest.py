"""Fixtures for every test: paths of the repository, of reference material beside it, and of the base model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference material beside the repository; a test that needs it is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the reference material in {path}, which is not here")
    return path


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: ``SHORTSTACK_BASE_MODEL``, else where the set-up puts it."""
    path = Path(os.environ.get("SHORTSTACK_BASE_MODEL") or ROOT / "var" / "models" / "smollm2-135m-instruct")
    if not (path / "tokenizer.json").exists():
        pytest.skip(f"needs the base model in {path}: `make run` or `make test` converts it")
    return path
