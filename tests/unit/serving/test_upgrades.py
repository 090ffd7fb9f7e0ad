"""An upgrade of the servers' template of which a part fails: the rest goes on, and everybody is told."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.serving.deployed import BASE, Deployed
from tests.unit.serving.world import Running, World

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.deployments.condition import CRASHES
from shortstack.serving.deployments.rollout import Terms
from shortstack.serving.rollout import Held, NotReady

TERMS = Terms(drain_s=30.0, patience_s=600.0)
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
EARLIER = "still served by the server of the earlier template: "
ALONE = {"serving_watch_s": 0.5}


@pytest.fixture
def cluster(tmp_path: Path) -> Deployed:
    """A base is served."""
    cluster = Deployed(tmp_path, TERMS)
    cluster.with_base()
    return cluster


def upgraded(cluster: Deployed, *held: Held) -> str:
    """Another template: the base's new server is ready, the first model's is not; that one's name."""
    cluster.upgrade("2")
    before = set(cluster.servers())
    cluster.look(*held)
    new = set(cluster.servers()) - before
    (base,) = [name for name in new if is_base(cluster, name)]
    cluster.run(base)
    (other,) = new - {base}
    cluster.look(*held)
    return other


def follow(cluster: Deployed, *held: Held) -> list[Held]:
    """A look at each model, as the routes are after it."""
    cluster.look(*held)
    return [Held(one.export, cluster.rollout.reload(one.export, one.url)) for one in held]


def crash(cluster: Deployed, name: str) -> None:
    cluster.kubernetes.crash(cluster.kubernetes.pod_of(name), "server", 1, times=CRASHES, message="KeyError: 'x'")
    cluster.clock.advance(1)


def refuse(cluster: Deployed, name: str) -> None:
    cluster.weights[cluster.env(name, "containers")["MODEL_ID"].removeprefix("/weights/")] = "other+"
    cluster.run(name)


def starve(cluster: Deployed, name: str) -> None:
    cluster.kubernetes.unschedulable(cluster.kubernetes.pod_of(name), NO_GPU)
    cluster.clock.advance(601)


WAYS = [(crash, "KeyError: 'x'"), (refuse, "in training it was"), (starve, "Insufficient nvidia.com/gpu")]


@pytest.mark.parametrize(("fail", "words"), WAYS)
def test_a_server_that_fails_lets_the_next_model_be_upgraded(cluster: Deployed, fail: Any, words: str) -> None:
    one, two = cluster.roll_out(cluster.export("a")), cluster.roll_out(cluster.export("b"))
    old, failing = cluster.server_of(one.export), upgraded(cluster, one, two)
    fail(cluster, failing)
    cluster.look(one, two)
    before = set(cluster.servers())
    cluster.look(one, two)
    (coming,) = (set(cluster.servers()) | before) - {old, failing} - others(cluster, one, two)
    cluster.run(coming)
    after = follow(cluster, one, two)
    assert after[0].url == one.url
    assert after[1].url == f"http://{coming}:8080"
    assert words in cluster.rollout.behind(one.url)
    assert cluster.rollout.behind(after[1].url) == ""


@pytest.mark.parametrize(("fail", "words"), WAYS)
def test_a_server_that_failed_goes_and_is_not_made_again(cluster: Deployed, fail: Any, words: str) -> None:
    one = cluster.roll_out(cluster.export("a"))
    old, failing = cluster.server_of(one.export), upgraded(cluster, one)
    fail(cluster, failing)
    cluster.look(one)
    cluster.clock.advance(28)
    cluster.look(one)
    assert failing in cluster.servers()
    for _ in range(5):
        cluster.clock.advance(10)
        assert follow(cluster, one) == [one]
    assert failing not in cluster.servers()
    assert old in cluster.servers()
    assert words in cluster.rollout.behind(one.url)


