"""The one way in: sets up what a task needs, then runs the task. Standard library only, Python 3.11 or newer.

python3 deploy/bootstrap.py help              lists every task
python3 deploy/bootstrap.py TASK [ARGUMENT…]  sets up and runs it; the Makefile does just this
python3 deploy/bootstrap.py exec -- COMMAND…  sets up for tests and runs COMMAND in the environment
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import images
from environment import (
    CONSTRAINTS,
    PYTHON,
    ROOT,
    VENV,
    SetupError,
    child_environment,
    find_uv,
    say,
    set_up,
    var_folder,
)

LOCK_LINE = "# --- below: everything that the above brings along; written by `make lock` ---"


@dataclass(frozen=True)
class Task:
    """One line of `make help`.

    Attributes:
        help: the line.
        extra: the extra of pyproject.toml that it needs; empty if it needs no environment.
        run: does it, given the arguments after the task's name; returns the exit status.
    """

    help: str
    extra: str
    run: Callable[[Sequence[str]], int]


def run_all(commands: Mapping[str, Sequence[str]]) -> int:
    """Runs every command, also after a failure, and ends with one line for each; 1 if any failed."""
    outcomes: dict[str, tuple[bool, float]] = {}
    for name, command in commands.items():
        say(f"{name}: {' '.join(command)}")
        began = time.monotonic()
        done = subprocess.run(command, env=child_environment(), cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
        outcomes[name] = (done.returncode == 0, time.monotonic() - began)
    for name, (passed, seconds) in outcomes.items():
        say(f"{'passed' if passed else 'FAILED'}  {name} ({seconds:.0f} s)")
    return 0 if all(passed for passed, _ in outcomes.values()) else 1


def check(_: Sequence[str]) -> int:
    """Everything that reads the code without running it."""
    return run_all(
        {
            "lint": ["ruff", "check", "."],
            "format": ["ruff", "format", "--check", "."],
            "types": ["mypy"],
            "imports": ["lint-imports"],
            "protos": ["buf", "lint", "proto"],
            "images": ["hadolint", *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("docker/*.Dockerfile"))],
            "generated code": ["python", "proto/generate.py", "--check"],
            "schemas": ["python", "proto/write_schemas.py", "--check"],
            "chart": ["python", "deploy/chart_checks.py"],
        }
    )


def generate(_: Sequence[str]) -> int:
    """Writes what is generated: code from proto/, JSON schemas from the models of messages."""
    return run_all(
        {
            "code": ["python", "proto/generate.py"],
            "schemas": ["python", "proto/write_schemas.py"],
            "chart": ["python", "deploy/chart_files.py"],
        },
    )


DRILLS = "tests/e2e/faults"
"""Processes killed at every hop of a whole stack, over and over: minutes of restarts, so a task of their own."""


def pytest_task(*folders: str, cover: bool = False, alone: bool = False) -> Callable[[Sequence[str]], int]:
    """A task that runs the tests of ``folders``, the drills only if they are named; arguments go to pytest.

    Args:
        cover: show which lines ran.
        alone: one test after the other; else whole files, or all tests of one stack, go to each of a few workers
            (tests/conftest.py says which belong together).
    """
    flags = ["--cov=shortstack", "--cov-report=term:skip-covered"] if cover else []
    flags += [] if alone else ["--numprocesses=auto", "--maxprocesses=4", "--no-loadscope-reorder"]
    if f"tests/{folders[-1]}" != DRILLS:
        flags.append(f"--ignore={DRILLS}")

    def run(arguments: Sequence[str]) -> int:
        return become(["python", "-m", "pytest", *(f"tests/{folder}" for folder in folders), *flags, *arguments])

    return run


def become(command: Sequence[str]) -> int:
    """Replaces this process by ``command``, so that signals and the terminal are its own."""
    os.chdir(ROOT)
    environment = child_environment()
    found = shutil.which(command[0], path=environment["PATH"])
    if found is None:
        raise SetupError(f'there is no command "{command[0]}" in the environment. Delete .venv and repeat')
    os.execve(found, list(command), environment)


def passed_to(*command: str) -> Callable[[Sequence[str]], int]:
    """A task that is ``command`` with the task's arguments after it."""
    return lambda arguments: become([*command, *arguments])


def stop(arguments: Sequence[str]) -> int:
    """Stops the stack; without an environment nothing can be running from it."""
    if not (VENV / "bin" / "shortstack").exists():
        say("Nothing is set up here, so nothing runs.")
        return 0
    return become(["shortstack", "down", *arguments])


def clean(arguments: Sequence[str]) -> int:
    """Removes what was set up; data and models too, with --all."""
    running = list((var_folder() / "run").glob("supervisor.json"))
    if running:
        say("The stack seems to run: `make stop` first.")
        return 1
    caches = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", ".grimp_cache")
    for name in (".venv", ".tools", *caches, *([str(var_folder())] if "--all" in arguments else [])):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in ("services", "tests", "benchmarks", "deploy", "proto"):
        for cache in (ROOT / folder).rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
    return 0


