"""One stack for all end-to-end tests. The main job begins at once; other tests run beside its training."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.main_job import MainJob
from tests.e2e.stack import Stack

ROOT = Path(__file__).parents[2]
STACK = pytest.StashKey[Stack]()
ENDING = pytest.StashKey[ExitStack]()
_ORDER = (
    "test_bad_input",
    "test_shared_datasets",
    "test_main_job",
    "test_monitoring",
    "test_openai",
    "test_cli",
    "test_replay",
    "test_run",
)
"""What needs no model first, while the main job trains; then what looks at everything that was left; last what stops
the stack."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    places = [place for place, item in enumerate(items) if item.path.parent == here]
    ordered = sorted((items[place] for place in places), key=lambda item: _ORDER.index(item.path.stem))
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    stack = item.session.stash.get(STACK, None)
    if stack is not None and report.failed:
        report.sections.extend((f"log of {name}", text) for name, text in stack.logs().items())
    return report


@pytest.fixture(scope="session")
def persona(repository: Path) -> Path:
    """The example of the main job."""
    return repository / "examples" / "persona"


@pytest.fixture(scope="session")
def began(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path
) -> Iterator[tuple[Stack, MainJob]]:
    """A stack of the session's own, and the main job on it. SHORTSTACK_E2E_VAR names a folder to keep instead, for
    work on a single test."""
    kept = os.environ.get("SHORTSTACK_E2E_VAR")
    var = Path(kept).absolute() if kept else tmp_path_factory.mktemp("stack") / "var"
    checkout_var = Path(os.environ.get("SHORTSTACK_VAR") or ROOT / "var").absolute()
    data = ROOT.parent / "shared" / "data"
    made = Stack(var, checkout_var, [ROOT / "examples", *([data] if data.is_dir() else [])])
    request.session.stash[STACK] = made
    with ExitStack() as ending:
        request.session.stash[ENDING] = ending
        ending.callback(request.session.stash.__delitem__, STACK)
        ending.callback(made.down)
        made.up()
        main_job = MainJob(made)
        ending.callback(main_job.stop)
        yield made, main_job


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Ends the stack with the last test that needs it: a worker goes on with other files, and has no use for it."""
    yield
    ending = item.session.stash.get(ENDING, None)
    if ending is not None and (nextitem is None or nextitem.path.parent != Path(__file__).parent):
        ending.close()


@pytest.fixture(scope="session")
def stack(began: tuple[Stack, MainJob]) -> Stack:
    """The stack; dataset persona is being published to it."""
    return began[0]


@pytest.fixture(scope="session")
def main_job(began: tuple[Stack, MainJob]) -> MainJob:
    """The command that publishes persona, trains and asks; what stops the stack waits for its end."""
    return began[1]
