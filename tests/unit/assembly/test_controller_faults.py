"""What the dataset controller does about poison, crashes, late messages and failures that do not go away."""

from __future__ import annotations

import threading

import pytest
from tests.unit.assembly.ledgers import accepted, announced, publication, segment
from tests.unit.assembly.worlds import World, publish, state_is, turn_until

from shortstack.assembly.controller import DatasetController
from shortstack.assembly.plan import AssemblyPlan
from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.streams import topics
from shortstack.streams.broker import Outbound


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        (topics.DATASETS_PUBLICATIONS, b"\xff not protobuf"),
        (topics.DATASETS_PUBLICATIONS, b""),
        (topics.RECORDS_FORMATTED, b"\xff not protobuf"),
        (topics.RECORDS_FORMATTED, b""),
        (topics.DATASETS_COMMANDS, b"{not json"),
        (topics.DATASETS_COMMANDS, b"[]"),
        (topics.DATASETS_COMMANDS, b'{"kind": "accept"}'),
        (topics.DATASETS_COMMANDS, b'{"kind": "drop", "publication": "pub-faq", "attempt": 1, "at": "now"}'),
    ],
)
def test_poison_is_set_aside_once_and_the_next_message_flows(world: World, topic: topics.Topic, value: bytes) -> None:
    world.raw(Outbound(topic.name, b"key", value))
    publish(world, ["a"])
    for _ in range(2):
        with world.controller() as controller:
            turn_until(controller, state_is(ds.DATASET_STATE_READY))

    (letter,) = world.on(topics.dead_letters(topic))
    assert (letter.value or b"") == value
    headers = dict(letter.headers)
    assert headers["dlq-topic"] == topic.name.encode()
    assert headers["dlq-message"]