def lock(_: Sequence[str]) -> int:
    """Writes the lower half of constraints.txt: what is installed, less what depends on the platform."""
    freeze = subprocess.run(
        [find_uv(), "pip", "freeze", "--python", str(PYTHON)], capture_output=True, text=True, check=True
    )
    upper = CONSTRAINTS.read_text(encoding="utf-8").split(LOCK_LINE)[0].rstrip()
    chosen = {line.split("==")[0].lower() for line in upper.splitlines() if "==" in line}
    # torch names its own versions of these, other ones for every build; triton goes with them.
    by_platform = ("nvidia-", "cuda-", "triton==")
    pins = [
        line.split("+")[0]
        for line in freeze.stdout.splitlines()
        if "==" in line and not line.startswith(by_platform) and line.split("==")[0].lower() not in chosen
    ]
    CONSTRAINTS.write_text("\n".join([upper, LOCK_LINE, *sorted(pins), ""]), encoding="utf-8")
    say(f"{CONSTRAINTS.name}: {len(chosen)} chosen, {len(pins)} brought along.")
    return 0


def show_help(_: Sequence[str]) -> int:
    """Lists every task."""
    width = max(map(len, TASKS))
    lines = [f"  make {name:<{width}}  {task.help}" for name, task in TASKS.items()]
    sys.stdout.write("\n".join([*lines, "", "Arguments go in ARGS: make run ARGS=--exit", ""]))
    return 0


def execute(arguments: Sequence[str]) -> int:
    """Any command in the environment."""
    command = [argument for argument in arguments if argument != "--"] if arguments[:1] == ["--"] else list(arguments)
    if not command:
        raise SetupError("exec needs a command: python3 deploy/bootstrap.py exec -- COMMAND…")
    return become(command)


TASKS: Mapping[str, Task] = {
    "help": Task("list every task", "", show_help),
    "run": Task("set everything up, run the main job, show the result", "local", passed_to("shortstack", "demo")),
    "stop": Task("stop the stack that runs from this folder", "", stop),
    "test": Task(
        "every test that needs no GPU and no cluster but the drills, coverage shown",
        "dev",
        pytest_task("unit", "contract", "integration", "e2e", cover=True),
    ),
    "test-unit": Task("unit and contract tests: fast, no broker", "dev", pytest_task("unit", "contract")),
    "test-integration": Task("tests against the real broker", "dev", pytest_task("integration")),
    "test-e2e": Task("the whole way, from a dataset to a chat", "dev", pytest_task("e2e", alone=True)),
    "test-faults": Task("drills: every service killed at every hop", "dev", pytest_task("e2e/faults", alone=True)),
    "test-cluster": Task(
        "the stack on Kubernetes: the cluster of KUBECONFIG, else the one beside the repository",
        "dev",
        pytest_task("cluster", alone=True),
    ),
    "test-install": Task(
        "its short form: install, helm test, uninstall", "dev", pytest_task("cluster/test_install.py", alone=True)
    ),
    "check": Task("lint, format, types, imports, protos, images, chart, generated code", "dev", check),
    "images": Task("build the images with docker or buildah, show their sizes", "", images.main),
    "proto": Task("generate code, schemas, tables", "dev", generate),
    "bench": Task("figures, one JSON object a line", "dev", passed_to("python", "-m", "benchmarks")),
    "bench-cluster": Task("figures of the stack on Kubernetes", "dev", passed_to("python", "benchmarks/on_cluster.py")),
    "lock": Task("renew the lower half of constraints.txt from what is installed", "dev", lock),
    "setup": Task("only set up, for running and testing", "dev", lambda _: 0),
    "clean": Task("remove the environment and caches; ARGS=--all: data and models too", "", clean),
    "exec": Task("run a command in the environment: make exec ARGS='-- shortstack status'", "dev", execute),
}


def main(arguments: Sequence[str]) -> int:
    """Runs one task; 70 when setting up failed, 64 for a task that does not exist."""
    name, *rest = arguments or ["help"]
    if name not in TASKS:
        sys.stderr.write(f'There is no task "{name}". `make help` lists them.\n')
        return 64
    try:
        if TASKS[name].extra:
            set_up(TASKS[name].extra)
        return TASKS[name].run(rest)
    except SetupError as error:
        sys.stderr.write(f"Setup: {error}.\n")
        return 70
    except KeyboardInterrupt:
        return 130


def newer_python() -> str | None:
    """Another Python on the PATH that is new enough."""
    return next((found for minor in range(14, 10, -1) if (found := shutil.which(f"python3.{minor}"))), None)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (this very line is for the older ones)
        instead = newer_python()
        if instead is None:
            sys.exit(f"Shortstack needs Python 3.11 or newer; this is {platform.python_version()}.")
        os.execv(instead, [instead, *sys.argv])
    raise SystemExit(main(sys.argv[1:]))
