"""A real Apache Kafka broker on one machine: one node, KRaft, from Maven jars, on a Java from PyPI.

VAR/kafka/libs        the jars               VAR/kafka/server.properties   written at each start
VAR/kafka/data        the log, kept          VAR/kafka/archive             classes, loaded beforehand
VAR/log/kafka.log     what it says
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from shortstack.core.errors import Fatal
from shortstack.local.broker_faults import broker_fault
from shortstack.local.jars import declared_jars, ensure_jars
from shortstack.local.java import Java, find_java
from shortstack.local.ports import require_free
from shortstack.local.processes import launch
from shortstack.local.settings import LocalSettings

__all__ = ["BrokerConfig", "LocalBroker"]

_HOST: Final = "127.0.0.1"
_READY_LINE: Final = b"Kafka Server started"
_BYTES_NEEDED: Final = 256 * 2**20
_POLL_S: Final = 0.03
_LOG_BYTES: Final = 8 * 2**20
_NO_ARCHIVE: Final = ".none"


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """One broker.

    Attributes:
        folder: holds data, properties and, unless ``libs`` says otherwise, the jars.
        log: file of the broker's output.
        port: clients' port, on loopback.
        controller_port: the KRaft controller's.
        libs: folder of the jars, which several brokers may share; its neighbour ``archive`` is shared with it.
        java: setting SHORTSTACK_JAVA.
        heap_mb: the JVM's heap.
        repository: Maven repository for the jars; None takes jgo's default.
        listen: address that clients' connections are taken on.
        advertised: HOST:PORT that clients are told to come back to; None for loopback.
        remedy: what helps when its folder is full or cannot be written.
        properties: further lines of ``server.properties``; they win over the broker's own.
        scram: users with their passwords for SCRAM-SHA-512, made when the data folder is formatted.
    """

    folder: Path
    log: Path
    port: int
    controller_port: int
    libs: Path
    java: str | None = None
    heap_mb: int = 256
    repository: str | None = None
    listen: str = _HOST
    advertised: str | None = None
    remedy: str = "Free some disk space, or set SHORTSTACK_VAR to a folder that can be written, on a larger disk."
    properties: Mapping[str, str] = field(default_factory=dict)
    scram: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: LocalSettings) -> Self:
        """The broker of a local stack."""
        folder = settings.root / "kafka"
        return cls(
            folder=folder,
            log=settings.log_folder / "kafka.log",
            port=settings.ports.broker,
            controller_port=settings.ports.controller,
            libs=(settings.kafka_libs or folder / "libs").absolute(),
            java=settings.java,
            heap_mb=settings.kafka_heap_mb,
            repository=settings.maven_url,
        )

    @property
    def bootstrap(self) -> str:
        """What clients are told."""
        return self.advertised or f"{_HOST}:{self.port}"


class LocalBroker:
    """Starts and stops one broker. As a context manager: ready inside the block, stopped cleanly after it."""

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self._jars = declared_jars()
        self._java: Java | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._announced = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """Address for clients."""
        return self.config.bootstrap

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The JVM, while this object runs one."""
        return self._process

    def prepare(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Fetches the jars and makes the class archive, where they are not there yet.

        Raises:
            Transient, Fatal: as `ensure_jars` and `find_java`.
        """
        if fetched := self._bring_jars():
            say(f"broker: {fetched} jars fetched and checked")
        archive = self._archive()
        if not archive.is_file() and not archive.with_suffix(_NO_ARCHIVE).is_file():
            say("broker: loading its classes once beforehand")
            self._make_archive(say)

    def before_start(self) -> None:
        """All that must hold before the JVM starts: jars, Java, ports, room, and a formatted data folder.

        Raises:
            Fatal: one of them does not hold; names it and the remedy.
        """
        self._bring_jars()
        for port in (self.config.port, self.config.controller_port):
            require_free(port, "broker")
        try:
            self._write_properties()
            self._require_room()
            self._format_once()
        except OSError as error:
            raise Fatal(
                f"its folder cannot be written ({error.strerror})",
                where=str(self.config.folder),
                remedy=self.config.remedy,
            ) from error
        self._log_start = self.config.log.stat().st_size if self.config.log.exists() else 0
        self._announced = False

    def command(self) -> list[str]:
        """The JVM's command line."""
        return [*self._jvm(), *self._archive_flags(), "kafka.Kafka", str(self._properties)]

    def start(self, deadline_s: float = 60.0) -> None:
        """Starts the broker and returns once clients are served; what an earlier life held is there again.

        Raises:
            Fatal: it did not come up; names the reason and the log.
        """
        self.before_start()
        self._process = launch(self.command(), log=self.config.log, environment=os.environ)
        end = time.monotonic() + deadline_s
        try:
            while not self.is_ready():
                if self._process.poll() is not None:
                    raise self.explain(f"it ended with status {self._process.returncode}")
                if time.monotonic() > end:
                    raise self.explain(f"it was not ready within {deadline_s:.0f} s")
                time.sleep(_POLL_S)
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        """Whether the broker started, said so, and takes connections."""
        try:
            if not self._announced:
                with self.config.log.open("rb") as stream:
                    stream.seek(self._log_start)
                    self._announced = _READY_LINE in stream.read()
            if not self._announced:
                return False
            with socket.create_connection((_HOST, self.config.port), timeout=1.0):
                return True
        except OSError:
            return False

    def stop(self, deadline_s: float = 20.0) -> None:
        """Clean stop (the log is flushed, the controller told); killed when it takes longer than ``deadline_s``."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """kill -9, for tests of faults and as the last resort."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def explain(self, what: str) -> Fatal:
        """The error that says why the broker is not up, after what its log says."""
        try:
            with self.config.log.open("rb") as stream:
                stream.seek(self._log_start)
                # The reason comes first: how it ended may fill thousands of lines after it.
                lines = stream.read(_LOG_BYTES).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            lines = []
        return broker_fault(what, lines, str(self.config.log))

    def _bring_jars(self) -> int:
        """Makes sure of the jars; returns how many were fetched."""
        return ensure_jars(self.config.libs, self._jars, repository=self.config.repository)

    @property
    def _properties(self) -> Path:
        return self.config.folder / "server.properties"

    def _jvm(self) -> list[str]:
        java = self._found_java()
        heap = self.config.heap_mb
        classpath = os.pathsep.join(str(self.config.libs / jar.file_name) for jar in self._jars)
        return [
            str(java.command),
            f"-Xmx{heap}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.logFile=System.out",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
            "-cp",
            classpath,
        ]

    def _found_java(self) -> Java:
        if self._java is None:
            self._java = find_java(self.config.java)
        return self._java

    def _write_properties(self) -> None:
        self.config.folder.mkdir(parents=True, exist_ok=True)
        properties = {**_properties_of(self.config), **self.config.properties}
        lines = [f"{name}={value}\n" for name, value in properties.items()]
        self._properties.write_text("".join(lines), encoding="utf-8")

    def _require_room(self) -> None:
        free = shutil.disk_usage(self.config.folder).free
        if free < _BYTES_NEEDED:
            raise Fatal(
                f"the disk is full: {free // 2**20} MiB are free, the broker needs {_BYTES_NEEDED // 2**20}",
                where=str(self.config.folder),
                remedy=self.config.remedy,
            )

    def _format_once(self) -> None:
        """Gives the data folder its cluster id. A format cut off half-way is done again: the id's file is last."""
        data = self.config.folder / "data"
        if (data / "meta.properties").is_file() and (self.config.folder / "formatted").is_file():
            return
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t"]
        users = [f"SCRAM-SHA-512=[name={name},password={word}]" for name, word in self.config.scram.items()]
        scram = [argument for user in users for argument in ("--add-scram", user)]
        done = subprocess.run(
            [*self._jvm(), *tool, cluster.replace("-", "A"), "-c", str(self._properties), *scram],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # The output is shown only on failure: with SCRAM users declared, it holds their keys.
        if done.returncode != 0:
            raise broker_fault("formatting its data failed", (done.stdout + done.stderr).splitlines(), str(data))
        (self.config.folder / "formatted").write_text("", encoding="utf-8")

    def _archive(self) -> Path:
        """The class archive of this Java and these jars; named by both, since it fits no others."""
        java = self._found_java()
        listing = f"{java.command.resolve()} {java.version} {self.config.libs} {[jar.sha256 for jar in self._jars]}"
        name = hashlib.sha256(listing.encode()).hexdigest()[:16]
        return self.config.libs.parent / "archive" / f"{name}.{'aot' if java.major >= 25 else 'jsa'}"

    def _archive_flags(self) -> list[str]:
        archive = self._archive()
        if not archive.is_file():
            return []
        # The packaged Java carries no base archive, so it needs an AOT cache (JEP 514); older ones have no such.
        return [f"-XX:{'AOTCache' if archive.suffix == '.aot' else 'SharedArchiveFile'}={archive}"]

    def _make_archive(self, say: Callable[[str], None]) -> None:
        """Runs a broker on throw-away data once, so that its Java keeps the classes it loaded.

        It only saves about a second a start, so a Java that cannot do it is said and lived with.
        """
        archive = self._archive()
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="shortstack-archive-") as scratch, _free_ports(2) as ports:
            made = Path(scratch) / archive.name
            config = replace(
                self.config,
                folder=Path(scratch) / "kafka",
                log=Path(scratch) / "kafka.log",
                port=ports[0],
                controller_port=ports[1],
                properties={},
                scram={},
            )
            trial = _ArchivingBroker(config, made)
            trial.start()
            trial.stop(deadline_s=60.0)
            if made.is_file():
                beside = archive.with_suffix(f".{os.getpid()}")
                shutil.copyfile(made, beside)
                beside.replace(archive)
            else:
                archive.with_suffix(_NO_ARCHIVE).touch()
                say("broker: this Java keeps no class archive; each start takes about a second longer")


class _ArchivingBroker(LocalBroker):
    """A broker that writes a class archive when it ends."""

    def __init__(self, config: BrokerConfig, archive: Path) -> None:
        super().__init__(config)
        self._made = archive

    def _archive_flags(self) -> list[str]:
        return [f"-XX:{'AOTCacheOutput' if self._made.suffix == '.aot' else 'ArchiveClassesAtExit'}={self._made}"]


def _properties_of(config: BrokerConfig) -> Mapping[str, str]:
    """``server.properties`` of one node that is broker and controller, the latter on loopback alone."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{_HOST}:{config.controller_port}",
        "listeners": f"PLAINTEXT://{config.listen}:{config.port},CONTROLLER://{_HOST}:{config.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{config.bootstrap}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(config.folder / "data"),
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(2 * 2**20),
        # After kill -9 the old registration must expire first: 12.6 s by default, 3 to 4 s with these.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "300",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "2",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "log.segment.bytes": str(64 * 2**20),
        "log.cleaner.dedupe.buffer.size": str(8 * 2**20),
        "log.cleaner.threads": "1",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "2",
    }


@contextmanager
def _free_ports(count: int) -> Iterator[list[int]]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_HOST, 0))
        ports = [int(probe.getsockname()[1]) for probe in probes]
    yield ports
