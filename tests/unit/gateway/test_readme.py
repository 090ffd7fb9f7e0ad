"""The README lists every setting as the code has it."""

from __future__ import annotations

from pathlib import Path

from shortstack.core.config import settings_table
from shortstack.gateway.config import GatewayConfig


def test_every_setting_stands_in_the_readme_with_its_default(repository: Path) -> None:
    text = (repository / "services" / "shortstack" / "gateway" / "README.md").read_text()
    listed = [line for line in text.splitlines() if line.startswith("| `SHORTSTACK_")]
    assert listed == [
        f"| `{name}` | `{default}` | {meaning} |" for name, default, meaning in settings_table(GatewayConfig)
    ]
