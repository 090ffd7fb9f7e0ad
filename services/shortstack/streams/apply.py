"""Creates the declared topics and sets their configs: ``python -m shortstack.streams.apply [OWNER…]``.

Safe to repeat; prints a line for each change. It waits for Kafka for as long as it takes. In a cluster, Helm runs it as
a job, whose deadline, if any, is the only one.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from shortstack.core.clock import Clock, SystemClock
from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Transient
from shortstack.core.identity import check_name
from shortstack.core.lifecycle import run_service
from shortstack.streams.broker import Broker
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import TOPICS, Topic, dead_letters, ingest_topic

__all__ = ["apply_when_ready", "main", "topics_with"]

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 15.0


def main(owners: Sequence[str] = ()) -> int:
    """Applies every declared topic, and the ingest topics of ``owners``; the exit code."""

    def run() -> int:
        config = ServiceConfig()
        topics = topics_with(owners)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with KafkaBroker.connect(config) as broker:
            lines = apply_when_ready(broker, topics, config, SystemClock(), stop)
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return 0

    return run_service(run)


def topics_with(owners: Iterable[str]) -> list[Topic]:
    """Every declared topic, and the ingest topics of ``owners`` with their dead letters.

    Raises:
        Invalid: a name that no owner may have.
    """
    own = [ingest_topic(check_name(owner, param="owner")) for owner in owners]
    wanted = [*TOPICS.values(), *own, *(dead_letters(topic) for topic in own)]
    return list({topic.name: topic for topic in wanted}.values())


def apply_when_ready(
    broker: Broker, topics: Sequence[Topic], config: ServiceConfig, clock: Clock, stop: threading.Event
) -> list[str]:
    """Applies ``topics`` as soon as Kafka answers, saying on stderr what it waits for; a line for each change made.

    Raises:
        Transient: ``stop`` was set, and Kafka had not answered.
        Fatal: Kafka answers, and waiting would not help.
    """
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            broker.ready(config.kafka_bootstrap_timeout_s)
            return broker.apply(topics, replication=config.kafka_replication)
        except Transient as error:
            sys.stderr.write(f"waiting: {error}\n")
            sys.stderr.flush()
            if clock.wait(stop, wait_s):
                raise
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
