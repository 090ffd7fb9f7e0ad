"""How an answer is read from a model server: at its pace, in few turns, and once more where nothing was lost."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from benchmarks.stub_tgi import token_events

from shortstack.gateway.chat.upstream import TokenStream, Upstream, UpstreamTimeouts
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


@pytest.mark.parametrize("failure", RESET, ids=lambda failure: type(failure).__name__)
def test_an_idle_connection_that_turns_out_dead_is_tried_once_more(failure: Exception) -> None:
    async def post(*failures: Exception) -> Any:
        async with Upstream(UpstreamTimeouts()) as upstream:
            pool, upstream._session = upstream._session, Session(*failures)  # type: ignore[assignment]
            try:
                return await upstream._post("http://127.0.0.1:9", b"{}")
            finally:
                upstream._session = pool

    assert asyncio.run(post(failure)) == "answered"
    with pytest.raises(ApiError) as caught:
        asyncio.run(post(failure, failure))
    assert caught.value.status == 503
