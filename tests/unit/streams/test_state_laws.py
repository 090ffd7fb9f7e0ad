"""Laws of state topics, over any schedule of writers, late values and compactions."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal
from shortstack.messages.v1.dataset_pb2 import DatasetSnapshot
from shortstack.messages.v1.state_pb2 import StateEnvelope
from shortstack.streams.envelope import outbound
from shortstack.streams.fold import WRITER_KEY, StateFold
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.state import StateWriter
from shortstack.streams.topics import DATASETS_STATE

KEYS = st.sampled_from(["a", "b", "c"])
TEXTS = st.integers(0, 5).map(str)


class Writers(RuleBasedStateMachine):
    """Writers come and go; what the newest was told is what everyone reads."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.broker = MemoryBroker(self.clock)
        self.told: dict[str, str] = {}
        self.writers: list[StateWriter[DatasetSnapshot]] = []
        self.revisions: dict[str, int] = {}

    @initialize()
    def first(self) -> None:
        self.open_another()

    @property
    def newest(self) -> StateWriter[DatasetSnapshot]:
        return self.writers[-1]

    def fold(self) -> StateFold[DatasetSnapshot]:
        fold: StateFold[DatasetSnapshot] = StateFold(DatasetSnapshot)
        for delivery in self.broker.messages(DATASETS_STATE.name):
            fold.apply(delivery)
        return fold

    @rule()
    def open_another(self) -> None:
        writer: StateWriter[DatasetSnapshot] = StateWriter(self.broker, DATASETS_STATE, DatasetSnapshot, self.clock)
        writer.open()
        self.writers.append(writer)

    @rule(key=KEYS, text=TEXTS)
    def put(self, key: str, text: str) -> None:
        assert self.newest.put(key, DatasetSnapshot(message=text)) == (self.told.get(key) != text)
        self.told[key] = text

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.newest.delete(key) == (key in self.told)
        self.told.pop(key, None)

    @precondition(lambda self: len(self.writers) > 1)
    @rule(key=KEYS, text=TEXTS, data=st.data())
    def put_by_a_replaced_writer(self, key: str, text: str, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.writers[:-1]))
        try:
            changed = writer.put(key, DatasetSnapshot(message=text))
        except Fatal:
            return
        assert not changed, "only a put that had nothing to write may pass"

    @rule(key=KEYS, text=TEXTS, epoch=st.integers(0, 9), revision=st.integers(0, 9))
    def late_value(self, key: str, text: str, epoch: int, revision: int) -> None:
        epoch = min(epoch, self.newest.epoch - 1)
        payload = DatasetSnapshot(message=text).SerializeToString()
        self.append(key, StateEnvelope(epoch=epoch, revision=revision, payload=payload).SerializeToString())

    @rule(key=KEYS, text=TEXTS)
    def late_value_of_its_own(self, key: str, text: str) -> None:
        """What an abandoned producer of the same writer still delivers, after its successor wrote the key."""
        found = self.fold().snapshots.get(key)
        if found is not None and found.epoch == self.newest.epoch:
            payload = DatasetSnapshot(message=text).SerializeToString()
            envelope = StateEnvelope(epoch=found.epoch, revision=found.revision, payload=payload)
            self.append(key, envelope.SerializeToString())

    @rule(key=st.one_of(KEYS, st.just(WRITER_KEY)), junk=st.binary(max_size=8))
    def junk(self, key: str, junk: bytes) -> None:
        self.append(key, b"\xff\xff" + junk)  # a field number that needs more bytes, or a wire type that is none

    def append(self, key: str, value: bytes) -> None:
        message = outbound(DATASETS_STATE, key, value, type="test", source="test", clock=self.clock)
        self.broker.producer().send(message)

    @rule()
    def compact(self) -> None:
        """Compaction spares what is younger than an hour, in which the living writer has looked at its topic."""
        self.newest.check()
        self.broker.compact(DATASETS_STATE.name)

    @invariant()
    def everyone_reads_what_the_newest_was_told(self) -> None:
        if not self.writers:
            return
        fold = self.fold()
        assert {key: message.message for key, message in fold.live().items()} == self.told
        for key, found in fold.snapshots.items():
            assert found.revision >= self.revisions.get(key, 0), "revisions rise per key"
            self.revisions[key] = found.revision

    @invariant()
    def the_newest_writer_knows_it_too(self) -> None:
        if self.writers:
            assert {key: message.message for key, message in self.newest.latest.items()} == self.told


TestWriters = Writers.TestCase
TestWriters.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
