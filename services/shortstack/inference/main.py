"""Inference service: a model folder in, TGI's HTTP API out."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

from pydantic import ValidationError

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import ShortstackError
from shortstack.core.telemetry import Telemetry
from shortstack.inference.app import build_app
from shortstack.inference.composition import build_parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.server import GracefulServer, bind


def run(config: InferenceConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    with ExitStack() as stack:
        stack.enter_context(Telemetry.start("inference", ServiceConfig()))
        listener = stack.enter_context(closing(bind(config.hostname, config.port)))
        parts = build_parts(config)
        parts.engine.start()
        stack.callback(parts.engine.stop)
        grace = config.graceful_termination_timeout
        GracefulServer(build_app(parts), grace, parts.engine.give_up).run([listener])


def main() -> None:
    """Exits 0 after a clean stop, else 1 with the reason on stderr."""
    try:
        run(InferenceConfig())
    except (ShortstackError, ValidationError) as error:
        sys.exit(f"inference: {error}")


if __name__ == "__main__":
    main()
