"""Topics and offsets of Apache Kafka, as an administrator sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError
from kafka.structs import TopicPartition

from shortstack.core.errors import Fatal
from shortstack.streams.kafka_errors import CALL_MS
from shortstack.streams.limits import unknown_topic
from shortstack.streams.topics import Topic, TopicKind

__all__ = ["apply_topics", "group_lag"]

_QUORUM: Final = 3
"""Replicas from which on two must have a message before it counts as written."""


def apply_topics(admin: KafkaAdminClient, topics: Sequence[Topic], replication: int) -> list[str]:
    """See `Broker.apply`."""
    there = {found["name"]: len(found["partitions"]) for found in admin.describe_topics()}
    for topic in topics:
        if topic.kind is TopicKind.STATE and there.get(topic.name, topic.partitions) != 1:
            raise Fatal(
                f"state topic {topic.name} has {there.get(topic.name, topic.partitions)} partitions, not one",
                remedy="Its keys are spread, so its order is lost: delete it, and the state with it, or restore it.",
            )
    missing = [topic for topic in topics if topic.name not in there]
    if missing:
        wanted = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": replication,
                "configs": _configs(topic, replication),
            }
            for topic in missing
        }
        admin.create_topics(wanted, timeout_ms=CALL_MS, wait_for_metadata=True)
    lines = [f"created {topic.name} ({topic.partitions} partitions, {replication} replicas)" for topic in missing]
    return lines + _configure(admin, [topic for topic in topics if topic.name in there], replication)


def _configs(topic: Topic, replication: int) -> dict[str, str]:
    return topic.configs | ({"min.insync.replicas": "2"} if replication >= _QUORUM else {})


def _configure(admin: KafkaAdminClient, topics: Sequence[Topic], replication: int) -> list[str]:
    """Sets the declared configs where they differ."""
    if not topics:
        return []
    wanted = {topic.name: _configs(topic, replication) for topic in topics}
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, list(configs)) for name, configs in wanted.items()]
    found: dict[str, dict[str, Any]] = admin.describe_configs(asked, config_filter="all")["topic"]
    changes: dict[str, dict[str, str]] = {}
    for name, configs in wanted.items():
        differing = {key: value for key, value in configs.items() if found[name].get(key, {}).get("value") != value}
        if differing:
            changes[name] = differing
    if changes:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, diff) for name, diff in changes.items()])
    return [
        f"configured {name} ({', '.join(f'{key}={value}' for key, value in sorted(diff.items()))})"
        for name, diff in changes.items()
    ]


def group_lag(admin: KafkaAdminClient, group: str, topics: Sequence[str]) -> int:
    """See `Broker.lag`."""
    there = {found["name"]: len(found["partitions"]) for found in admin.describe_topics(list(topics))}
    for topic in topics:
        if not there.get(topic):
            raise unknown_topic(topic)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(there[topic])]
    ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST), timeout_ms=CALL_MS)
    committed = _committed(admin, group, partitions)
    # -1 stands for a partition that was never committed: the group begins at the earliest message.
    return sum(max(0, ends[p].offset - max(0, committed[p].offset)) for p in partitions)


def _committed(admin: KafkaAdminClient, group: str, partitions: list[TopicPartition]) -> dict[TopicPartition, Any]:
    """Offsets of ``group``; a broker that has just started makes its topic of offsets at the first question."""
    deadline = time.monotonic() + CALL_MS / 1000
    while True:
        try:
            found: dict[TopicPartition, Any] = admin.list_group_offsets({group: partitions})[group]
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return found
