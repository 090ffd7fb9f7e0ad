"""Fixtures for every test: paths of the repository, of reference material beside it, and of the base model."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from shortstack.local.broker import BrokerConfig, LocalBroker

ROOT = Path(__file__).resolve().parent.parent
# A machine that is busy otherwise is no fault of a law's.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
_LONGEST_FIRST = ("e2e", "integration/training", "integration", "contract", "unit")
_ONE_STACK = ("e2e/faults", "e2e")


def _inside(file: Path, folders: tuple[str, ...]) -> str | None:
    """The first of ``folders``, below this one, that a file is in."""
    here = Path(__file__).parent
    return next((folder for folder in folders if file.is_relative_to(here / folder)), None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first, so that no worker is left alone with them."""
    items.sort(key=lambda item: _LONGEST_FIRST.index(_inside(item.path, _LONGEST_FIRST) or "unit"))


class FilesAndStacks(LoadScopeScheduling):
    """What a worker of pytest-xdist gets as one: a file, or all tests of a stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _inside(ROOT / file, _ONE_STACK) or file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesAndStacks:
    return FilesAndStacks(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference material beside the repository; a test that needs it is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the reference material in {path}, which is not here")
    return path


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: ``SHORTSTACK_BASE_MODEL``, else where the set-up puts it."""
    path = Path(os.environ.get("SHORTSTACK_BASE_MODEL") or ROOT / "var" / "models" / "smollm2-135m-instruct")
    if not (path / "tokenizer.json").exists():
        pytest.skip(f"needs the base model in {path}: `make run` or `make test` converts it")
    return path


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real broker for the session, empty at its beginning; jars are those of the checkout."""
    folder = tmp_path_factory.mktemp("kafka")
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(2)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        port, controller_port = (int(probe.getsockname()[1]) for probe in found)
    libs = Path(os.environ.get("SHORTSTACK_VAR", ROOT / "var")) / "kafka" / "libs"
    config = BrokerConfig(
        folder=folder,
        log=folder / "kafka.log",
        port=port,
        controller_port=controller_port,
        libs=libs,
        java=os.environ.get("SHORTSTACK_JAVA"),
    )
    broker = LocalBroker(config)
    broker.prepare()
    with broker:
        yield broker.bootstrap
