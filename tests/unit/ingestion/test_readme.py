"""The README of ingestion lists every setting as the code has it."""

from __future__ import annotations

from pathlib import Path

from shortstack.core.config import settings_table
from shortstack.ingestion.config import IngestionConfig


def test_the_readme_lists_every_setting_as_it_is(repository: Path) -> None:
    readme = (repository / "services" / "shortstack" / "ingestion" / "README.md").read_text(encoding="utf-8")
    missing = [
        row for row in settings_table(IngestionConfig) if f"| `{row[0]}` | `{row[1]}` | {row[2]} |" not in readme
    ]
    assert not missing
    assert readme.count("| `SHORTSTACK_") == len(settings_table(IngestionConfig))