def test_deleting_drops_the_text_before_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two must leave a dataset that is still to be deleted, not text that nobody looks for."""
    made = publish(world, ["a"])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        world.command("delete", made)

        def away(prefix: str) -> int:
            raise Transient("the object store is away")

        monkeypatch.setattr(world.blobs, "delete_prefix", away)
        with pytest.raises(Transient):
            turn_until(controller, state_is(ds.DATASET_STATE_DELETED))
    monkeypatch.undo()
    with world.controller() as again:
        turn_until(again, state_is(ds.DATASET_STATE_DELETED))
    assert world.blobs.keys() == []


def test_deleting_waits_for_an_assembly_under_way(world: World) -> None:
    begun, go = threading.Event(), threading.Event()

    def pause(plan: AssemblyPlan) -> None:
        begun.set()
        assert go.wait(20)

    world.before = pause
    made = publish(world, ["a"])
    with world.controller() as controller:
        turn_until(controller, lambda _: begun.is_set())
        world.command("delete", made)
        for _ in range(5):
            controller.turn()
        go.set()
        turn_until(controller, lambda _: world.finished == 1)
        turn_until(controller, state_is(ds.DATASET_STATE_DELETED))
    assert world.blobs.keys() == []


def test_a_segment_that_comes_after_the_deletion_is_dropped_too(world: World) -> None:
    made = publication()
    world.event(accepted(made))
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_ACCEPTED))
        world.command("delete", made)
        turn_until(controller, state_is(ds.DATASET_STATE_DELETED))
        world.entry(segment(world.blobs, made, 0, 0, ["late"]))
        turn_until(controller, lambda _: not world.blobs.keys())
        said = world.count(topics.DATASETS_EVENTS)
    with world.controller() as again:
        for _ in range(3):
            again.turn()
    assert world.count(topics.DATASETS_EVENTS) == said


def settled(controller: DatasetController, world: World) -> ds.DatasetSnapshot:
    """Turns, with the clock running on, until assembling is given up."""

    def failed(snapshots: dict[str, ds.DatasetSnapshot]) -> bool:
        world.clock.advance(60)
        return state_is(ds.DATASET_STATE_FAILED)(snapshots)

    turn_until(controller, failed)
    return controller.snapshots()["pub-faq"]


def test_an_assembly_that_never_works_fails_by_name_and_can_be_retried(world: World) -> None:
    def broken(plan: AssemblyPlan) -> None:
        raise Fatal("object does not have the sha256 that the ledger names", remedy="Send it again.")

    world.before = broken
    publish(world, ["a"])
    with world.controller() as controller:
        snapshot = settled(controller, world)
    assert snapshot.code == "cannot_assemble"
    assert "sha256" in snapshot.message
    assert "Send it again." in snapshot.remedy
    assert 1 < len(world.assembled) < 10


def test_an_assembly_of_bad_input_is_not_tried_again(world: World) -> None:
    def broken(plan: AssemblyPlan) -> None:
        raise Poison("there is no object segments/x")

    world.before = broken
    publish(world, ["a"])
    with world.controller() as controller:
        assert "segments/x" in settled(controller, world).message
    assert len(world.assembled) == 1


def test_an_object_store_that_is_away_fails_nothing(world: World) -> None:
    def away(plan: AssemblyPlan) -> None:
        if len(world.assembled) < 12:
            raise Transient("the object store is away")

    world.before = away
    publish(world, ["a"])

    def ready(snapshots: dict[str, ds.DatasetSnapshot]) -> bool:
        world.clock.advance(60)
        return state_is(ds.DATASET_STATE_READY)(snapshots)

    with world.controller() as controller:
        turn_until(controller, ready)


def test_an_acceptance_that_is_read_before_its_publication_counts(world: World) -> None:
    made = publication()
    with world.controller() as controller:
        world.command("accept", made)
        controller.turn()
        world.event(accepted(made))
        world.event(announced(made, 0, 31))
        world.entry(segment(world.blobs, made, 0, 0, ["a", *[""] * 30]))
        turn_until(controller, state_is(ds.DATASET_STATE_READY))


MIXED = {"name": "default", "mix": [{"dataset": "general", "factor": 1.0}]}


def general(world: World, text: str, attempt: int = 1) -> None:
    made = publication(name="general", attempt=attempt)
    world.event(accepted(made))
    world.event(announced(made, 0, 1))
    world.entry(segment(world.blobs, made, 0, attempt * 10 - 10, [text]))


def test_what_is_mixed_in_is_fixed_at_acceptance(world: World) -> None:
    """A newer version of the other dataset that appears in between changes nothing, here or after a restart."""
    general(world, "first")
    made = publication(recipe=MIXED)
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY, "pub-general"))
        first = controller.snapshots()["pub-general"].version
        world.event(accepted(made))
        turn_until(controller, state_is(ds.DATASET_STATE_ACCEPTED))
    with world.controller() as controller:
        newer = publication(name="general")
        newer.publication = "pub-newer"
        newer.accepted_at.GetCurrentTime()
        world.event(accepted(newer))
        world.event(announced(newer, 0, 1))
        world.entry(segment(world.blobs, newer, 0, 0, ["second"]))
        turn_until(controller, state_is(ds.DATASET_STATE_READY, "pub-newer"))
        world.event(announced(made, 0, 1))
        world.entry(segment(world.blobs, made, 0, 0, ["own"]))
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        snapshot = controller.snapshots()["pub-faq"]
    assert [(mix.dataset, mix.version, mix.factor) for mix in snapshot.mix] == [("general", first, 1.0)]
    assert [mix.version for mix in world.assembled[-1].mix] == [first]


def test_a_mix_that_never_was_ready_fails_the_dataset_by_name(world: World) -> None:
    publish(world, ["a"], recipe=MIXED)
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_FAILED))
        assert '"general"' in controller.snapshots()["pub-faq"].message


def test_a_finished_dataset_keeps_no_ledger_in_memory(world: World) -> None:
    publish(world, ["a"])
    for _ in range(2):
        with world.controller() as controller:
            turn_until(controller, state_is(ds.DATASET_STATE_READY))
            controller.turn()
            assert controller.segments("pub-faq") == []


def test_an_upload_that_failed_is_a_failed_dataset_with_its_reason(world: World) -> None:
    """It never had a publication; waiting alone says nothing about any dataset."""
    world.event(ds.PublicationEvent(waiting=ds.UploadWaiting(owner="default", dataset="faq", upload="u")))
    failed = ds.PublicationFailed(
        publication="pub-upload", attempt=1, owner="default", dataset="faq", error="missing: the part from 2 on"
    )
    with world.controller() as controller:
        controller.turn()
        assert controller.snapshots() == {}
        world.event(ds.PublicationEvent(failed=failed))
        turn_until(controller, state_is(ds.DATASET_STATE_FAILED, "pub-upload"))
        assert controller.snapshots()["pub-upload"].message == "missing: the part from 2 on"


def test_a_hiccup_while_a_mix_is_written_down_delays_its_assembly_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    general(world, "first")
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY, "pub-general"))
        real, refusals = controller._writer.put, iter([Transient("the broker is away")])

        def put(key: str, message: ds.DatasetSnapshot) -> bool:
            if message.state == ds.DATASET_STATE_ASSEMBLING:
                for error in refusals:
                    raise error
            return real(key, message)

        monkeypatch.setattr(controller._writer, "put", put)
        publish(world, ["own"], recipe=MIXED)
        with pytest.raises(Transient):
            turn_until(controller, state_is(ds.DATASET_STATE_READY))
        turn_until(controller, state_is(ds.DATASET_STATE_READY))


def test_a_dataset_too_large_to_remember_fails_by_name_and_others_go_on(world: World) -> None:
    large = publication(
        name="large", license="x" * (2 * 1024 * 1024 - 3000), train_json='{"note":"' + "y" * 1200 + '"}'
    )
    world.event(accepted(large))
    for _ in range(2):
        publish(world, ["a"])
        with world.controller() as controller:
            turn_until(controller, state_is(ds.DATASET_STATE_FAILED, "pub-large"))
            turn_until(controller, state_is(ds.DATASET_STATE_READY))
            snapshot = controller.snapshots()["pub-large"]
    assert (snapshot.code, snapshot.publication.dataset) == ("too_large", "large")
    assert "in parts" in snapshot.remedy


def test_a_stalled_dataset_of_many_sources_names_a_few_and_counts_the_rest(world: World) -> None:
    world.event(accepted(publication(sources=500)))
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_ACCEPTED))
        world.clock.advance(901)
        turn_until(controller, state_is(ds.DATASET_STATE_STALLED))
        message = controller.snapshots()["pub-faq"].message
    assert "faq-4.jsonl not read to its end and 495 more" in message


def test_of_wishes_without_end_the_newest_are_remembered(world: World) -> None:
    publish(world, ["a"])
    for number in range(250):
        world.event(accepted(publication(train_json=f'{{"lora_r":{number}}}')))
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        wishes = controller.snapshots()["pub-faq"].wishes
    assert [wish.train_json for wish in wishes] == [f'{{"lora_r":{number}}}' for number in range(50, 250)]


def test_a_dataset_that_was_held_for_longer_than_topics_remember_is_accepted_and_read_again(world: World) -> None:
    answers = ["a", *[""] * 30]
    made = publish(world, answers)
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_HELD))
    world.broker.expire(topics.DATASETS_PUBLICATIONS.name)
    world.broker.expire(topics.RECORDS_FORMATTED.name)
    with world.controller() as controller:
        world.clock.advance(901)
        controller.turn()
        assert controller.snapshots()["pub-faq"].state == ds.DATASET_STATE_HELD
        world.command("accept", made)
        turn_until(controller, state_is(ds.DATASET_STATE_STALLED))
        snapshot = controller.snapshots()["pub-faq"]
        assert "held for longer than the topics remember" in snapshot.message
        assert "shortstack datasets retry faq" in snapshot.remedy
        publish(world, answers)  # as ingestion and formatting do when it is retried
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
