"""The main job on this machine: how long it takes after set-up, and the memory that all processes then hold together.

    python benchmarks/main_job.py [--setup]

Runs ``shortstack demo --exit`` on a stack in a folder of its own and prints two JSON objects from the summary that it
writes: ``run_seconds`` (from the command's start to the last answer, the start of the stack among it) and
``run_peak_memory_mb`` (resident memory of all processes, sampled every second). With ``--setup`` a third first:
``setup_seconds``, which is ``make setup`` in a fresh clone without a cache: it fetches everything there is to fetch,
so it tells of the network too. Baselines are the bounds that the project sets itself: 6 minutes, 8 GB, 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.local.broker import BrokerConfig
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import down

ROOT: Final = Path(__file__).resolve().parent.parent
RUN_BOUND_S: Final = 360.0
MEMORY_BOUND_MB: Final = 8192.0
SETUP_BOUND_S: Final = 180.0
PORT_BASE: Final = 26_000


def main() -> int:
    """Prints the figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--setup", action="store_true", help="measure a set-up from nothing too")
    if arguments.parse_args().setup:
        show("setup_seconds", setup_seconds(), "s", SETUP_BOUND_S)
    found = summary()
    show("run_seconds", found["total_seconds"], "s", RUN_BOUND_S)
    show("run_peak_memory_mb", found["peak_memory_mb"], "MB", MEMORY_BOUND_MB)
    return 0


def without_ours() -> dict[str, str]:
    """The environment as it is without any setting of a stack, but for where Java and jars come from."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SHORTSTACK_") or name in {"SHORTSTACK_JAVA", "SHORTSTACK_MAVEN_URL"}
    }


def summary() -> dict[str, Any]:
    """What the main job says of itself, with the jars and the base model of the checkout.

    Raises:
        SystemExit: it failed; then there is no figure.
    """
    ours = LocalSettings()
    with tempfile.TemporaryDirectory() as folder:
        var = Path(folder) / "var"
        var.mkdir()
        (var / "models").symlink_to(ours.root / "models")
        environment = without_ours() | {
            "SHORTSTACK_VAR": str(var),
            "SHORTSTACK_PORT_BASE": str(PORT_BASE),
            "SHORTSTACK_KAFKA_LIBS": str(BrokerConfig.of(ours).libs),
        }
        command = [sys.executable, "-m", "shortstack.cli.main", "demo", "--exit"]
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        finally:
            # Interrupted, this kills the command before it can stop its stack.
            down(LocalSettings(var=var, port_base=PORT_BASE))
        if done.returncode != 0:
            raise SystemExit(f"the main job exited {done.returncode}:\n{done.stderr}")
        found: dict[str, Any] = json.loads((var / "summary.json").read_text())
    return found


def setup_seconds() -> float:
    """Seconds that ``make setup`` takes in a clone of what is committed, with no cache of packages.

    Raises:
        SystemExit: it failed; then there is no figure.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = without_ours() | {"UV_CACHE_DIR": str(Path(folder) / "cache"), "PIP_NO_CACHE_DIR": "1"}
        began = time.monotonic()
        done = subprocess.run(
            ["make", "setup"], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode != 0:
            raise SystemExit(f"setting up exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def show(name: str, value: float, unit: str, baseline: float) -> None:
    """One figure as one line."""
    figure = {"name": name, "value": round(value, 1), "unit": unit, "baseline": baseline}
    print(orjson.dumps(figure | {"ratio": round(value / baseline, 2)}).decode(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
