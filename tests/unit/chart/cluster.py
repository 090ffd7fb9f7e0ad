"""As much of a cluster as ``lookup`` of a chart asks: an API server with some objects and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = {"persistentvolumeclaims": "PersistentVolumeClaim", "secrets": "Secret"}


FORBIDDEN = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403}
"""Stands for an object that whoever asks may not read."""
_GONE = {**FORBIDDEN, "reason": "NotFound", "code": 404}


def _answers(objects: Mapping[str, Any]) -> dict[str, Any]:
    resources = [{"name": name, "kind": kind, "namespaced": True, "verbs": ["get"]} for name, kind in KINDS.items()]
    return {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": resources},
        **{f"/api/v1/namespaces/here/{path}": found for path, found in objects.items()},
    }


@contextmanager
def api_server(folder: Path, objects: Mapping[str, Any]) -> Iterator[Path]:
    """Serves ``{"persistentvolumeclaims/NAME": {…}}`` of the namespace ``here``; the path of its kubeconfig."""
    answers = _answers(objects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            answer = _GONE if found is None else found
            body = json.dumps(answer).encode()
            self.send_response(answer["code"] if answer.get("kind") == "Status" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = {"name": "it", "context": {"cluster": "it", "user": "it"}}
        url = f"http://127.0.0.1:{server.server_port}"
        config = folder / "kubeconfig"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "it",
                    "contexts": [context],
                    "clusters": [{"name": "it", "cluster": {"server": url}}],
                    "users": [{"name": "it", "user": {}}],
                }
            )
        )
        try:
            yield config
        finally:
            server.shutdown()
