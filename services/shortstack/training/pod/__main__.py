"""``python -m shortstack.training.pod prepare | train | agent``: the containers of an attempt's pod."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from shortstack.core.errors import ShortstackError, wire_code

__all__ = ["main"]


def _prepare() -> int:
    from shortstack.training.pod.prepare import run

    return run()


def _train() -> int:
    # Imported apart: this container is told nothing of Kafka or the object store, and needs no client of theirs.
    from shortstack.training.pod.train import run

    return run()


def _agent() -> int:
    from shortstack.training.pod.agent import run

    return run()


_CONTAINERS: Final[Mapping[str, Callable[[], int]]] = {"prepare": _prepare, "train": _train, "agent": _agent}


def main(arguments: Sequence[str]) -> int:
    """Does a container's work; its exit status. The last line on stderr says why it is not 0."""
    if len(arguments) != 1 or arguments[0] not in _CONTAINERS:
        sys.stderr.write(f"usage: python -m shortstack.training.pod {' | '.join(_CONTAINERS)}\n")
        return 64
    try:
        return _CONTAINERS[arguments[0]]()
    except ShortstackError as error:
        sys.stderr.write(f"error: {error}\n")
        return wire_code(error).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
