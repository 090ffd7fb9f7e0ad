"""How an answer is read from a model server: at its pace, in few turns, and once more where nothing was lost."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from benchmarks.stub_tgi import token_events

from shortstack.gateway.chat.upstream import TokenStream, Upstream, UpstreamTimeouts, _status_error
from shortstack.gateway.errors import ApiError


class Content:
    """The body of a reply, of which one more event is there every ``every_s``."""

    def __init__(self, events: list[bytes], every_s: float) -> None:
        self._events = events
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._taken = 0
        self.reads = 0

    async def readany(self) -> bytes:
        self.reads += 1
        await asyncio.sleep(max(0.0, self._began + self._taken * self._every_s - self._loop.time()))
        there = min(len(self._events), 1 + int((self._loop.time() - self._began) / self._every_s))
        data = b"".join(self._events[self._taken : there])
        self._taken = there
        return data

    def is_eof(self) -> bool:
        return True


class Answering:
    """A reply that is being received."""

    def __init__(self, content: Content) -> None:
        self.content = content

    def close(self) -> None:
        """Nothing to close."""


def test_fast_tokens_come_together_and_none_is_lost() -> None:
    texts = [f" w{index}" for index in range(80)]

    async def read() -> tuple[list[str], int, float]:
        loop = asyncio.get_running_loop()
        content = Content(token_events(texts), every_s=0.001)
        stream = TokenStream(Answering(content), UpstreamTimeouts(gather_s=0.02))  # type: ignore[arg-type]
        began = loop.time()
        await stream.open()
        got = [token.text async for batch in stream.batches() for token in batch]
        took = loop.time() - began
        stream.finish()
        return got, content.reads, took

    got, reads, took = asyncio.run(read())
    assert got == texts
    assert reads <= took / 0.02 + 2


class Session:
    """Posts that fail in turn; then one that is answered."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def post(self, *_: Any, **__: Any) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "answered"


RESET = (
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientOSError(104, "Connection reset by peer"),
    ConnectionResetError(),
)


async def post(*failures: Exception) -> Any:
    async with Upstream(UpstreamTimeouts()) as upstream:
        pool, upstream._session = upstream._session, Session(*failures)  # type: ignore[assignment]
        try:
            return await upstream._post("http://127.0.0.1:9", b"{}")
        finally:
            upstream._session = pool


@pytest.mark.parametrize("failure", RESET, ids=lambda failure: type(failure).__name__)
def test_an_idle_connection_that_turns_out_dead_is_tried_once_more(failure: Exception) -> None:
    assert asyncio.run(post(failure)) == "answered"
    with pytest.raises(ApiError) as caught:
        asyncio.run(post(failure, failure))
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("failure", "status", "code", "again"),
    [
        (aiohttp.ConnectionTimeoutError(), 503, "upstream_unavailable", True),
        (aiohttp.SocketTimeoutError(), 504, "upstream_timeout", False),
    ],
)
def test_a_server_that_cannot_be_reached_is_not_one_that_fell_silent(
    failure: Exception, status: int, code: str, again: bool
) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(post(failure))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert ("retry-after" in caught.value.headers()) == again


def test_connecting_to_an_address_that_does_not_answer_ends_in_503() -> None:
    async def generate(url: str) -> None:
        async with Upstream(UpstreamTimeouts(connect_s=0.2)) as upstream:
            await upstream.generate(url, "x", {})

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        # The kernel completes two connections that nobody accepts, and lets the rest wait.
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            with pytest.raises(ApiError) as caught:
                asyncio.run(generate(f"http://127.0.0.1:{address[1]}"))
        finally:
            for one in waiting:
                one.close()
    assert (caught.value.status, caught.value.code) == (503, "upstream_unavailable")


class Refusal:
    """A reply of status 500 whose body fails."""

    status = 500

    def __init__(self, error: Exception) -> None:
        self.content = self
        self._error = error

    async def read(self, _: int) -> bytes:
        raise self._error

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("error", "code"),
    [(aiohttp.SocketTimeoutError(), "upstream_timeout"), (aiohttp.ClientPayloadError(), "upstream_broken")],
)
def test_a_refusal_that_breaks_off_is_the_model_servers_fault(error: Exception, code: str) -> None:
    assert asyncio.run(_status_error(Refusal(error))).code == code  # type: ignore[arg-type]
