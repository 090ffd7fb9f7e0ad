"""An error keeps its kind from the servicer to the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from shortstack.core.clock import FakeClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import (
    Conflict,
    Fatal,
    Forbidden,
    Invalid,
    NotFound,
    Poison,
    ShortstackError,
    Transient,
)
from shortstack.core.grpc import GrpcServer, aio_channel, channel, error_from_rpc
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.ingestion.v1 import ingestion_pb2 as pb
from shortstack.ingestion.v1 import ingestion_pb2_grpc as stubs

SERVICE = "shortstack.ingestion.v1.IngestionService"
KINDS: dict[str, type[ShortstackError]] = {
    kind.__name__: kind for kind in (Invalid, NotFound, Conflict, Forbidden, Poison, Transient, Fatal)
}


BUGS: dict[str, type[Exception]] = {"bug": ZeroDivisionError, "unfinished": NotImplementedError}


class Servicer(stubs.IngestionServiceServicer):
    def GetDataset(self, request: pb.GetDatasetRequest, context: grpc.ServicerContext) -> pb.GetDatasetResponse:
        if request.dataset in BUGS:
            raise BUGS[request.dataset]("secret inside")
        raise KINDS[request.dataset]("größer “x”", where="tickets.jsonl line 3", remedy="Mend it.", param="dataset")

    def WatchDataset(
        self, request: pb.WatchDatasetRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchDatasetResponse]:
        yield pb.WatchDatasetResponse()
        raise NotFound("it went away")


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with Telemetry.start("test", ServiceConfig()) as started:
        yield started


@pytest.fixture
def health() -> Health:
    return Health(10, FakeClock())


@pytest.fixture
def server(telemetry: Telemetry, health: Health) -> Iterator[GrpcServer]:
    servicers = [(stubs.add_IngestionServiceServicer_to_server, Servicer())]
    made = GrpcServer("127.0.0.1", 0, servicers, health, [SERVICE], telemetry)
    made.start()
    yield made
    made.stop(5)


@pytest.fixture
def calls(server: GrpcServer) -> Iterator[grpc.Channel]:
    with closing(channel(f"127.0.0.1:{server.port}")) as made:
        yield made


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_caller_gets_the_error_that_was_raised(calls: grpc.Channel, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stubs.IngestionServiceStub(calls).GetDataset(pb.GetDatasetRequest(dataset=kind))
    error = error_from_rpc(raised.value)
    assert type(error) is KINDS[kind]
    assert (error.what, error.where) == ("größer “x”", "tickets.jsonl line 3")
    assert (error.remedy, error.param) == ("Mend it.", "dataset")


def test_so_does_an_asyncio_caller(server: GrpcServer) -> None:
    async def ask() -> ShortstackError:
        async with aio_channel(f"127.0.0.1:{server.port}") as made:
            with pytest.raises(grpc.RpcError) as raised:
                await stubs.IngestionServiceStub(made).GetDataset(pb.GetDatasetRequest(dataset="Conflict"))
            return error_from_rpc(raised.value)

    assert isinstance(asyncio.run(ask()), Conflict)


def test_a_stream_that_fails_says_why_after_what_it_sent(calls: grpc.Channel) -> None:
    stream = stubs.IngestionServiceStub(calls).WatchDataset(pb.WatchDatasetRequest())
    assert next(stream) == pb.WatchDatasetResponse()
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert isinstance(error_from_rpc(raised.value), NotFound)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_shows_no_inside_and_is_no_call_that_is_missing(calls: grpc.Channel, bug: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stubs.IngestionServiceStub(calls).GetDataset(pb.GetDatasetRequest(dataset=bug))
    error = error_from_rpc(raised.value)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert isinstance(error, Fatal)
    assert "secret" not in str(error)


def test_a_call_that_is_not_offered_is_unimplemented(calls: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stubs.IngestionServiceStub(calls).ListDatasets(pb.ListDatasetsRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_server_that_is_away_is_worth_another_try(server: GrpcServer) -> None:
    port = server.port
    server.stop(5)
    with closing(channel(f"127.0.0.1:{port}")) as away, pytest.raises(grpc.RpcError) as raised:
        stubs.IngestionServiceStub(away).GetDataset(pb.GetDatasetRequest(), timeout=5)
    assert isinstance(error_from_rpc(raised.value), Transient)


def test_a_taken_port_is_a_clear_end(server: GrpcServer, telemetry: Telemetry, health: Health) -> None:
    second = GrpcServer("127.0.0.1", server.port, [], health, [], telemetry)
    with pytest.raises(Fatal, match=f"cannot listen on 127.0.0.1:{server.port}.*SHORTSTACK_GRPC_PORT"):
        second.start()
    second.stop(1)


def test_health_and_reflection_are_served(calls: grpc.Channel, health: Health) -> None:
    watch = health_pb2_grpc.HealthStub(calls).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
    answers = (answer.status for answer in watch)
    status = health_pb2.HealthCheckResponse
    assert any(answer == status.SERVING for answer in answers)
    health.ready("kafka", False, "waiting")
    assert any(answer == status.NOT_SERVING for answer in answers)
    assert SERVICE in ProtoReflectionDescriptorDatabase(calls).get_services()
