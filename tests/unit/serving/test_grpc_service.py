"""ServingService over a real server and channel, the controller on an in-memory broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc
import pytest
import structlog
from tests.polling import until
from tests.unit.serving.world import BASE, REFUSED, Running, World

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Conflict, Invalid, NotFound, ShortstackError, Transient
from shortstack.core.grpc import GrpcServer, aio_channel, channel, error_from_rpc
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.gateway.errors import ApiError
from shortstack.gateway.routing.table import RouteTable
from shortstack.gateway.routing.watch import RouteWatch
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.config import ServingConfig
from shortstack.serving.contract import Proof
from shortstack.serving.grpc_service import ServingServicer
from shortstack.serving.rollout import NotReady
from shortstack.serving.v1 import serving_pb2 as pb
from shortstack.serving.v1.serving_pb2_grpc import ServingServiceStub, add_ServingServiceServicer_to_server

SERVED = sv.MODEL_STATE_SERVED


@contextmanager
def turning(running: Running) -> Iterator[None]:
    """Turns the controller in a thread, as its loop does."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            running.turn()
            stop.wait(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    with world.started() as started:
        yield started


@contextmanager
def listening(world: World, running: Running, port: int = 0) -> Iterator[int]:
    """The service's gRPC server, whether its controller is open or not; its port."""
    with ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry.start("serving", ServingConfig(storage_url="memory://")))
        servicer = ServingServicer(running.controller, world.broker.producer(), world.clock, start_s=0.05)
        add = (add_ServingServiceServicer_to_server, servicer)
        health = Health(60, SystemClock())
        server = GrpcServer("127.0.0.1", port, [add], health, ["shortstack.serving.v1.ServingService"], telemetry)
        server.start()
        stack.callback(server.stop, 2.0)
        yield server.port


@pytest.fixture
def stub(world: World, running: Running) -> Iterator[Any]:
    with ExitStack() as stack:
        running.turn()
        port = stack.enter_context(listening(world, running))
        stack.enter_context(turning(running))
        yield ServingServiceStub(stack.enter_context(channel(f"127.0.0.1:{port}")))


def refused(call: Callable[[], Any]) -> ShortstackError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def watch_until(stub: Any, met: Callable[[pb.WatchModelsResponse], bool]) -> list[pb.WatchModelsResponse]:
    updates = stub.WatchModels(pb.WatchModelsRequest(), timeout=20)
    found = []
    for update in updates:
        found.append(update)
        if met(update):
            break
    updates.cancel()
    return found


def served(name: str) -> Callable[[pb.WatchModelsResponse], bool]:
    return lambda update: update.model.name == name and update.model.state == SERVED


