"""``helm test``: a tiny dataset is published, every record of it is accounted for, and it is deleted again."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time

import grpc

from shortstack.assembly.v1 import assembly_pb2 as asm
from shortstack.cli.connection import Connection
from shortstack.ingestion.v1 import ingestion_pb2 as ing
from shortstack.messages.v1 import dataset_pb2 as ds

RECORDS = [{"prompt": f"What is {n} plus {n}?", "completion": f"{n} plus {n} makes {2 * n}."} for n in range(20, 30)]
ENDED = (ds.DATASET_STATE_READY, ds.DATASET_STATE_HELD, ds.DATASET_STATE_FAILED)


def main() -> int:
    """Publishes, waits for the end, compares the counts, deletes; 0 if all came through."""
    connection, name = Connection.open(), f"helm-test-{secrets.token_hex(4)}"
    deadline = time.monotonic() + float(os.environ["TIMEOUT_S"])
    request = json.dumps({"dataset": name, "records": RECORDS}).encode()
    connection.ingestion.PublishDataset(
        ing.PublishDatasetRequest(owner=connection.owner, request_json=request), timeout=60, wait_for_ready=True
    )
    found = wait(connection, name, deadline)
    if found is None:
        print(f"{name} has no end in time", file=sys.stderr)
        return 1
    state = ds.DatasetState.Name(found.state).removeprefix("DATASET_STATE_").lower()
    counts = found.counts
    print(f"{name}: {state}, {counts.items} items, {counts.written} written. {found.message}")
    connection.assembly.DeleteDataset(asm.DeleteDatasetRequest(owner=connection.owner, dataset=name), timeout=60)
    return 0 if found.state == ds.DATASET_STATE_READY and counts.items == len(RECORDS) == counts.written else 1


def wait(connection: Connection, name: str, deadline: float) -> ds.DatasetSnapshot | None:
    """The dataset as it ended; None when the time is over."""
    request = asm.GetReportRequest(owner=connection.owner, dataset=name)
    while time.monotonic() < deadline:
        try:
            found = connection.assembly.GetReport(request, timeout=30, wait_for_ready=True).dataset
        except grpc.RpcError as error:
            print(f"waiting: {error.code().name}: {error.details()}")
        else:
            if found.state in ENDED:
                return found
        time.sleep(1)
    return None


if __name__ == "__main__":
    sys.exit(main())
