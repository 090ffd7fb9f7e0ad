"""Ships what rank 0 writes to ``events.jsonl``: each whole line, in order, at least once; a reader tells doubles by
(run, attempt, seq). A broker that is away stops nothing: events wait in their file until it is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison, Transient
from shortstack.messages.v1.training_pb2 import TrainingEvent
from shortstack.streams import topics
from shortstack.streams.broker import Outbound, Producer
from shortstack.streams.envelope import outbound

__all__ = ["EventShipper", "shipping"]

_POLL_S: Final = 0.2
_BACK_OFF_S: Final = 1.0
_ACK_S: Final = 60.0
"""Above a producer's own limit (30 s): what it still holds must not be sent a second time past it."""
_DRAIN_S: Final = 600.0
"""How long what is done waits for a broker that is away."""
_DRAIN_STOPPED_S: Final = 2.0
_LEVELS: Final = {"failed": "error", "warning": "warn", "waiting": "warn"}


class _Log(Protocol):
    def warning(self, event: str, **fields: Any) -> Any: ...


class EventShipper:
    """Follows the file from a thread.

    Args:
        path: the file; it may not be there yet.
        connect: makes a producer; may raise `Transient` while the broker is away.
        shipped: keeps the place up to which everything was acknowledged, over attempts.
    """

    def __init__(
        self, path: Path, run: str, connect: Callable[[], Producer], shipped: Path, clock: Clock, log: _Log
    ) -> None:
        self._path, self._run, self._connect, self._shipped = path, run, connect, shipped
        self._clock, self._log = clock, log
        self._place = int(shipped.read_text()) if shipped.exists() else 0
        self._producer: Producer | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="events", daemon=True)

    def start(self) -> None:
        """Starts to follow."""
        self._thread.start()

    def finish(self, timeout_s: float) -> bool:
        """Sends what is left; whether all of it was acknowledged in time. May be asked again."""
        self._ended.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        away = False
        while True:
            ended = self._ended.is_set()
            try:
                sent = self._ship()
                away = False
            except Transient as error:
                if not away:
                    self._log.warning("events wait for the broker", error=str(error))
                away = True
                self._drop_producer()
                self._clock.wait(threading.Event(), _BACK_OFF_S)
                continue
            if ended and not sent:
                self._drop_producer()
                return
            if not sent:
                self._ended.wait(_POLL_S)

    def _ship(self) -> int:
        """Sends the whole lines that stand after the last acknowledged place; how many."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        lines = [line for line in whole.splitlines() if line.strip()]
        if not lines:
            return 0
        if self._producer is None:
            self._producer = self._connect()
        sends = [self._producer.send(self._event(orjson.loads(line))) for line in lines]
        for send in sends:
            try:
                send.result(_ACK_S)
            except TimeoutError as error:
                raise Transient("the broker does not acknowledge events") from error
            except Poison as error:
                self._log.warning("an event was refused", error=str(error))
        self._place += len(whole)
        partial = self._shipped.with_suffix(".partial")
        partial.write_text(str(self._place))
        partial.replace(self._shipped)
        return len(lines)

    def _drop_producer(self) -> None:
        """Lets go of a producer; one that gave a message up may refuse all later ones."""
        if self._producer is not None:
            try:
                self._producer.close(0.0)
            except Transient as error:
                self._log.warning("events were not all acknowledged", error=str(error))
            self._producer = None

    def _event(self, line: Mapping[str, Any]) -> Outbound:
        event = TrainingEvent(
            run=self._run,
            attempt=line["attempt"],
            seq=line["seq"],
            type=line["type"],
            payload_json=orjson.dumps(line).decode(),
            level=_LEVELS.get(line["type"], "info"),
            message=str(line.get("message", "")),
        )
        event.time.FromMilliseconds(int(line["time"] * 1000))
        return outbound(
            topics.TRAINING_EVENTS,
            self._run,
            event.SerializeToString(),
            type="shortstack.training.event",
            source="training",
            clock=self._clock,
            id=f"{self._run}/{line['attempt']}/{line['seq']}",
        )


@contextmanager
def shipping(shipper: EventShipper, stopping: threading.Event, clock: Clock) -> Iterator[None]:
    """Ships while the block runs; then waits for the last events, and for two seconds only where it shall stop."""
    shipper.start()
    try:
        yield
    finally:
        deadline = clock.monotonic() + _DRAIN_S
        while not shipper.finish(_DRAIN_STOPPED_S):
            if stopping.is_set() or clock.monotonic() > deadline:
                break
