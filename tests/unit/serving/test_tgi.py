"""The calls of the wire that serving makes, against answers as TGI gives them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest

from shortstack.core.errors import Poison, Transient
from shortstack.serving.tgi import Failed, TgiClient

Answer = Callable[[str], tuple[int, Any]]


@contextmanager
def answering(answer: Answer) -> Iterator[TgiClient]:
    """A client of a server that answers a path so."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = answer(self.path)
            content = b"" if body is None else orjson.dumps(body)
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _any

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with closing(TgiClient(f"http://127.0.0.1:{server.server_port}", 10)) as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


def test_a_log_probability_that_is_no_number_arrives_as_null() -> None:
    tokens = [{"id": 7, "logprob": -0.5}, {"id": 0, "logprob": None}]
    with answering(lambda path: (200, {"details": {"tokens": tokens}})) as client:
        first, second = client.generate("hello", 2, "")
    assert (first.id, first.logprob) == (7, -0.5)
    assert math.isnan(second.logprob)


def test_a_server_that_has_loaded_its_model_may_be_unhealthy() -> None:
    def answer(path: str) -> tuple[int, Any]:
        return (200, {"model_id": "/weights/1"}) if path == "/info" else (503, {"error": "unhealthy"})

    with answering(answer) as client:
        assert client.answers()
        assert not client.healthy()
    with closing(TgiClient("http://127.0.0.1:9", 1)) as client:
        assert not client.answers()


KINDS = {429: Transient, 503: Transient, 422: Poison, 404: Poison, 424: Failed, 500: Failed, 502: Failed}


@pytest.mark.parametrize(("code", "kind"), KINDS.items())
def test_what_a_server_refuses_is_told_from_what_it_fails_and_is_too_busy_for(code: int, kind: type[Exception]) -> None:
    with answering(lambda path: (code, {"error": "in its words", "error_type": "x"})) as client:
        with pytest.raises(kind) as raised:
            client.tokenize("hello")
        assert type(raised.value) is kind


def test_a_busy_server_gets_20_s_to_say_that_it_is_healthy_and_one_that_is_gone_2_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # TGI's /health waits for the batch under way: 5.7 s were seen while it decoded, 20 s while it was frozen.
    seen: list[dict[str, float]] = []

    def handle(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    with closing(TgiClient("http://127.0.0.1:9", 300)) as client:
        assert client.healthy()
    assert seen[0]["read"] > 20
    assert seen[0]["connect"] == 2
