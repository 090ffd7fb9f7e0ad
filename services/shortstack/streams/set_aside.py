"""Dead letters of a controller, which reads its requests from the beginning at every start: each is written once."""

from __future__ import annotations

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison
from shortstack.core.telemetry import Telemetry
from shortstack.streams.broker import Broker, Delivery
from shortstack.streams.dead_letters import dead_letter, letter_id
from shortstack.streams.envelope import header
from shortstack.streams.outbox import Outbox
from shortstack.streams.topics import Topic, dead_letters

__all__ = ["SetAside"]

_POLL_S = 0.1


class SetAside:
    """Writes what cannot be understood to the topic's dead letters, unless it stands there already.

    Args:
        topic: of the requests.
        group: name of the controller, in the letters.
    """

    def __init__(self, broker: Broker, topic: Topic, group: str, telemetry: Telemetry, clock: Clock) -> None:
        self._topic, self._group, self._telemetry, self._clock = topic, group, telemetry, clock
        self._known: set[str | None] = set()
        self._outbox = Outbox(broker)
        reader = broker.reader([dead_letters(topic).name])
        try:
            while not reader.caught_up():
                self._known |= {header(letter, "ce_id") for letter in reader.poll(_POLL_S)}
        finally:
            reader.close()

    def holds(self, delivery: Delivery) -> bool:
        """Whether a message has been set aside, now or before this start."""
        return letter_id(delivery) in self._known

    def put(self, delivery: Delivery, error: Exception) -> None:
        """Sets a message aside and goes on; the log has it every time."""
        problem = error if isinstance(error, Poison) else Poison(f"not a request: {type(error).__name__}: {error}")
        self._telemetry.log.error("request set aside", place=delivery.place, error=str(problem))
        letter = dead_letter(delivery, problem, 1, group=self._group, clock=self._clock)
        name = dict(letter.headers)["ce_id"].decode()
        if name not in self._known:
            self._known.add(name)
            self._outbox.send(letter)
            self._telemetry.metrics.dead_letters.labels(letter.topic).inc()

    def close(self, timeout_s: float) -> None:
        """Sends what is under way."""
        self._outbox.close(timeout_s)
