"""The broker's jars: a flat list of Maven coordinates with sha256, fetched by jgo, checked one by one."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shortstack.core.errors import Fatal, ShortstackError, Transient

__all__ = ["Jar", "broken_jars", "declared_jars", "ensure_jars"]

_ATTEMPTS: Final = 3
_CONNECTIONS: Final = 6
_BYTES_NEEDED: Final = 200 * 2**20

Fetch = Callable[["Jar", Path], Path]


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar by its Maven coordinate ``group:artifact:version``."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in a Maven repository and in the folder of jars."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def declared_jars(listing: Path | None = None) -> list[Jar]:
    """The jars of ``deploy/kafka/broker-jars.txt`` (shipped inside the package when it is installed as a wheel).

    Raises:
        Fatal: the list is missing, or a line is not ``group:artifact:version sha256``.
    """
    file = listing or _listing()
    jars = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        coordinate, _, sha256 = line.partition(" ")
        parts = coordinate.split(":")
        if len(parts) != 3 or len(sha256.strip()) != 64:
            raise Fatal(
                f'"{line}" is not a coordinate with a sha256',
                where=f"{file} line {number}",
                remedy="Write group:artifact:version, a space, and 64 hex digits.",
            )
        jars.append(Jar(parts[0], parts[1], parts[2], sha256.strip()))
    return jars


def broken_jars(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    """Those of ``jars`` that are missing in ``folder`` or have other content."""
    return [jar for jar in jars if _sha256(folder / jar.file_name) != jar.sha256]


def ensure_jars(folder: Path, jars: Sequence[Jar], *, repository: str | None = None, fetch: Fetch | None = None) -> int:
    """Brings every one of ``jars`` into ``folder``; returns how many were fetched.

    A jar appears under its name only after its sha256 was found right.

    Args:
        repository: URL of a Maven repository; None takes jgo's default.
        fetch: stands for jgo in tests.

    Raises:
        Transient: a jar could not be fetched.
        Fatal: a jar has another sha256 than declared, or the disk has no room.
    """
    missing = broken_jars(folder, jars)
    if not missing:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < _BYTES_NEEDED:
        raise Fatal(
            f"less than {_BYTES_NEEDED // 2**20} MiB are free for the broker's jars",
            where=str(folder),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder on a larger disk.",
        )
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        get = fetch or _jgo(Path(scratch), repository)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(lambda jar: _bring(jar, folder, Path(scratch), get), missing):
                pass
    return len(missing)


def _bring(jar: Jar, folder: Path, scratch: Path, fetch: Fetch) -> None:
    fetched = _with_retries(jar, scratch, fetch)
    found = _sha256(fetched)
    if found != jar.sha256:
        raise Fatal(
            f"{jar} has sha256 {found}, declared is {jar.sha256}",
            where=f"jar {jar.file_name}",
            remedy="The repository, or something on the way, changed it: set SHORTSTACK_MAVEN_URL to one you trust.",
        )
    fetched.replace(folder / jar.file_name)


def _with_retries(jar: Jar, scratch: Path, fetch: Fetch) -> Path:
    last: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            return fetch(jar, scratch)
        except ShortstackError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # what jgo and requests raise
            last = error
    raise Transient(
        f"{jar} could not be fetched ({last})",
        where=f"jar {jar.file_name}",
        remedy="Check the network or its proxy, or set SHORTSTACK_MAVEN_URL to a mirror; then repeat.",
    ) from last


def _jgo(cache: Path, repository: str | None) -> Fetch:
    from jgo.maven import MavenContext

    remotes = {"named": repository} if repository else None
    context = MavenContext(repo_cache=cache, remote_repos=remotes, timeout=60)

    def fetch(jar: Jar, _scratch: Path) -> Path:
        return Path(context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve())

    return fetch


def _listing() -> Path:
    beside = Path(__file__).parent / "broker-jars.txt"
    checkout = Path(__file__).parents[3] / "deploy" / "kafka" / "broker-jars.txt"
    for file in (beside, checkout):
        if file.is_file():
            return file
    raise Fatal(
        "the list of the broker's jars is missing",
        where=str(checkout),
        remedy="Restore deploy/kafka/broker-jars.txt from the repository, or install the package again.",
    )


def _sha256(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
