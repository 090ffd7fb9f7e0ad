"""A join that a poll gave up on is applied by a later one, also where its reason is forgotten on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from kafka.coordinator.base import Generation, MemberState
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.coordinator.heartbeat import Heartbeat
from kafka.future import Future
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.wakeup_notifier import WakeupNotifier

from shortstack.streams.kafka_joining import mend_joining

SHORT_MS, LONG_MS = 20, 10_000
METADATA = {"t": {0}}


class Leader(ConsumerCoordinator):  # type: ignore[misc]  # kafka-python has no types
    """A member that leads its group, on kafka-python's loop and without a broker: the group answers when told to."""

    def __init__(self, net: NetworkSelector) -> None:
        self.answer, self.applied = Future(), list[bytes]()
        self._net = net
        self._manager = SimpleNamespace(_net=net, call_soon=net.call_soon_with_future)
        self._manager.wait_for = MethodType(KafkaConnectionManager.wait_for, self._manager)
        self.config = {"group_id": "g", "api_version": (4, 0), "retry_backoff_ms": 1}
        self.heartbeat = Heartbeat(group_id="g")
        self._heartbeat_enabled, self._heartbeat_wakeup = True, WakeupNotifier(net)
        self._lock = threading.RLock()
        self._generation, self.state = Generation(1, "member", "cooperative-sticky"), MemberState.STABLE
        self.rejoin_needed = self.rejoining = False
        self._join_task = None
        self._subscription = SimpleNamespace(partitions_auto_assigned=lambda: True, subscription={"t"})
        self._joined_subscription = {"t"}
        self._metadata_snapshot = METADATA
        self._assignment_snapshot: dict[str, set[int]] = {}  # the topic's partitions became known

    async def ensure_coordinator_ready_async(self, timeout_ms: float | None = None) -> bool:
        return True

    def _maybe_start_heartbeat_loop(self) -> None:
        """Heartbeats play no part here."""

    async def _on_join_prepare_async(self, *_: Any, **__: Any) -> None:
        """Nothing is given up."""

    async def _do_join_and_sync_async(self) -> bytes:
        self.state = MemberState.REBALANCING
        self._assignment_snapshot = self._metadata_snapshot  # as `_perform_assignment` does
        return bytes(await self.answer)

    async def _on_join_complete_async(self, _generation: int, _member: str, _protocol: str, assignment: bytes) -> None:
        self.applied.append(assignment)

    def poll(self, timeout_ms: float | None = None) -> bool:
        return not self.need_rejoin() or bool(self.ensure_active_group(timeout_ms))


@pytest.fixture
def leader() -> Iterator[Leader]:
    mend_joining()
    net = NetworkSelector()
    net.start()
    yield Leader(net)
    net.close()


def test_a_join_that_outlives_its_poll_is_applied_by_the_next(leader: Leader) -> None:
    assert not leader.poll(SHORT_MS)
    assert not leader.poll(SHORT_MS)
    leader._net.call_soon_threadsafe(lambda: leader.answer.success(b"assigned"))
    assert leader.poll(LONG_MS)
    assert leader.applied == [b"assigned"]
    assert leader.state is MemberState.STABLE


def test_a_join_that_ends_between_two_polls_is_made_up_for(leader: Leader) -> None:
    assert not leader.poll(SHORT_MS)
    leader._net.run(lambda: leader.answer.success(b"assigned"))
    assert leader.poll(LONG_MS)
    assert leader.applied == [b"assigned"]


def test_a_join_that_was_applied_is_not_repeated(leader: Leader) -> None:
    leader.answer.success(b"assigned")
    assert leader.poll(LONG_MS)
    assert leader.poll(LONG_MS)
    assert leader.applied == [b"assigned"]
    assert not leader.need_rejoin()
