"""A process that behaves like a service: /readyz and /livez, a clean end on SIGTERM, and faults on request."""

from __future__ import annotations

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def main() -> None:
    name, port, journal = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if os.environ.get("TOY_FAULT") == "dies":
        sys.exit("the toy found its configuration wanting")
    if os.environ.get("TOY_FAULT") == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: ended(name, journal))
    with journal.open("a") as stream:
        stream.write(f"started {name}\n")
    if os.environ.get("TOY_FAULT") == "mute":
        signal.pause()
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def ended(name: str, journal: Path) -> None:
    with journal.open("a") as stream:
        stream.write(f"ended {name}\n")
    os._exit(0)


if __name__ == "__main__":
    main()
