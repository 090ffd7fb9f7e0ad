"""How long the broker and the whole stack take until they are ready, and the memory they then hold together.

    python benchmarks/local_stack.py

Prints four JSON objects: ``broker_ready_seconds`` (an empty data folder formatted and started; median of three),
``services_ready_seconds`` (`shortstack up` from nothing running to all ready), ``stack_memory_mb`` (resident memory
of all processes at rest) and ``idle_processor_percent`` (of one core, by all processes with nothing to do). Baselines
are the bounds that the project sets itself: 6 s, 20 s, 8 GB, a quarter of a core.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson
import psutil

from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down, up

BROKER_BOUND_S: Final = 6.0
SERVICES_BOUND_S: Final = 20.0
MEMORY_BOUND_MB: Final = 8192.0
IDLE_BOUND_PERCENT: Final = 25.0
SETTLES_S: Final = 15.0
IDLE_S: Final = 30.0
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
            time.sleep(SETTLES_S)
            pids = [line.pid for line in lines if line.pid is not None]
            show("idle_processor_percent", processor_percent(pids, IDLE_S), IDLE_BOUND_PERCENT)
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


def processor_percent(pids: Sequence[int], seconds: float) -> float:
    """Processor time that processes and their children take within ``seconds``, as a percentage of one core."""
    parents = [psutil.Process(pid) for pid in pids]
    processes = {*parents, *(child for parent in parents for child in parent.children(recursive=True))}

    def taken() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = taken()
    time.sleep(seconds)
    return 100 * (taken() - before) / seconds


def show(name: str, value: float, baseline: float) -> None:
    """One figure as one line."""
    unit = {"seconds": "s", "mb": "MB", "percent": "%"}[name.rpartition("_")[2]]
    figure = {"name": name, "value": round(value, 2), "unit": unit, "baseline": baseline}
    print(orjson.dumps(figure | {"ratio": round(value / baseline, 2)}).decode(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
