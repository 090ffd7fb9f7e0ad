"""How long the broker and the whole stack take until they are ready, and the memory they then hold together.

    python benchmarks/local_stack.py

Prints three JSON objects: ``broker_ready_seconds`` (an empty data folder formatted and started; median of three),
``services_ready_seconds`` (`shortstack up` from nothing running to all ready) and ``stack_memory_mb`` (resident
memory of all processes at rest). Baselines are the bounds that the project sets itself: 6 s, 20 s, 8 GB.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson

from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down, up

BROKER_BOUND_S: Final = 6.0
SERVICES_BOUND_S: Final = 20.0
MEMORY_BOUND_MB: Final = 8192.0
PORT_BASE: Final = 26_000


def main() -> int:
    """Measures in a folder of its own, with the jars and the base model of the checkout."""
    ours = LocalSettings()
    with tempfile.TemporaryDirectory() as folder:
        var = Path(folder) / "var"
        var.mkdir()
        (var / "models").symlink_to(ours.root / "models")
        # The supervisor is a process of its own, so it is told by the environment.
        os.environ |= {
            "SHORTSTACK_VAR": str(var),
            "SHORTSTACK_PORT_BASE": str(PORT_BASE),
            "SHORTSTACK_KAFKA_LIBS": str(BrokerConfig.of(ours).libs),
        }
        settings = LocalSettings()
        show("broker_ready_seconds", statistics.median(broker_seconds(settings, n) for n in range(3)), BROKER_BOUND_S)
        began = time.monotonic()
        try:
            lines = up(settings)
            show("services_ready_seconds", time.monotonic() - began, SERVICES_BOUND_S)
            show("stack_memory_mb", sum(line.rss_mb for line in lines), MEMORY_BOUND_MB)
        finally:
            down(settings)
    return 0


def broker_seconds(settings: LocalSettings, number: int) -> float:
    """Seconds until a broker on new data serves clients."""
    config = BrokerConfig.of(settings)
    broker = LocalBroker(replace(config, folder=config.folder / f"trial-{number}"))
    broker.prepare()
    began = time.monotonic()
    with broker:
        return time.monotonic() - began


def show(name: str, value: float, baseline: float) -> None:
    """One figure as one line."""
    unit = "s" if name.endswith("seconds") else "MB"
    figure = {"name": name, "value": round(value, 2), "unit": unit, "baseline": baseline}
    print(orjson.dumps(figure | {"ratio": round(value / baseline, 2)}).decode(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
