"""A Kubernetes cluster as its user has it: kubectl and helm, and what they print."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.polling import until

__all__ = ["Cluster", "lab", "named_cluster"]

_COMMAND_S: Final = 600.0
_FORWARD_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Calls of kubectl and helm, in one namespace.

    Attributes:
        environment: with KUBECONFIG, and PATH for the two.
        namespace: of every call.
    """

    environment: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> Cluster:
        """The same cluster, another namespace."""
        return Cluster(self.environment, namespace)

    def run(
        self, *command: str, given: str | None = None, expect: int | None = 0, within_s: float = _COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end.

        Args:
            given: its standard input.
            expect: exit status that is asserted; None takes any.
        """
        done = subprocess.run(
            command,
            env=dict(self.environment),
            input=given if given is not None else "",
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        said = f"{' '.join(command)[:400]} exited {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert expect is None or done.returncode == expect, said
        return done

    def kubectl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``kubectl`` in the namespace."""
        return self.run("kubectl", "--namespace", self.namespace, *arguments, **options)

    def helm(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``helm`` in the namespace."""
        return self.run("helm", "--namespace", self.namespace, *arguments, **options)

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind (or several, joined by commas)."""
        chosen = ["--selector", selector] if selector else []
        listed: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *chosen, "--output=json").stdout)["items"]
        return listed

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Creates or changes an object."""
        self.kubectl("apply", "--filename=-", given=json.dumps(manifest))

    @contextmanager
    def kept_namespace(self) -> Iterator[None]:
        """The namespace, made if it is not there, and left."""
        if self.run("kubectl", "get", "namespace", self.namespace, expect=None).returncode != 0:
            self._make_namespace()
        yield

    @contextmanager
    def fresh_namespace(self) -> Iterator[None]:
        """The namespace, made new and deleted with all that is in it."""
        self.run("kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--wait")
        self._make_namespace()
        try:
            yield
        finally:
            self.run("kubectl", "delete", "namespace", self.namespace, "--wait=false")

    def _make_namespace(self) -> None:
        self.run("kubectl", "create", "namespace", self.namespace)
        self.run("kubectl", "label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to ``target`` (``service/NAME``) until the block ends."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local = int(probe.getsockname()[1])
        command = ["kubectl", "--namespace", self.namespace, "port-forward", target, f"{local}:{port}"]
        with subprocess.Popen(
            command, env=dict(self.environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                self._await_port(process, local)
                yield local
            finally:
                process.terminate()

    @staticmethod
    def _await_port(process: subprocess.Popen[str], port: int) -> None:
        def open_() -> bool:
            if process.poll() is not None:
                said = process.stdout.read() if process.stdout else ""
                raise AssertionError(f"port-forward ended: {said}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                return False
            return True

        until(open_, f"port {port} to be forwarded", deadline_s=_FORWARD_S)


def named_cluster() -> Cluster | None:
    """The cluster that KUBECONFIG names, if it does."""
    return Cluster(os.environ) if os.environ.get("KUBECONFIG") else None


@dataclass(frozen=True, slots=True)
class Lab:
    """The one-node cluster of the reference material: no docker, no image registry."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def up(self) -> Cluster:
        """Starts it (and builds it first, which takes a new machine ten minutes)."""
        done = subprocess.run(
            [self.folder / "up"], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=2400, check=True
        )
        found = dict(re.findall(r"\b(KUBECONFIG|PATH)=(\S+)", done.stdout))
        path = found["PATH"].replace("$PATH", os.environ["PATH"])
        return Cluster({**os.environ, "KUBECONFIG": found["KUBECONFIG"], "PATH": path})

    def command(self, name: str, *arguments: str | Path, environment: Mapping[str, str]) -> str:
        """One of its other commands; what it prints."""
        done = subprocess.run(
            [self.folder / name, *arguments],
            env=dict(environment),
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=2400,
            check=True,
        )
        return done.stdout.strip()


def lab(shared: Path) -> Lab | None:
    """The lab below ``shared``, if it is there and this process may start it."""
    folder = shared / "lab"
    return Lab(folder) if (folder / "up").is_file() and os.geteuid() == 0 else None


def words(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of objects, sorted."""
    return sorted(item["metadata"]["name"] for item in items)
