"""The dataset controller on an in-memory broker: from entries to a ready dataset, and through restarts."""

from __future__ import annotations

import itertools

import pytest
from tests.unit.assembly.ledgers import accepted, announced, publication, segment
from tests.unit.assembly.worlds import World, publish, state_is, turn_until

from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.streams import topics


@pytest.fixture
def world() -> World:
    return World()


def test_a_whole_dataset_becomes_ready_and_is_announced_once(world: World) -> None:
    publish(world, ["a", "b", "a", ""])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        counts = controller.snapshots()["pub-faq"].counts

    assert world.metrics.registry.get_sample_value("shortstack_datasets", {"state": "ready"}) == 1
    assert (counts.records, counts.kept, counts.rejected, counts.duplicates, counts.written) == (4, 3, 1, 1, 2)
    assert world.count(topics.DATASETS_READY) == 1


def test_a_ready_dataset_says_which_formats_its_records_name(world: World) -> None:
    made = publication()
    world.event(accepted(made))
    world.event(announced(made, 0, 1))
    world.entry(segment(world.blobs, made, 0, 0, ["a"], prompt_format="human_bot"))
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        snapshot = controller.snapshots()["pub-faq"]

    assert (list(snapshot.row_formats), snapshot.with_tools) == (["human_bot"], 0)


def test_a_restart_on_a_finished_stack_does_nothing(world: World) -> None:
    publish(world, ["a", "b"])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
    before = len(world.assembled), world.count(topics.DATASETS_READY)

    with world.controller() as again:
        for _ in range(5):
            again.turn()
        assert again.snapshots()["pub-faq"].state == ds.DATASET_STATE_READY

    assert (len(world.assembled), world.count(topics.DATASETS_READY)) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_topics_have_no_common_order(world: World, order: tuple[int, ...]) -> None:
    made = publication()
    steps = [
        lambda: world.event(accepted(made)),
        lambda: world.event(announced(made, 0, 2)),
        lambda: world.entry(segment(world.blobs, made, 0, 0, ["a", "b"])),
    ]
    with world.controller() as controller:
        for number in order:
            steps[number]()
            controller.turn()
        turn_until(controller, state_is(ds.DATASET_STATE_READY))


def test_held_until_accepted(world: World) -> None:
    made = publish(world, ["a", *[""] * 30])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_HELD))
        assert world.assembled == []
        command = {"kind": "accept", "owner": "default", "publication": made.publication, "attempt": 1}
        world.send(topics.DATASETS_COMMANDS, "faq", command)
        turn_until(controller, state_is(ds.DATASET_STATE_READY))


def test_nothing_usable_fails_and_is_never_assembled(world: World) -> None:
    publish(world, ["", ""])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_FAILED))
        assert controller.snapshots()["pub-faq"].code == "no_usable_record"
    assert world.assembled == []


def test_an_incomplete_dataset_stalls_by_name_and_goes_on_when_the_rest_comes(world: World) -> None:
    made = publication()
    world.event(accepted(made))
    world.event(announced(made, 0, 4))
    world.entry(segment(world.blobs, made, 0, 0, ["a", "b"]))
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_FORMATTING))
        world.clock.advance(901)
        turn_until(controller, state_is(ds.DATASET_STATE_STALLED))
        assert "source 0 records 2-3" in controller.snapshots()["pub-faq"].message
        world.entry(segment(world.blobs, made, 0, 2, ["c", "d"]))
        turn_until(controller, state_is(ds.DATASET_STATE_READY))


def test_another_wish_on_a_ready_dataset_is_added_and_nothing_is_assembled_again(world: World) -> None:
    publish(world, ["a"], train_json='{"lora_r":8}')
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        for _ in range(2):
            world.event(accepted(publication(train_json='{"lora_r":16}')))
        turn_until(controller, lambda s: len(s["pub-faq"].wishes) == 2)
        assert controller.snapshots()["pub-faq"].state == ds.DATASET_STATE_READY
    assert len(world.assembled) == 1


def test_a_deleted_dataset_loses_its_text(world: World) -> None:
    made = publish(world, ["a"])
    with world.controller() as controller:
        turn_until(controller, state_is(ds.DATASET_STATE_READY))
        manifest = controller.snapshots()["pub-faq"].manifest
        command = {"kind": "delete", "owner": "default", "publication": made.publication, "attempt": 1, "at": "now"}
        world.send(topics.DATASETS_COMMANDS, "faq", command)
        turn_until(controller, state_is(ds.DATASET_STATE_DELETED))
        controller.turn()
    assert not world.blobs.exists(manifest)
