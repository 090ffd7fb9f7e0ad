"""Looks at everything that the local stack needs, and says what to do about what is missing."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import psutil

from shortstack.core.errors import ShortstackError
from shortstack.local.broker import BrokerConfig
from shortstack.local.jars import broken_jars, declared_jars
from shortstack.local.java import find_java
from shortstack.local.required import require_base_model, setup_command
from shortstack.local.services import SERVICES
from shortstack.local.settings import LocalSettings
from shortstack.local.stack import status

__all__ = ["CHECKS", "Finding", "doctor"]

_DISK_NEEDED: Final = 2 * 2**30
_MEMORY_NEEDED: Final = 6 * 2**30
_OTHER_PORTS: Final = (
    "Stop what listens there, or set SHORTSTACK_PORT_BASE (or SHORTSTACK_GATEWAY_PORT, for the gateway's) "
    "to another number."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: its name.
        ok: nothing to do.
        what: what was found.
        remedy: what to do; empty when ok.
    """

    check: str
    ok: bool
    what: str
    remedy: str = ""


def doctor(settings: LocalSettings) -> list[Finding]:
    """One finding a check, in the order of `CHECKS`. A check that cannot be made is a finding too."""
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append(check(settings))
        except (ShortstackError, OSError) as error:
            remedy = error.remedy if isinstance(error, ShortstackError) else "Check the disk and its rights."
            what = error.what if isinstance(error, ShortstackError) else str(error)
            findings.append(Finding(name, ok=False, what=what, remedy=remedy))
    return findings


def _python(_: LocalSettings) -> Finding:
    version = platform.python_version()
    return Finding("python", sys.version_info >= (3, 11), f"{version} at {sys.executable}", "")


def _java(settings: LocalSettings) -> Finding:
    if settings.kafka_bootstrap:
        return Finding("java", ok=True, what="not needed: an external broker is named")
    java = find_java(settings.java)
    return Finding("java", ok=True, what=f"{java.version} by {java.origin} at {java.command}")


def _jars(settings: LocalSettings) -> Finding:
    if settings.kafka_bootstrap:
        return Finding("jars", ok=True, what="not needed: an external broker is named")
    jars = declared_jars()
    broken = broken_jars(BrokerConfig.of(settings).libs, jars)
    if broken:
        names = ", ".join(jar.file_name for jar in broken[:3])
        remedy = f"Run `{setup_command(settings)}`."
        return Finding("jars", False, f"{len(broken)} of {len(jars)} missing or changed: {names}", remedy)
    return Finding("jars", ok=True, what=f"{len(jars)} there, each with its sha256")


def _model(settings: LocalSettings) -> Finding:
    return Finding("base model", ok=True, what=require_base_model(settings, full=True))


def _disk(settings: LocalSettings) -> Finding:
    place = next(folder for folder in (settings.root, *settings.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    what = f"{free / 2**30:.1f} GiB free at {place}"
    remedy = f"Free {_DISK_NEEDED // 2**30} GiB, or set SHORTSTACK_VAR to a folder on a larger disk."
    return Finding("disk", free >= _DISK_NEEDED, what, "" if free >= _DISK_NEEDED else remedy)


def _memory(settings: LocalSettings) -> Finding:
    memory = psutil.virtual_memory()
    ours = sum(line.rss_mb for line in status(settings)) * 2**20
    enough = memory.available + ours >= _MEMORY_NEEDED
    what = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    return Finding(
        "memory", enough, what, "" if enough else f"Close something: {_MEMORY_NEEDED // 2**30} GiB are used."
    )


def _ports(settings: LocalSettings) -> Finding:
    names = [*([] if settings.kafka_bootstrap else ["kafka"]), *SERVICES]
    wanted = {port: name for name in names for port in settings.ports.taken_by(name).values()}
    taken = [f"{port} ({wanted[port]})" for port in _taken_by_others(settings, wanted)]
    if taken:
        return Finding("ports", ok=False, what=f"taken by others: {', '.join(taken)}", remedy=_OTHER_PORTS)
    return Finding("ports", ok=True, what=f"{min(wanted)} to {max(wanted)} are free or ours")


def _broker(settings: LocalSettings) -> Finding:
    if not settings.kafka_bootstrap:
        if _taken_by_others(settings, [settings.ports.broker]):
            what = f"{settings.bootstrap}, the place of our own, is taken by others, perhaps by another stack"
            return Finding("broker", ok=False, what=what, remedy=_OTHER_PORTS)
        return Finding("broker", ok=True, what=f"our own, at {settings.bootstrap}")
    for address in settings.kafka_bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=3.0):
                return Finding("broker", ok=True, what=f"{address} takes connections")
        except (OSError, ValueError):
            continue
    remedy = "Start it, correct SHORTSTACK_KAFKA_BOOTSTRAP, or unset it to use our own."
    return Finding("broker", ok=False, what=f"nothing answers at {settings.kafka_bootstrap}", remedy=remedy)


def _taken_by_others(settings: LocalSettings, ports: Iterable[int]) -> list[int]:
    """Those on which something listens that is no process of this stack."""
    mine = {port for line in status(settings) if line.pid is not None for port in line.ports.values()}
    return [port for port in ports if port not in mine and _listens(port)]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


CHECKS: Final[Mapping[str, Callable[[LocalSettings], Finding]]] = {
    "python": _python,
    "java": _java,
    "jars": _jars,
    "base model": _model,
    "broker": _broker,
    "ports": _ports,
    "disk": _disk,
    "memory": _memory,
}
