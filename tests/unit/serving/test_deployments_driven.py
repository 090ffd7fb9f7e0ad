"""The serving controller with Deployments: routes move, what is superseded or refused goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.serving.deployed import BASE, Deployed
from tests.unit.serving.world import Running, World

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.deployments.rollout import Terms

SERVED = sv.MODEL_STATE_SERVED


def test_a_second_version_moves_the_route_once_and_the_first_is_drained_and_removed(tmp_path: Path) -> None:
    cluster, world = Deployed(tmp_path, Terms(drain_s=30.0)), World()
    cluster.clock = world.clock
    world.rollout = cluster.restarted()  # type: ignore[assignment]  # a real one in place of the fake
    settings = {"serving_keep_superseded": False, "serving_watch_s": 0.5, "serving_drain_s": 30.0}
    with world.started(bases={BASE: cluster.base_folder}, **settings) as running:
        running.until(lambda: len(cluster.servers()) == 1)
        cluster.run_all()
        running.settle(BASE, SERVED)
        first, old = trained(world, cluster, "ftjob-1", "a")
        running.until(lambda: len(cluster.servers()) == 2)
        running.until(lambda: "fetches the weights" in running.controller.shown()[f"model/{old}"].model.message)
        cluster.run_all()
        running.settle(old, SERVED)
        name = cluster.server_of(first)

        second, new = trained(world, cluster, "ftjob-2", "b")
        running.until(lambda: len(cluster.servers()) == 3)
        assert running.weights("faq@prod") == {old: 100}
        cluster.run_all()
        running.settle(new, SERVED)
        assert running.weights("faq@prod") == {new: 100}
        assert f"superseded by {new}" in running.settle(old, sv.MODEL_STATE_WITHDRAWN).message
        running.turn(50)
        assert name in cluster.servers()
        running.until(lambda: name not in cluster.servers())
        running.until(lambda: len(cluster.kubernetes.all("services")) == 2)
        assert cluster.server_of(second) in cluster.servers()
    aliases = [record.alias.weights[0].model for key, record in world.states() if key == "alias/faq@prod"]
    assert aliases == [old, new]


def test_a_refused_model_has_its_server_removed_at_once(tmp_path: Path) -> None:
    cluster, world = Deployed(tmp_path, Terms(drain_s=3000.0)), World()
    cluster.clock = world.clock
    world.rollout = cluster.restarted()  # type: ignore[assignment]  # a real one in place of the fake
    with world.started(bases={BASE: cluster.base_folder}, serving_watch_s=0.5) as running:
        running.until(lambda: len(cluster.servers()) == 1)
        cluster.run_all()
        running.settle(BASE, SERVED)
        _, model = trained(world, cluster, "ftjob-1", "a", weights="nan")
        running.until(lambda: len(cluster.servers()) == 2)
        running.until(lambda: cluster.run(cluster.servers()[-1], ready=False) != "" and refused(running, model))
        running.until(lambda: len(cluster.servers()) == 1)
        assert running.weights("faq@prod") == {}


def refused(running: Running, model: str) -> bool:
    return running.controller.shown()[f"model/{model}"].model.state == sv.MODEL_STATE_REFUSED


def trained(world: World, cluster: Deployed, job: str, name: str, **more: Any) -> tuple[Any, str]:
    """A run that succeeded with a real export; the export and the model's name."""
    export = cluster.export(name, **more)
    return export, world.trained(job, name, alias="faq@prod", export=export)
