"""One stack for all fault tests, on a tiny model; stopped before tests of other folders begin."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.e2e.faults.faulty import FaultyStack
from tests.tiny_model import WIDE, make_tiny_model

ROOT = Path(__file__).parents[3]
STACK = pytest.StashKey[FaultyStack]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    stack = item.session.stash.get(STACK, None)
    if stack is not None and report.failed:
        report.sections.extend((f"log of {name}", text) for name, text in stack.logs().items())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    here = Path(__file__).parent
    stack = item.session.stash.get(STACK, None)
    if stack is not None and (nextitem is None or here not in nextitem.path.parents):
        del item.session.stash[STACK]
        stack.close()


@pytest.fixture
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FaultyStack:
    """The stack, started by the first test that asks for it."""
    found = request.session.stash.get(STACK, None)
    if found is None:
        folder = tmp_path_factory.mktemp("faulty")
        checkout_var = Path(os.environ.get("SHORTSTACK_VAR") or ROOT / "var").absolute()
        found = FaultyStack(folder / "var", checkout_var, make_tiny_model(folder / "tiny-llama", width=WIDE))
        request.session.stash[STACK] = found
        found.up()
    return found
