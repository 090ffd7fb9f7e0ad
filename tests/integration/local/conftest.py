from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from shortstack.local.base_model import BASE_MODEL
from shortstack.local.settings import LocalSettings

CHECKOUT_VAR = Path(__file__).parents[3] / "var"


def free_base() -> int:
    """A port base of which the whole hundred seems free."""
    for _ in range(50):
        base = random.randrange(20_000, 32_000, 100)
        try:
            for offset in (11, 21, 80, 92, 93):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise AssertionError("no hundred free ports found")


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    """A stack of its own that shares the jars of the checkout."""
    libs = Path(os.environ.get("SHORTSTACK_VAR", CHECKOUT_VAR)) / "kafka" / "libs"
    return LocalSettings(
        var=tmp_path / "var",
        port_base=free_base(),
        kafka_bootstrap=None,
        kafka_libs=libs,
        start_deadline_s=60,
        stop_deadline_s=20,
    )


@pytest.fixture
def base_model(settings: LocalSettings) -> None:
    """A base model that is whole as far as a start looks; nothing could be inferred with it."""
    folder = settings.root / "models" / BASE_MODEL
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"files": {}}')