def test_another_template_or_a_service_started_again_tries_anew(cluster: Deployed) -> None:
    one = cluster.roll_out(cluster.export("a"))
    failing = upgraded(cluster, one)
    crash(cluster, failing)
    for _ in range(2):
        cluster.look(one)
        cluster.clock.advance(40)
    assert failing not in cluster.servers()
    cluster.restarted()
    cluster.look(one)
    assert failing in cluster.servers()
    crash(cluster, failing)
    cluster.look(one)
    before = set(cluster.servers())
    cluster.upgrade("3")
    cluster.look(one)
    new = set(cluster.servers()) - before
    assert len(new) == 2  # the base's and the model's
    for name in new:
        cluster.run(name)
    cluster.look(one)
    (after,) = follow(cluster, one)
    assert after.url in {f"http://{name}:8080" for name in new}


def test_what_waits_is_told_for_the_one_that_starts_and_the_one_behind_it(cluster: Deployed) -> None:
    one, two = cluster.roll_out(cluster.export("a")), cluster.roll_out(cluster.export("b"))
    assert cluster.rollout.behind(one.url) == ""
    coming = upgraded(cluster, one, two)
    cluster.kubernetes.unschedulable(cluster.kubernetes.pod_of(coming), NO_GPU)
    assert follow(cluster, one, two) == [one, two]
    assert "Insufficient nvidia.com/gpu" in cluster.rollout.behind(one.url)
    assert f"{coming} is started first" in cluster.rollout.behind(two.url)


def test_a_base_stays_with_its_old_server_while_the_new_one_waits_and_when_it_is_given_up(cluster: Deployed) -> None:
    (old,) = cluster.servers()
    url = cluster.base_url
    cluster.upgrade("2")
    cluster.look()
    (new,) = set(cluster.servers()) - {old}
    cluster.kubernetes.unschedulable(cluster.kubernetes.pod_of(new), NO_GPU)
    cluster.look()
    assert cluster.base_url == url
    assert "Insufficient nvidia.com/gpu" in cluster.rollout.behind(url)
    cluster.clock.advance(601)
    cluster.look()
    for _ in range(4):
        cluster.clock.advance(10)
        cluster.look()
    assert cluster.servers() == [old]
    assert cluster.base_url == url
    assert "Insufficient nvidia.com/gpu" in cluster.rollout.behind(url)


def test_a_cluster_that_refuses_the_new_server_leaves_the_model_with_the_old_one(cluster: Deployed) -> None:
    one = cluster.roll_out(cluster.export("a"))
    cluster.upgrade("2")
    cluster.kubernetes.refusals["deployments"] = (403, "deployments.apps is forbidden: exceeded quota")
    assert follow(cluster, one) == [one]
    assert "exceeded quota" in cluster.rollout.behind(one.url)
    assert "exceeded quota" in cluster.rollout.behind(cluster.base_url)
    cluster.clock.advance(601)
    assert follow(cluster, one) == [one]
    assert "given up after 60" in cluster.rollout.behind(one.url)
    assert "given up after 60" in cluster.rollout.behind(cluster.base_url)


def test_an_export_that_is_damaged_meanwhile_does_not_take_the_old_server(cluster: Deployed) -> None:
    one = cluster.roll_out(cluster.export("a"))
    shutil.rmtree(cluster.folder / "serving")  # the service stands on another node
    cluster.blobs.delete_prefix(one.export.manifest)
    cluster.blobs.put(one.export.manifest, b"{}")
    cluster.run(upgraded(cluster, one))
    assert follow(cluster, one) == [one]
    assert "damaged or exchanged" in cluster.rollout.behind(one.url)


