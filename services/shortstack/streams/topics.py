"""Every topic of the stack, declared once; ``shortstack topics apply`` creates them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shortstack.core.identity import DEFAULT_OWNER

__all__ = [
    "DATASETS_COMMANDS",
    "DATASETS_EVENTS",
    "DATASETS_INGEST",
    "DATASETS_PUBLICATIONS",
    "DATASETS_READY",
    "DATASETS_STATE",
    "MODELS_DEPLOYED",
    "MODELS_READY",
    "MODELS_REQUESTS",
    "MODELS_STATE",
    "RECORDS_FORMATTED",
    "RECORDS_RAW",
    "TOPICS",
    "TRAINING_EVENTS",
    "TRAINING_REQUESTS",
    "TRAINING_STATE",
    "Topic",
    "TopicKind",
    "dead_letters",
    "ingest_owner",
    "ingest_topic",
]

_HOUR_MS: Final = 3600 * 1000
_DAY_MS: Final = 24 * _HOUR_MS
_MIB: Final = 1024 * 1024


class TopicKind(StrEnum):
    """What a topic is for: a pipe, a notice board, or the system of record."""

    PIPE = "pipe"
    NOTICE = "notice"
    STATE = "state"
    DEAD_LETTERS = "dead letters"


@dataclass(frozen=True, slots=True)
class Topic:
    """A declared topic.

    Attributes:
        name: dots and hyphens only.
        key: what the key is, for the documents.
        value: what the value is, for the documents.
        kind: a state topic is compacted and has one partition for ever.
        partitions: for a new topic; an existing one is never grown by `topics apply`.
        retention_days: None for compacted topics.
        max_bytes: largest message.
    """

    name: str
    key: str
    value: str
    kind: TopicKind
    partitions: int = 1
    retention_days: int | None = 7
    max_bytes: int = _MIB

    @property
    def configs(self) -> dict[str, str]:
        """The broker's settings of this topic."""
        # The broker's clock decides which of two requests is newer, not the sender's.
        settings = {"max.message.bytes": str(self.max_bytes), "message.timestamp.type": "LogAppendTime"}
        if self.retention_days is None:
            # A replaced writer's late value must not erase the good one before the living writer has repaired it.
            return settings | {
                "cleanup.policy": "compact",
                "min.cleanable.dirty.ratio": "0.1",
                "min.compaction.lag.ms": str(_HOUR_MS),
            }
        return settings | {"cleanup.policy": "delete", "retention.ms": str(self.retention_days * _DAY_MS)}

    @property
    def content_type(self) -> str:
        """Media type of its values, for the CloudEvents header."""
        if "JSON" in self.value:
            return "application/json"
        return "application/vnd.apache.arrow.stream" if "Arrow" in self.value else "application/protobuf"


DATASETS_INGEST: Final = Topic(
    "datasets.ingest", "dataset", "publication request (JSON)", TopicKind.PIPE, 4, 7, _MIB + 64 * 1024
)
DATASETS_PUBLICATIONS: Final = Topic(
    "datasets.publications", "publication", "PublicationEvent", TopicKind.PIPE, 1, 30, 2 * _MIB
)
RECORDS_RAW: Final = Topic("records.raw", "batch id", "Arrow stream, schema record/1", TopicKind.PIPE, 4, 7, 2 * _MIB)
RECORDS_FORMATTED: Final = Topic("records.formatted", "publication", "BatchEntry", TopicKind.PIPE, 4, 30)
DATASETS_EVENTS: Final = Topic("datasets.events", "publication", "DatasetSnapshot", TopicKind.NOTICE, 1, 30, 2 * _MIB)
DATASETS_COMMANDS: Final = Topic("datasets.commands", "dataset", "accept, retry, delete (JSON)", TopicKind.PIPE)
DATASETS_STATE: Final = Topic(
    "datasets.state", "publication", "StateEnvelope of DatasetSnapshot", TopicKind.STATE, 1, None, 2 * _MIB
)
DATASETS_READY: Final = Topic("datasets.ready", "publication", "DatasetSnapshot", TopicKind.NOTICE, 1, 30, 2 * _MIB)
TRAINING_REQUESTS: Final = Topic("training.requests", "job", "submit or cancel (JSON)", TopicKind.PIPE)
TRAINING_STATE: Final = Topic(
    "training.state", "job/ID or run/ID", "StateEnvelope of TrainingRecord", TopicKind.STATE, 1, None
)
TRAINING_EVENTS: Final = Topic("training.events", "run", "TrainingEvent", TopicKind.NOTICE, 1, 30)
MODELS_READY: Final = Topic("models.ready", "run", "RunSnapshot", TopicKind.NOTICE, 1, 30)
MODELS_REQUESTS: Final = Topic("models.requests", "model or alias", "deploy, traffic, withdraw (JSON)", TopicKind.PIPE)
MODELS_STATE: Final = Topic(
    "models.state", "model/NAME or alias/NAME", "StateEnvelope of ModelRecord", TopicKind.STATE, 1, None
)
MODELS_DEPLOYED: Final = Topic("models.deployed", "model or alias", "ModelRecord", TopicKind.NOTICE, 1, 30)


def dead_letters(topic: Topic) -> Topic:
    """Where ``topic``'s poison goes; it takes the largest message and the headers that say what was wrong."""
    return Topic(f"{topic.name}.dlq", topic.key, topic.value, TopicKind.DEAD_LETTERS, 1, 7, topic.max_bytes + 64 * 1024)


_CONSUMED: Final = (
    DATASETS_INGEST,
    DATASETS_PUBLICATIONS,
    RECORDS_RAW,
    RECORDS_FORMATTED,
    DATASETS_COMMANDS,
    TRAINING_REQUESTS,
    MODELS_REQUESTS,
)

TOPICS: Final[dict[str, Topic]] = {
    topic.name: topic
    for topic in (
        *_CONSUMED,
        DATASETS_EVENTS,
        DATASETS_STATE,
        DATASETS_READY,
        TRAINING_STATE,
        TRAINING_EVENTS,
        MODELS_READY,
        MODELS_STATE,
        MODELS_DEPLOYED,
        *(dead_letters(topic) for topic in _CONSUMED),
    )
}


def ingest_topic(owner: str) -> Topic:
    """The ingest topic of ``owner``; the topic is the identity, so an ACL on it is the login."""
    if owner == DEFAULT_OWNER:
        return DATASETS_INGEST
    base = DATASETS_INGEST
    return Topic(
        f"{base.name}.{owner}", base.key, base.value, base.kind, base.partitions, base.retention_days, base.max_bytes
    )


def ingest_owner(topic: str) -> str:
    """Owner of what stands on ``topic``, an ingest topic."""
    return topic.removeprefix(DATASETS_INGEST.name).removeprefix(".") or DEFAULT_OWNER
