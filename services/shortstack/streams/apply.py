"""Creates the declared topics and sets their configs: ``python -m shortstack.streams.apply``.

Safe to repeat; prints a line for each change. In a cluster, Helm runs it as a job.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shortstack.core.config import ServiceConfig
from shortstack.core.identity import check_name
from shortstack.core.lifecycle import run_service
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.topics import TOPICS, dead_letters, ingest_topic

__all__ = ["main"]


def main(owners: Sequence[str] = ()) -> int:
    """Applies every declared topic, and the ingest topics of ``owners``; the exit code."""

    def run() -> int:
        config = ServiceConfig()
        own = [ingest_topic(check_name(owner, param="owner")) for owner in owners]
        with KafkaBroker.connect(config) as broker:
            broker.ready(config.kafka_bootstrap_timeout_s)
            topics = [*TOPICS.values(), *own, *(dead_letters(topic) for topic in own)]
            for line in broker.apply(topics, replication=config.kafka_replication):
                sys.stdout.write(f"{line}\n")
        return 0

    return run_service(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
