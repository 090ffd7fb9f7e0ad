"""Every service's README lists its settings as the code has them; the model server's are TGI's, without a prefix."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from shortstack.core.config import settings_table

SERVICES = {
    "ingestion": "IngestionConfig",
    "formatting": "FormattingConfig",
    "assembly": "AssemblyConfig",
    "training": "TrainingConfig",
    "serving": "ServingConfig",
    "gateway": "GatewayConfig",
    "inference": "InferenceConfig",
}
PREFIXES = {"inference": ""}


@pytest.mark.parametrize("service", SERVICES)
def test_the_readme_lists_every_setting_as_it_is(service: str, repository: Path) -> None:
    readme = (repository / "services" / "shortstack" / service / "README.md").read_text(encoding="utf-8")
    config = getattr(importlib.import_module(f"shortstack.{service}.config"), SERVICES[service])
    settings = settings_table(config, PREFIXES.get(service, "SHORTSTACK_"))
    rows = [f"| `{name}` | `{default}` | {meaning} |" for name, default, meaning in settings]

    assert [row for row in rows if row not in readme] == []
    assert re.findall(r"^\| `([A-Z_]+)` \|", readme, re.MULTILINE) == [name for name, _, _ in settings]