CALLS: dict[str, Callable[[Any], Any]] = {
    "watch": lambda stub: list(stub.WatchModels(pb.WatchModelsRequest(), timeout=20)),
    "list": lambda stub: stub.ListModels(pb.ListModelsRequest(), timeout=20),
    "deploy": lambda stub: stub.DeployModel(pb.DeployModelRequest(run="run-a"), timeout=20),
    "withdraw": lambda stub: stub.WithdrawModel(pb.WithdrawModelRequest(model=BASE), timeout=20),
    "traffic": lambda stub: stub.SetTraffic(
        pb.SetTrafficRequest(alias="faq@prod", weights=[sv.Weight(model=BASE, weight=100)]), timeout=20
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_is_answered_before_the_first_turn(world: World, call: Callable[[Any], Any]) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(world.started(opened=False))
        port = stack.enter_context(listening(world, running))
        to = ServingServiceStub(stack.enter_context(channel(f"127.0.0.1:{port}")))
        error = refused(lambda: call(to))
    assert isinstance(error, Transient)
    assert "has not read its topics" in error.what


@contextmanager
def watching(port: int, changed: Callable[[RouteTable], None]) -> Iterator[None]:
    """The gateway's watch of the routes, in a thread of its own."""
    loop, begun = asyncio.new_event_loop(), threading.Event()

    async def follow() -> None:
        async with aio_channel(f"127.0.0.1:{port}") as to:
            following = asyncio.ensure_future(RouteWatch(to, {}, changed, structlog.get_logger()).run())
            tasks.append(following)
            begun.set()
            with suppress(asyncio.CancelledError):
                await following

    tasks: list[asyncio.Future[None]] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(follow(),))
    thread.start()
    begun.wait(20)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join()
        loop.close()


def test_routes_stay_while_serving_is_started_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[RouteTable] = []
    asked: list[float] = []
    with ExitStack() as stack:
        with world.started() as running:
            running.settle(BASE, SERVED)
            with listening(world, running) as port:
                stack.enter_context(watching(port, tables.append))
                until(lambda: tables, "the routes are known")
        with world.started(opened=False) as again, listening(world, again, port):
            require = again.controller.require_turned

            def counted(timeout_s: float, require: Callable[[float], None] = require) -> None:
                asked.append(timeout_s)
                require(timeout_s)

            monkeypatch.setattr(again.controller, "require_turned", counted)
            until(lambda: len(asked) > 1, "the service was asked before it was open, and again")
            assert all(table.resolve(BASE, "default", "").name == BASE for table in tables)
            known = len(tables)
            again.controller.open()
            again.turn()
            until(lambda: len(tables) > known, "the routes are told anew")
    assert all(table.resolve(BASE, "default", "").name == BASE for table in tables)


def test_watching_gives_what_stands_then_synced_then_each_change(world: World, stub: Any) -> None:
    watch_until(stub, served(BASE))
    updates = stub.WatchModels(pb.WatchModelsRequest(), timeout=20)
    first = next(updates)
    assert (first.model.name, first.model.state) == (BASE, SERVED)
    assert next(updates).synced

    model = world.trained("ftjob-1", "a", alias="faq@prod")
    seen = []
    for update in updates:
        seen.append(update)
        if update.HasField("alias") and seen[-2].model.state == SERVED:
            break
    updates.cancel()
    assert seen[-2].model.name == model
    assert seen[-2].model.state == SERVED
    assert [w.model for w in seen[-1].alias.weights] == [model]


def refusal(tables: list[RouteTable], name: str) -> ApiError | None:
    """What a gateway with the newest routes says to a chat with ``name``; None where it is answered."""
    try:
        tables[-1].resolve(name, "default", "")
    except ApiError as error:
        return error
    return None


def test_an_alias_whose_first_model_is_under_way_says_how_far_it_is(world: World, running: Running) -> None:
    world.rollout.outcomes["a" * 64] = NotReady("its pod fetches the weights")
    world.rollout.parts = [0.1, 0.2]
    tables: list[RouteTable] = []
    with ExitStack() as stack:
        port = stack.enter_context(listening(world, running))
        stack.enter_context(turning(running))
        stack.enter_context(watching(port, tables.append))
        stub = ServingServiceStub(stack.enter_context(channel(f"127.0.0.1:{port}")))
        model = world.trained("ftjob-1", "a", alias="faq@prod")
        until(lambda: tables and "faq@prod" in tables[-1].aliases, "the alias is told")
        until(lambda: (found := refusal(tables, "faq@prod")) and found.extra.get("progress") == 0.2, "its progress")
        error = refusal(tables, "faq@prod")
        assert error is not None
        assert (error.status, error.code, error.retry_after_s) == (503, "model_loading", 5)
        assert model in error.message
        assert "faq@prod" not in tables[-1].names("default")
        assert not stub.ListModels(pb.ListModelsRequest()).aliases

        world.rollout.outcomes["a" * 64] = Proof(REFUSED, REFUSED)
        world.clock.advance(10)
        until(lambda: "faq@prod" not in tables[-1].aliases, "the alias is gone with its model")
        world.trained("ftjob-2", "b", alias="faq@prod")
        until(lambda: refusal(tables, "faq@prod") is None, "another model has the alias")
    assert [key for key, _ in world.states()].count("alias/faq@prod") == 1


def test_models_and_aliases_are_listed_by_owner(world: World, stub: Any) -> None:
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    until(lambda: stub.ListModels(pb.ListModelsRequest()).aliases, "the alias has moved")
    mine, theirs = stub.ListModels(pb.ListModelsRequest()), stub.ListModels(pb.ListModelsRequest(owner="other"))
    assert [m.name for m in mine.models] == sorted([BASE, model])
    assert [a.alias for a in mine.aliases] == ["faq@prod"]
    assert [m.name for m in theirs.models] == [BASE]
    assert not theirs.aliases


def test_traffic_moves_over_served_models_only(world: World, stub: Any) -> None:
    model = world.trained("ftjob-1", "a", alias="faq@prod")
    until(lambda: stub.ListModels(pb.ListModelsRequest()).aliases, "the alias has moved")

    def move(*weights: tuple[str, int], alias: str = "faq@prod") -> Any:
        given = [sv.Weight(model=m, weight=w) for m, w in weights]
        return stub.SetTraffic(pb.SetTrafficRequest(alias=alias, weights=given), timeout=20)

    moved = move((model, 90), (BASE, 10))
    assert [(w.model, w.weight) for w in moved.alias.weights] == [(model, 90), (BASE, 10)]
    assert isinstance(refused(lambda: move((model, 90))), Invalid)
    assert isinstance(refused(lambda: move((model, 100), alias="Not A Name")), Invalid)
    unknown = refused(lambda: move((model[:-1], 100)))
    assert isinstance(unknown, NotFound)
    assert f'Did you mean "{model}"' in unknown.remedy


def test_a_model_is_withdrawn_once_no_alias_needs_it(world: World, stub: Any) -> None:
    model = world.trained("ftjob-1", "a", alias="faq@prod", state=tr.JOB_STATE_SUCCEEDED)
    until(lambda: stub.ListModels(pb.ListModelsRequest()).aliases, "the alias has moved")
    needed = refused(lambda: stub.WithdrawModel(pb.WithdrawModelRequest(model=model)))
    assert isinstance(needed, Conflict)
    assert "faq@prod" in needed.what
    assert isinstance(refused(lambda: stub.WithdrawModel(pb.WithdrawModelRequest(model=BASE))), Conflict)

    weights = [sv.Weight(model=BASE, weight=100)]
    stub.SetTraffic(pb.SetTrafficRequest(alias="faq@prod", weights=weights), timeout=20)
    gone = stub.WithdrawModel(pb.WithdrawModelRequest(model=model), timeout=20)
    assert gone.model.state == sv.MODEL_STATE_WITHDRAWN


def test_a_run_may_be_named_by_how_its_id_begins_and_only_by_its_owner(world: World, stub: Any) -> None:
    world.trained("ftjob-1", "abcdef", state=tr.JOB_STATE_CANCELLED)
    watch_until(stub, served(BASE))
    answer = stub.DeployModel(pb.DeployModelRequest(run="run-abcd", suffix="hand"), timeout=20)
    assert answer.model.name == f"ft:{BASE}:default:hand:{'abcdef' * 2}"
    theirs = refused(lambda: stub.DeployModel(pb.DeployModelRequest(run="run-abcd", owner="eve")))
    assert isinstance(theirs, NotFound)


@pytest.mark.parametrize(("wrong", "named"), [({"suffix": "x/y"}, "suffix"), ({"alias": "Prod"}, "alias")])
def test_a_name_that_no_model_or_alias_may_have_is_refused(
    world: World, stub: Any, wrong: dict[str, str], named: str
) -> None:
    world.trained("ftjob-1", "a", state=tr.JOB_STATE_CANCELLED)
    watch_until(stub, served(BASE))
    error = refused(lambda: stub.DeployModel(pb.DeployModelRequest(run="run-a", **wrong), timeout=20))
    assert isinstance(error, Invalid)
    assert error.param == f"deploy.{named}"


def test_a_run_is_deployed_by_hand(world: World, stub: Any) -> None:
    world.trained("ftjob-1", "a", state=tr.JOB_STATE_CANCELLED)
    watch_until(stub, served(BASE))
    answer = stub.DeployModel(pb.DeployModelRequest(run="run-a", suffix="hand", alias="faq@prod"), timeout=20)
    name = f"ft:{BASE}:default:hand:{'a' * 12}"
    assert answer.model.name == name
    until(lambda: stub.ListModels(pb.ListModelsRequest()).aliases, "the alias has moved")
    assert isinstance(refused(lambda: stub.DeployModel(pb.DeployModelRequest(run="run-x"))), NotFound)
