"""A failpoint ends the process at the place that is named, and by a file in a folder only once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.core.failpoints import FAILPOINT_VARIABLE, failpoint

VISITS = """
import sys
from shortstack.core.failpoints import failpoint
for name in sys.argv[1:]:
    print(name, flush=True)
    failpoint(name)
"""


def visit(wanted: str, *names: str) -> tuple[int, list[str]]:
    """Exit status of a process that passes the places, and those that it reached."""
    done = subprocess.run(
        [sys.executable, "-c", VISITS, *names],
        env={**os.environ, FAILPOINT_VARIABLE: wanted},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize(
    ("wanted", "reached"),
    [("b", ["a", "b"]), ("a:2", ["a", "b", "a"]), ("c", None), ("a:3", None), ("", None)],
)
def test_the_process_ends_at_the_named_visit(wanted: str, reached: list[str] | None) -> None:
    places = ["a", "b", "a"]
    expected = (0, places) if reached is None else (-signal.SIGKILL, reached)
    assert visit(wanted, *places) == expected


def test_a_file_ends_one_life_of_one_process(tmp_path: Path) -> None:
    assert visit(f"@{tmp_path}", "a", "b") == (0, ["a", "b"])
    (tmp_path / "b").write_text("1\n")
    (tmp_path / "c").touch()
    assert visit(f"@{tmp_path}", "a", "b") == (-signal.SIGKILL, ["a", "b"])
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    assert visit(f"@{tmp_path}", "a", "b") == (0, ["a", "b"])
    assert visit(f"@{tmp_path}", "a", "c", "b") == (-signal.SIGKILL, ["a", "c"])


def test_visits_count_from_when_the_file_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(number))
    file = tmp_path / "a"
    monkeypatch.setenv(FAILPOINT_VARIABLE, f"@{tmp_path}")
    for round_ in range(2):
        file.write_text("2")
        os.utime(file, ns=(round_, round_))
        failpoint("a")
        assert len(ended) == round_
        failpoint("a")
        assert len(ended) == round_ + 1


def test_a_count_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILPOINT_VARIABLE, "a:often")
    with pytest.raises(Fatal, match="COUNT"):
        failpoint("a")


def test_every_place_that_a_fault_test_names_is_in_the_code(repository: Path) -> None:
    tests = "".join(file.read_text() for file in (repository / "tests").glob("*/**/test_*.py"))
    code = "".join(file.read_text() for file in (repository / "services").glob("**/*.py"))
    services = "ingestion|formatting|worker|assembly|training|agent|serving"
    wanted = set(re.findall(rf'"((?:{services})\.(?:before|after|mid|handled|flushed|committed)[a-z_]*)[:"]', tests))
    assert len(wanted) >= 10
    assert wanted <= set(re.findall(r'failpoint\("([a-z_.]+)"\)', code))
