"""`datasets rejected`: whoever is shown a part is told so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from typer.testing import CliRunner

from shortstack.assembly.v1 import assembly_pb2 as pb
from shortstack.assembly.v1 import assembly_pb2_grpc
from shortstack.cli.main import app

KEPT_OUT = 52


class Assembly(assembly_pb2_grpc.AssemblyServiceServicer):
    """Knows some records that were kept out."""

    def ListRejected(self, request: pb.ListRejectedRequest, context: grpc.ServicerContext) -> pb.ListRejectedResponse:
        records = [pb.RejectedRecord(fate="rejected", place=f"a.jsonl:{n}") for n in range(KEPT_OUT)]
        return pb.ListRejectedResponse(records=records[: request.limit])


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    assembly_pb2_grpc.add_AssemblyServiceServicer_to_server(Assembly(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield {"SHORTSTACK_ASSEMBLY_ADDRESS": f"127.0.0.1:{port}", "COLUMNS": "120"}
    server.stop(0)


@pytest.mark.parametrize(
    ("limit", "shown", "more"), [([], 20, True), (["--limit", "51"], 51, True), (["--limit", "52"], 52, False)]
)
def test_a_table_that_is_cut_says_so(environment: dict[str, str], limit: list[str], shown: int, more: bool) -> None:
    done = CliRunner().invoke(app, ["datasets", "rejected", "faq", *limit], env=environment)
    assert done.exit_code == 0
    assert done.stdout.count("a.jsonl:") == shown
    assert ("there are more" in done.stderr) == more


def test_json_has_all(environment: dict[str, str]) -> None:
    done = CliRunner().invoke(app, ["datasets", "rejected", "faq", "--json"], env=environment)
    assert len(json.loads(done.stdout)) == KEPT_OUT
    assert done.stderr == ""
