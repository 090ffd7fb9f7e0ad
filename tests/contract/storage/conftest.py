"""A real S3 server for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.s3 import S3Server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session; each test makes a bucket of its own."""
    with S3Server(tmp_path_factory.mktemp("s3") / "server.log") as server:
        yield server
