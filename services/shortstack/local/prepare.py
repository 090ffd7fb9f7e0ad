"""What the local stack needs beside its packages: the broker's jars and class archive, and the base model.

``python -m shortstack.local.prepare`` brings what is missing; where all is there it takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from shortstack.core.errors import ShortstackError, wire_code
from shortstack.local.base_model import ensure_base_model
from shortstack.local.broker import BrokerConfig, LocalBroker
from shortstack.local.settings import LocalSettings

__all__ = ["prepare"]


def prepare(settings: LocalSettings, say: Callable[[str], None] = lambda _: None) -> None:
    """Brings broker and base model, both at a time: one waits for the network where the other computes.

    Raises:
        Transient, Fatal: as `LocalBroker.prepare` and `ensure_base_model`.
    """
    with ThreadPoolExecutor(1) as beside:
        broker = beside.submit(LocalBroker(BrokerConfig.of(settings)).prepare, say)
        folder = ensure_base_model(settings.root)
        say(f"base model: {folder}")
        broker.result()
        say("broker: prepared")


def _say(line: str) -> None:
    sys.stderr.write(f"• {line}\n")


def main() -> int:
    """Prepares what the environment names; the exit status follows the error's kind."""
    try:
        prepare(LocalSettings(), _say)
    except ShortstackError as error:
        sys.stderr.write(f"{error}\n")
        return wire_code(error).exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
