"""The gateway put together: resources that live in the event loop, and the application over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Engine
from starlette.types import ASGIApp

from shortstack.core.clock import Clock
from shortstack.core.grpc import aio_channel
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.gateway.app import build_app, operations_router
from shortstack.gateway.chat.http import chat_router
from shortstack.gateway.chat.prompter import Prompters, TokenizerCache
from shortstack.gateway.chat.service import ChatService
from shortstack.gateway.chat.upstream import Upstream, UpstreamTimeouts
from shortstack.gateway.config import GatewayConfig
from shortstack.gateway.errors import ApiError
from shortstack.gateway.files.http import files_router
from shortstack.gateway.files.store import FileStore
from shortstack.gateway.fine_tuning.http import jobs_router
from shortstack.gateway.fine_tuning.results import JobResults
from shortstack.gateway.fine_tuning.service import JobService
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.keys.http import keys_router
from shortstack.gateway.keys.store import KeyStore
from shortstack.gateway.middleware import Edge
from shortstack.gateway.routing.http import models_router
from shortstack.gateway.routing.table import ModelPhase, RouteTable
from shortstack.gateway.routing.watch import RouteWatch
from shortstack.gateway.usage import UsageLedger
from shortstack.prompts.formats import PromptFormats
from shortstack.storage.blobs import BlobStore

__all__ = ["Gateway", "Resources"]

_BEAT_S = 1.0
_WARMED = 8


@dataclass(frozen=True, slots=True)
class Resources:
    """What the gateway is built from; opened before the event loop starts."""

    config: GatewayConfig
    engine: Engine
    blobs: BlobStore
    base_models: BaseModels
    telemetry: Telemetry
    health: Health
    clock: Clock


class Gateway:
    """Everything that lives in the event loop. `running` opens it, and gives the application.

    Args:
        resources: what it is built from.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._health = resources.health
        self._moved = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ASGIApp]:
        """The application, with its loops running, until the block ends; then usage is written a last time."""
        given = self._resources
        config, telemetry = given.config, given.telemetry
        self._health.ready("routes", False, f"serving at {config.serving_address} has not told its models yet")
        async with AsyncExitStack() as stack:
            serving = await stack.enter_async_context(aio_channel(config.serving_address))
            training = await stack.enter_async_context(aio_channel(config.training_address))
            ingestion = await stack.enter_async_context(aio_channel(config.ingestion_address))
            upstream = await stack.enter_async_context(Upstream(_timeouts(config)))
            usage = UsageLedger(given.engine, telemetry.metrics, given.clock.now, telemetry.log)
            stack.push_async_callback(usage.flush)
            watch = RouteWatch(serving, config.model_aliases, self._routes_changed, telemetry.log)
            keys = KeyStore(given.engine, given.clock)
            auth = Authenticator(keys, config.key_cache_s, given.clock)
            prompters = Prompters(TokenizerCache(given.blobs, config.folder / "tokenizers"), PromptFormats.builtin())
            files = FileStore(given.engine, given.blobs, config.folder / "uploads", given.clock)
            if abandoned := await asyncio.to_thread(files.clear_abandoned):
                telemetry.log.info("uploads that were never whole are removed", files=abandoned)
            results = JobResults(
                training, serving, files, given.blobs, config.rpc_timeout_s, given.clock, telemetry.log
            )
            jobs = JobService(training, ingestion, files, results, given.base_models, config.rpc_timeout_s)
            chat = ChatService(lambda: watch.table, prompters, upstream, telemetry.metrics)
            loops = {
                "routes": watch.run(),
                "usage": usage.run(config.usage_flush_s),
                "tokenizers": self._warm(watch, prompters),
            }
            tasks = [self._started(name, loop) for name, loop in loops.items()]
            for task in (*tasks, asyncio.create_task(self._beat(tasks))):
                stack.push_async_callback(_end, task)
            routers = [
                chat_router(chat, auth, usage, config.messages_max),
                models_router(lambda: watch.table, auth),
                files_router(files, auth),
                jobs_router(jobs, auth),
                keys_router(keys, auth),
                operations_router(self._health, telemetry.metrics),
            ]
            yield self._edge(routers)

    def _edge(self, routers: list[APIRouter]) -> ASGIApp:
        config, telemetry = self._resources.config, self._resources.telemetry
        return Edge(
            build_app(routers),
            body_max=config.body_max_bytes,
            upload_max=config.upload_max_bytes,
            metrics=telemetry.metrics,
            log=telemetry.log,
        )

    def _routes_changed(self, table: RouteTable) -> None:
        self._health.ready("routes", True)
        self._moved.set()
        for phase in ModelPhase:
            count = sum(1 for model in table.models.values() if model.phase is phase)
            self._resources.telemetry.metrics.routes.labels(str(phase)).set(count)

    async def _warm(self, watch: RouteWatch, prompters: Prompters) -> None:
        """Loads the tokenizers of the newest served models before anyone asks."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            served = [model for model in watch.table.models.values() if model.phase is ModelPhase.SERVED]
            for model in sorted(served, key=lambda one: one.created)[-_WARMED:]:
                try:
                    await prompters.warm(model)
                except ApiError as error:
                    self._resources.telemetry.log.warning("model not warmed", model=model.name, error=error.message)

    def _started(self, name: str, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a loop that ends by being cancelled alone; that it died is said at once."""
        task = asyncio.create_task(loop, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._health.ready(f"{task.get_name()} loop", False, "it has ended; the gateway must be started again")
            self._resources.telemetry.log.error("a loop ended", loop=task.get_name(), exc_info=task.exception())

    async def _beat(self, loops: list[asyncio.Task[None]]) -> None:
        """The event loop turns, and every loop in it lives: that is what alive means here."""
        while not any(loop.done() for loop in loops):
            self._health.progress()
            await asyncio.sleep(_BEAT_S)


def _timeouts(config: GatewayConfig) -> UpstreamTimeouts:
    return UpstreamTimeouts(
        config.upstream_connect_timeout_s, config.upstream_read_timeout_s, config.stream_max_s, config.stream_gather_s
    )


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels a loop; if it had died by itself, its error comes out here instead of vanishing."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
