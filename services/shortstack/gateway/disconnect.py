"""Ends work for a client that is gone."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

__all__ = ["ClientGone", "WhileConnected"]


class ClientGone(Exception):
    """The client closed its connection before the answer was whole."""


class WhileConnected:
    """``async with WhileConnected(receive):`` cancels the block when the client disconnects, and raises `ClientGone`.

    To be used once the request's body has been read. Works as ``asyncio.timeout`` does: the task is cancelled, and
    the cancellation is taken back at the end of the block, if it was ours alone.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._cancelling = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if not self._gone or self._task is None:
            return
        ours_alone = self._task.uncancel() <= self._cancelling
        if ours_alone and kind in (None, asyncio.CancelledError):
            raise ClientGone from error

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self._gone = True
        if self._task is not None:
            self._task.cancel()
