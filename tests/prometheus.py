"""A real Prometheus for tests: the one on the PATH, else Debian's package, unpacked into .tools without installing."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.polling import until

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
FETCH_S = 180.0
START_S = 60.0


def prometheus_command() -> str:
    """The command; skips the test with the reason where there is none and none can be had."""
    on_path = shutil.which("prometheus")
    if on_path:
        return on_path
    own = TOOLS / "prometheus" / "usr" / "bin" / "prometheus"
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not own.exists():
            _unpack(TOOLS / "prometheus")
    return str(own)


def _unpack(target: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("needs Prometheus: there is none on the PATH, and no apt-get to fetch Debian's package with")
    with tempfile.TemporaryDirectory(dir=TOOLS) as name:
        folder = Path(name)
        lists, cache = folder / "lists", folder / "cache"
        ours = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root"]
        # The machine's own lists of packages may be there, old, or missing; the others are for this one time.
        done = _apt([], folder)
        if done.returncode != 0:
            (lists / "partial").mkdir(parents=True)
            (cache / "archives" / "partial").mkdir(parents=True)
            _run(["apt-get", *ours, "-q", "update"], folder)
            done = _apt(ours, folder)
        found = list(folder.glob("prometheus_*.deb"))
        if done.returncode != 0 or not found:
            said = " ".join((done.stderr or done.stdout).split())[-300:]
            pytest.skip(f"needs Prometheus: there is none on the PATH, and `apt-get download prometheus` says: {said}")
        _run(["dpkg", "-x", str(found[0]), str(folder / "tree")], folder).check_returncode()
        shutil.rmtree(target, ignore_errors=True)
        (folder / "tree").rename(target)


def _apt(options: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return _run(["apt-get", *options, "-q", "download", "prometheus"], folder)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {FETCH_S:.0f} s")


class Prometheus:
    """A running one.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str | Sequence[str]) -> Any:
        """The ``data`` of an API call; what Prometheus says of a query that it refuses is the failure."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode(errors='replace')}") from error

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The series of an expression now: labels and value, which may be no number."""
        found = self.ask("query", query=expr)
        assert found["resultType"] == "vector", f"{expr} gives a {found['resultType']}"
        return [(series["metric"], float(series["value"][1])) for series in found["result"]]

    def numbers(self, expr: str) -> list[float]:
        """As `query`, the values that are numbers."""
        return [value for _, value in self.query(expr) if not math.isnan(value)]

    def targets(self) -> list[dict[str, Any]]:
        """Every address that it scrapes, with its labels and how it is."""
        found: list[dict[str, Any]] = self.ask("targets", state="active")["activeTargets"]
        return found

    def known(self) -> set[str]:
        """Names of all metrics that a target has described, also of those without a series."""
        return set(self.ask("metadata"))

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def running(config: dict[str, Any], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with ``config``, its data in ``folder``, until the block ends."""
    command = prometheus_command()
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    log = folder / "prometheus.log"
    with log.open("w") as stream:
        process = subprocess.Popen([command, *flags], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            made = Prometheus(f"http://{address}")
            until(
                lambda: made.ready() or process.poll() is not None, lambda: log.read_text()[-2000:], deadline_s=START_S
            )
            assert process.poll() is None, f"Prometheus ended: {log.read_text()[-2000:]}"
            yield made
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
