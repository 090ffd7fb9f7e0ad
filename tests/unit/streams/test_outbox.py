"""What is sent into an outage that outlasts a producer's patience arrives after it, once and in order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.polling import until

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal, Poison, ShortstackError, Transient
from shortstack.streams.broker import Outbound, Position
from shortstack.streams.memory import MemoryBroker, MemoryProducer
from shortstack.streams.notices import Notices
from shortstack.streams.outbox import Outbox
from shortstack.streams.topics import DATASETS_READY

AWAY = Transient("not delivered within 30 s")


class Impatient(MemoryProducer):
    """Gives up at once while the broker is away, and refuses everything from then on."""

    broken: ShortstackError | None = None

    def send(self, message: Outbound) -> Future[Position]:
        if self._broker.away:
            self.broken = AWAY
        if self.broken is None:
            return super().send(message)
        failed: Future[Position] = Future()
        failed.set_exception(self.broken)
        return failed

    def flush(self, timeout_s: float) -> None:
        if self.broken is not None:
            raise self.broken


class ImpatientBroker(MemoryBroker):
    """One whose producers give up, and that makes none while it is away."""

    def producer(self) -> MemoryProducer:
        if self.away:
            raise AWAY
        return Impatient(self)


@pytest.fixture
def broker() -> MemoryBroker:
    return ImpatientBroker(SystemClock())


def values(broker: MemoryBroker) -> list[bytes | None]:
    return [message.value for message in broker.messages(DATASETS_READY.name)]


def test_what_was_given_up_in_an_outage_arrives_after_it_in_order(broker: MemoryBroker) -> None:
    outbox = Outbox(broker, retry_s=0.01)
    send: Callable[[bytes], None] = lambda value: outbox.send(Outbound(DATASETS_READY.name, b"key", value))  # noqa: E731
    send(b"before")
    broker.set_away(True)
    send(b"1")
    send(b"2")
    broker.set_away(False)
    until(lambda: values(broker) == [b"before", b"1", b"2"], lambda: values(broker))
    send(b"after")
    outbox.close(5)
    assert values(broker) == [b"before", b"1", b"2", b"after"]


def test_a_notice_of_an_outage_is_told_once(broker: MemoryBroker) -> None:
    now = Timestamp()
    now.GetCurrentTime()
    notices = Notices(broker, DATASETS_READY, "assembly", SystemClock())
    broker.set_away(True)
    notices.tell("one/1", "one", b"one", now)
    notices.tell("one/1", "one", b"one", now)
    broker.set_away(False)
    until(lambda: values(broker) == [b"one"], lambda: values(broker))
    notices.close(5)
    assert values(broker) == [b"one"]


def test_what_the_broker_refuses_for_good_ends_who_goes_on_sending(broker: MemoryBroker) -> None:
    outbox = Outbox(broker, retry_s=0.01)
    outbox.send(Outbound(DATASETS_READY.name, b"key", b"x" * 3_000_000))
    with pytest.raises(Fatal, match="topics apply") as raised:
        outbox.send(Outbound(DATASETS_READY.name, b"key", b"1"))
    assert not isinstance(raised.value, Poison)
    outbox.close(5)


class Forgetful(Impatient):
    """Gives up what comes while the broker is away, and takes what comes later."""

    def send(self, message: Outbound) -> Future[Position]:
        self.broken = None
        return super().send(message)


class ForgetfulBroker(ImpatientBroker):
    """One whose producers go on after an outage."""

    def producer(self) -> MemoryProducer:
        return Forgetful(self)


def notice(value: bytes) -> Outbound:
    return Outbound(DATASETS_READY.name, b"key", value)


def test_what_is_sent_while_an_earlier_one_waits_does_not_overtake_it() -> None:
    broker = ForgetfulBroker(SystemClock())
    outbox = Outbox(broker, retry_s=0.3)
    broker.set_away(True)
    outbox.send(notice(b"1"))
    broker.set_away(False)
    outbox.send(notice(b"2"))
    until(lambda: len(values(broker)) == 2, lambda: values(broker))
    assert values(broker) == [b"1", b"2"]
    outbox.close(5)


def test_closing_sends_once_more_what_failed(broker: MemoryBroker) -> None:
    outbox = Outbox(broker, retry_s=600)
    broker.set_away(True)
    outbox.send(notice(b"1"))
    outbox.send(notice(b"2"))
    broker.set_away(False)
    outbox.close(5)
    assert values(broker) == [b"1", b"2"]


@pytest.mark.parametrize("forgets", [False, True])
def test_closing_tells_what_is_lost(forgets: bool) -> None:
    broker = (ForgetfulBroker if forgets else ImpatientBroker)(SystemClock())
    outbox = Outbox(broker, retry_s=600)
    broker.set_away(True)
    outbox.send(notice(b"1"))
    with pytest.raises(Transient):
        outbox.close(0.1)


class Forbidding(ImpatientBroker):
    """Takes no login any more once it has made a producer."""

    made = 0

    def producer(self) -> MemoryProducer:
        self.made += 1
        if self.made > 1:
            raise Fatal("the password is wrong")
        return Impatient(self)


def refuses(outbox: Outbox) -> bool:
    try:
        outbox.send(notice(b"again"))
    except Fatal:
        return True
    return False


def test_a_login_that_is_refused_for_good_ends_who_goes_on_sending() -> None:
    broker = Forbidding(SystemClock())
    outbox = Outbox(broker, retry_s=0.01)
    broker.set_away(True)
    outbox.send(notice(b"1"))
    until(lambda: refuses(outbox), "it is told")


class Unauthorised(MemoryProducer):
    """May not write."""

    def send(self, message: Outbound) -> Future[Position]:
        failed: Future[Position] = Future()
        failed.set_exception(Fatal("TopicAuthorizationFailedError"))
        return failed


def test_a_topic_that_may_not_be_written_ends_who_goes_on_sending(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "producer", lambda: Unauthorised(broker))
    outbox = Outbox(broker, retry_s=0.01)
    outbox.send(notice(b"1"))
    with pytest.raises(Fatal, match="TopicAuthorizationFailedError"):
        outbox.send(notice(b"2"))
