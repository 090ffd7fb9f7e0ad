"""ServingService: models and aliases, watched by the gateway, set by operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import grpc
import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, NotFound, Transient
from shortstack.core.identity import DEFAULT_OWNER, begun_by, model_name
from shortstack.declarations.deploy import DeployWish
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.controller import ServingController
from shortstack.serving.known import Known, in_order
from shortstack.serving.v1 import serving_pb2 as pb
from shortstack.serving.v1.serving_pb2_grpc import ServingServiceServicer
from shortstack.streams import topics
from shortstack.streams.broker import Producer
from shortstack.streams.envelope import outbound

__all__ = ["ServingServicer"]

_ACK_S: Final = 10.0
_EFFECT_S: Final = 10.0
_WATCH_S: Final = 5.0
_START_S: Final = 3.0
"""How long a call that comes before the controller's first turn waits for it."""


class ServingServicer(ServingServiceServicer):
    """Reads from the controller; commands go over ``models.requests`` like everybody's.

    Every method raises `Transient` until the controller has made its first turn. To answer before would be to say
    that there are no models, and gateways would forget their routes at every restart of this service.
    """

    def __init__(
        self,
        controller: ServingController,
        producer: Producer,
        clock: Clock,
        *,
        start_s: float = _START_S,
        effect_s: float = _EFFECT_S,
    ) -> None:
        self._controller, self._producer, self._clock = controller, producer, clock
        self._start_s, self._effect_s = start_s, effect_s

    def DeployModel(self, request: pb.DeployModelRequest, context: grpc.ServicerContext) -> pb.DeployModelResponse:
        """Serves the model of a run that succeeded; answers as soon as it is known under its name.

        A run of the owner's may be named by how its id alone begins.
        """
        self._controller.require_turned(self._start_s)
        owner = request.owner or DEFAULT_OWNER
        wish = DeployWish.parse({"suffix": request.suffix or None, "alias": request.alias or None})
        runs = self._controller.runs()
        mine = (known for known, run in runs.items() if run.owner == owner)
        run = runs.get(request.run) or runs.get(begun_by(request.run, mine, param="run") or "")
        if run is None:
            raise NotFound(f'no run "{request.run}"', remedy="See: shortstack runs list", param="run")
        if run.state != tr.RUN_STATE_SUCCEEDED:
            raise Conflict(f'run "{request.run}" has not succeeded', remedy="Wait until it has.", param="run")
        name = model_name(run.base_model, owner, wish.suffix or "model", run.export.digest)
        message = {"kind": "deploy", "owner": owner, "run": run.run, "model": name, "alias": request.alias}
        self._send(name, message)
        self._effective(lambda shown: f"model/{name}" in shown, f'model "{name}"')
        return pb.DeployModelResponse(model=self._known().require(owner, name))

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        """The owner's models and aliases, and the bases."""
        owner = request.owner or DEFAULT_OWNER
        known = self._known()
        return pb.ListModelsResponse(
            models=[m for _, m in sorted(known.models.items()) if m.owner in ("", owner)],
            aliases=[a for _, a in sorted(known.aliases.items()) if a.owner == owner],
        )

    def WatchModels(
        self, request: pb.WatchModelsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchModelsResponse]:
        """Everything as it stands, ``synced``, then each change.

        Aliases whose first model is under way are told as they will be.
        """
        self._controller.require_turned(self._start_s)
        sent: dict[str, sv.ModelRecord] = {}
        synced = False
        while context.is_active():
            watched = self._controller.watched()
            for key, record in in_order(watched).items():
                if sent.get(key) != record:
                    sent[key] = record
                    yield _update(record)
            if not synced:
                synced = True
                yield pb.WatchModelsResponse(synced=True)
            self._controller.wait(lambda _: sent != self._controller.watched(), _WATCH_S)

    def SetTraffic(self, request: pb.SetTrafficRequest, context: grpc.ServicerContext) -> pb.SetTrafficResponse:
        """Moves an alias: weights over served models, 100 in all."""
        owner = request.owner or DEFAULT_OWNER
        self._known().check_weights(owner, request.alias, request.weights)
        weights = [{"model": w.model, "weight": w.weight} for w in request.weights]
        self._send(request.alias, {"kind": "traffic", "owner": owner, "alias": request.alias, "weights": weights})
        key, wanted = f"alias/{request.alias}", list(request.weights)
        self._effective(
            lambda shown: key in shown and list(shown[key].alias.weights) == wanted,
            f'the move of alias "{request.alias}"',
        )
        return pb.SetTrafficResponse(alias=self._controller.shown()[key].alias)

    def WithdrawModel(
        self, request: pb.WithdrawModelRequest, context: grpc.ServicerContext
    ) -> pb.WithdrawModelResponse:
        """Takes a model out of traffic, unless an alias sends traffic to it."""
        owner = request.owner or DEFAULT_OWNER
        known = self._known()
        model = known.require(owner, request.model)
        if not model.owner:
            raise Conflict(f'"{request.model}" is a base model', remedy="Take it out of SHORTSTACK_BASE_MODELS.")
        known.check_unused(model.name)
        self._send(model.name, {"kind": "withdraw", "owner": owner, "model": model.name})
        key = f"model/{model.name}"
        self._effective(lambda shown: shown[key].model.state == sv.MODEL_STATE_WITHDRAWN, "the withdrawal")
        return pb.WithdrawModelResponse(model=self._controller.shown()[key].model)

    def _known(self) -> Known:
        self._controller.require_turned(self._start_s)
        return Known.of(self._controller.shown().values())

    def _effective(self, met: Callable[[Mapping[str, sv.ModelRecord]], bool], what: str) -> None:
        """Waits until a request that was sent shows.

        Raises:
            Transient: it does not in time. It may yet, or was refused for what has changed since it was checked.
        """
        if not self._controller.wait(met, self._effect_s):
            raise Transient(
                f"{what} was asked for and does not show after {self._effect_s:.0f} s",
                remedy="See: shortstack models list. If it is not there, try again.",
            )

    def _send(self, key: str, message: Mapping[str, Any]) -> None:
        type_ = f"shortstack.model.{message['kind']}"
        value = orjson.dumps(message)
        event = outbound(topics.MODELS_REQUESTS, key, value, type=type_, source="serving", clock=self._clock)
        self._producer.send(event).result(_ACK_S)


def _update(record: sv.ModelRecord) -> pb.WatchModelsResponse:
    if record.WhichOneof("record") == "model":
        return pb.WatchModelsResponse(model=record.model)
    return pb.WatchModelsResponse(alias=record.alias)
