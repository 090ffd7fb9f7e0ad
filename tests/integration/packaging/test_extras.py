"""Each service starts from its own extra alone: what it imports is in there, and so is every contract.

The package is built and installed as a user has it, into an environment for each extra. Those with torch are left to
their images, which are gigabytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from environment import TOOLS, child_environment

ROOT = Path(__file__).parents[3]
DECLARED: Mapping[str, Sequence[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
MODULES = {
    **{file.parent.name: f"shortstack.{file.parent.name}.main" for file in ROOT.glob("services/shortstack/*/main.py")},
    "java": "shortstack.local.broker_pod",
    "broker": "shortstack.local.prepare",
}
"""What each extra must be enough for."""

IMPORT = """
import importlib, pathlib, sys
import shortstack
importlib.import_module(sys.argv[1])
root = pathlib.Path(shortstack.__file__).parent
contracts = sorted(root.glob("*/v1/*_pb2*.py"))
for file in contracts:
    importlib.import_module(".".join(["shortstack", *file.relative_to(root).with_suffix("").parts]))
print(len(contracts), "contracts from", shortstack.__file__)
"""
UNREACHABLE = re.compile(r"error sending request|dns error|Failed to fetch|network was disabled|connection", re.I)


def packages_of(extra: str) -> set[str]:
    """Names that an extra lists, those of extras within it included."""
    found: set[str] = set()
    for line in DECLARED[extra]:
        if within := re.fullmatch(r"shortstack\[(.*)\]", line):
            found.update(*(packages_of(name.strip()) for name in within.group(1).split(",")))
        else:
            found.add(re.split(r"[<>=\[ ]", line)[0])
    return found


@pytest.fixture(scope="module")
def uv() -> str:
    """uv, where the set-up or the user has put it."""
    own = TOOLS / "uv" / "bin" / "uv"
    found = os.environ.get("UV") or shutil.which("uv") or (str(own) if own.exists() else None)
    if found is None:
        pytest.skip("needs uv, which is neither on the PATH nor in .tools: `make test` brings it")
    return found


def run_uv(command: Sequence[str]) -> str:
    """Runs uv from its cache alone, else with the network; skips the test where neither has the packages."""
    for cached in (["--offline"], []):
        done = subprocess.run([*command, *cached], env=child_environment(), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
    if UNREACHABLE.search(done.stderr):
        pytest.skip(f"the packages are not cached, and the index cannot be reached: {done.stderr.strip()[-300:]}")
    raise AssertionError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is published."""
    folder = tmp_path_factory.mktemp("wheel")
    pins = ["--build-constraints", str(ROOT / "constraints.txt"), "--python", sys.executable]
    run_uv([uv, "build", "--quiet", "--wheel", *pins, "--out-dir", str(folder), str(ROOT)])
    [built] = folder.glob("*.whl")
    return built


def installed(uv: str, wheel: Path, extra: str, folder: Path) -> Path:
    """The Python of a new environment with the package and ``extra``, its files linked from uv's cache."""
    run_uv([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    python = folder / "bin" / "python"
    pins = ["--constraints", str(ROOT / "constraints.txt")]
    run_uv([uv, "pip", "install", "--quiet", "--python", str(python), *pins, f"shortstack[{extra}] @ {wheel.as_uri()}"])
    return python


@pytest.mark.parametrize("extra", [name for name in sorted(MODULES) if "torch" not in packages_of(name)])
def test_a_service_imports_from_its_own_extra_alone(uv: str, wheel: Path, tmp_path: Path, extra: str) -> None:
    python = installed(uv, wheel, extra, tmp_path / "environment")
    # Isolated: neither the checkout nor the caller's packages are seen.
    command = [str(python), "-I", "-c", IMPORT, MODULES[extra]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    count, _, _, origin = done.stdout.split(maxsplit=3)
    assert int(count) == len(list(ROOT.glob("services/shortstack/*/v1/*_pb2*.py")))
    assert Path(origin.strip()).is_relative_to(tmp_path)