def test_where_the_old_server_was_deleted_the_new_one_is_not_given_up(cluster: Deployed) -> None:
    one = cluster.roll_out(cluster.export("a"))
    old, coming = cluster.server_of(one.export), upgraded(cluster, one)
    starve(cluster, coming)
    for _ in range(2):
        cluster.look(one)
        cluster.clock.advance(40)
    assert coming not in cluster.servers()
    cluster.kubernetes.delete("deployments", old)
    for _ in range(2):
        cluster.clock.advance(601)
        with pytest.raises(NotReady):
            cluster.look(one)
    cluster.run(coming)
    assert follow(cluster, one)[0].url == f"http://{coming}:8080"


def test_to_replace_a_server_that_fails_holds_up_the_others_which_say_so(tmp_path: Path) -> None:
    cluster = Deployed(tmp_path, Terms(drain_s=30.0, replace=True, patience_s=600.0))
    cluster.with_base()
    one, two = cluster.roll_out(cluster.export("a")), cluster.roll_out(cluster.export("b"))
    old, kept = cluster.server_of(one.export), cluster.server_of(two.export)
    cluster.upgrade("2")
    cluster.clock.advance(1)
    with pytest.raises(NotReady):  # the base goes first as well
        cluster.look(one, two)
    cluster.run_all()
    with pytest.raises(NotReady):
        cluster.look(one, two)
    (coming,) = set(cluster.servers()) - {kept} - {cluster.base_url[7:-5]}
    assert old not in cluster.servers()
    crash(cluster, coming)
    for _ in range(3):
        cluster.clock.advance(601)
        with pytest.raises(NotReady, match="KeyError"):
            cluster.rollout.reload(one.export, one.url)
        assert cluster.rollout.reload(two.export, two.url) == two.url
        cluster.rollout.keep([one, two])
    assert {coming, kept} <= set(cluster.servers())  # the other goes on serving
    assert f"{coming} is started first" in cluster.rollout.behind(two.url)


def is_base(cluster: Deployed, name: str) -> bool:
    return cluster.env(name, "initContainers")["SHORTSTACK_WEIGHTS"] == f"bases/{BASE}"


def others(cluster: Deployed, *held: Held) -> set[str]:
    """The bases' servers, and those that routes lead to."""
    bases = {name for name in cluster.servers() if is_base(cluster, name)}
    return bases | {one.url[7:-5] for one in held}


# With the controller that drives it.


def test_the_message_says_why_a_model_is_behind_until_it_is_not(tmp_path: Path) -> None:
    cluster, world = Deployed(tmp_path, Terms(drain_s=30.0, patience_s=1e6)), World()
    cluster.clock = world.clock
    world.rollout = cluster.restarted()  # type: ignore[assignment]  # a real one in place of the fake
    with world.started(bases={BASE: cluster.base_folder}, **ALONE) as running:
        running.until(lambda: len(cluster.servers()) == 1)
        cluster.run_all()
        running.settle(BASE, sv.MODEL_STATE_SERVED)
        model = world.trained("ftjob-1", "a", export=cluster.export("a"))
        running.until(lambda: len(cluster.servers()) == 2)
        cluster.run_all()
        old = running.settle(model, sv.MODEL_STATE_SERVED).endpoint.url
        before = set(cluster.servers())
        cluster.upgrade("2")
        running.until(lambda: len(cluster.servers()) == 4)
        new = set(cluster.servers()) - before
        for name in new:
            cluster.kubernetes.unschedulable(cluster.kubernetes.pod_of(name), NO_GPU)
        for name in (BASE, model):
            running.until(partial(tells, running, name, NO_GPU.rstrip(".")))
            assert message(running, name).startswith(EARLIER)
            assert running.controller.shown()[f"model/{name}"].model.state == sv.MODEL_STATE_SERVED
        for name in new:
            cluster.run(name)
        running.until(lambda: running.controller.shown()[f"model/{model}"].model.endpoint.url != old)
        running.until(lambda: message(running, model) == message(running, BASE) == "")


def tells(running: Running, model: str, words: str) -> bool:
    return words in message(running, model)


def message(running: Running, model: str) -> str:
    return str(running.controller.shown()[f"model/{model}"].model.message)
