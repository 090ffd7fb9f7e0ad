from __future__ import annotations

import pytest

from shortstack.local.broker_faults import broker_fault


@pytest.mark.parametrize(
    ("line", "meaning", "remedy"),
    [
        ("java.io.IOException: No space left on device", "the disk is full", "Free some disk space"),
        ("java.net.BindException: Address already in use", "its port is taken", "SHORTSTACK_PORT_BASE"),
        ("KafkaException: Failed to acquire lock on file .lock in /x", "another broker runs", "shortstack down"),
        ("java.lang.OutOfMemoryError: Java heap space", "ran out of memory", "SHORTSTACK_KAFKA_HEAP_MB"),
    ],
)
def test_a_known_sign_becomes_a_reason_and_a_remedy(line: str, meaning: str, remedy: str) -> None:
    error = broker_fault("it ended with status 1", ["INFO starting", line, "INFO bye"], "kafka.log")
    assert meaning in error.what
    assert remedy in error.remedy
    assert error.where == "kafka.log"


def test_an_unknown_failure_quotes_the_first_error_of_the_log() -> None:
    lines = ["2026 [main] INFO hello", "2026 [main] ERROR quorum voters are odd", "2026 [main] ERROR second"]
    assert "quorum voters are odd" in broker_fault("it ended with status 1", lines, "kafka.log").what


def test_a_silent_death_is_said_as_such() -> None:
    assert "it said nothing" in broker_fault("it ended with status -9", [], "kafka.log").what
