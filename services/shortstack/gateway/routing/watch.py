"""Keeps the routes as serving tells them: ``ServingService.WatchModels``, a snapshot and then each change.

While serving is away, the routes last known stay. A new stream replaces them only once it is whole (``synced``),
so that a restart of serving never makes a model vanish for a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import grpc
import grpc.aio
import structlog

from shortstack.gateway.routing.table import Alias, ModelPhase, RouteTable, ServedModel
from shortstack.messages.v1 import serving_pb2 as messages
from shortstack.serving.v1 import serving_pb2, serving_pb2_grpc

__all__ = ["RouteWatch", "alias_of", "model_of"]

_BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0)
_PHASES: Final[Mapping[int, ModelPhase]] = {
    messages.MODEL_STATE_LOADING: ModelPhase.LOADING,
    messages.MODEL_STATE_PROVING: ModelPhase.PROVING,
    messages.MODEL_STATE_SERVED: ModelPhase.SERVED,
    messages.MODEL_STATE_REFUSED: ModelPhase.REFUSED,
    messages.MODEL_STATE_WITHDRAWN: ModelPhase.WITHDRAWN,
}


def model_of(snapshot: messages.ModelSnapshot) -> ServedModel:
    """The wire's model as the gateway's."""
    endpoint = snapshot.endpoint
    return ServedModel(
        name=snapshot.name,
        owner=snapshot.owner,
        phase=_PHASES.get(snapshot.state, ModelPhase.LOADING),
        message=" ".join(part for part in (snapshot.message, snapshot.remedy) if part),
        progress=min(1.0, max(0.0, snapshot.progress)),
        created=snapshot.created_at.seconds,
        url=endpoint.url,
        adapter_id=endpoint.adapter_id,
        prompt_format=endpoint.prompt_format,
        tokenizer=endpoint.tokenizer,
        tokenizer_config=endpoint.tokenizer_config,
        max_input_tokens=endpoint.max_input_tokens,
        max_total_tokens=endpoint.max_total_tokens,
        stop=tuple(endpoint.stop),
    )


def alias_of(snapshot: messages.AliasSnapshot) -> Alias:
    """The wire's alias as the gateway's."""
    weights = tuple((one.model, one.weight) for one in snapshot.weights if one.weight)
    return Alias(snapshot.alias, snapshot.owner, weights, snapshot.updated_at.seconds)


class RouteWatch:
    """Follows serving until cancelled.

    Args:
        channel: to serving; gRPC reconnects it.
        fallbacks: the operator's other names of base models.
        changed: told of each new table.
        log: for what goes wrong.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        fallbacks: Mapping[str, str],
        changed: Callable[[RouteTable], None],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._stub = serving_pb2_grpc.ServingServiceStub(channel)
        self._changed = changed
        self._log = log
        self._fallbacks = dict(fallbacks)
        self.table = RouteTable(fallbacks=self._fallbacks)

    async def run(self) -> None:
        """Watches, and watches again whenever the stream ends; never returns."""
        failures = 0
        while True:
            try:
                await self._follow()
                failures = 0
            except grpc.aio.AioRpcError as error:
                if failures == 0:
                    self._log.warning("serving is away; the routes last known stay", code=error.code().name)
                failures = 0 if error.code() is grpc.StatusCode.OK else failures + 1
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])

    async def _follow(self) -> None:
        building = RouteTable(fallbacks=self._fallbacks)
        async for response in self._stub.WatchModels(serving_pb2.WatchModelsRequest(), wait_for_ready=True):
            building = _with(building, response)
            if building.synced:
                self.table = building
                self._changed(building)


def _with(table: RouteTable, response: serving_pb2.WatchModelsResponse) -> RouteTable:
    kind = response.WhichOneof("update")
    if kind == "model":
        model = model_of(response.model)
        return replace(table, models={**table.models, model.name: model})
    if kind == "alias":
        alias = alias_of(response.alias)
        aliases = {name: one for name, one in table.aliases.items() if name != alias.name}
        return replace(table, aliases=aliases | ({alias.name: alias} if alias.weights else {}))
    return replace(table, synced=True)
