"""The chart as a part of somebody else's."""

from __future__ import annotations

import shutil
import subprocess
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.chart.rendering import (
    CHART,
    FULL,
    RELEASE,
    Object,
    Refused,
    helm,
    made,
    matches,
    of_kind,
    pod,
    pods,
    render,
)

OURS = {"name": "shortstack", "version": "0.x", "repository": "file://../shortstack"}
TEAMS = ("teama", "teamb")


def depending(tmp_path: Path, values: dict[str, Any], *dependencies: dict[str, str]) -> Path:
    """A chart that depends on ours by its path, as `helm dependency update` brings it."""
    chart = tmp_path / "platform"
    (chart / "templates").mkdir(parents=True)
    shutil.copytree(CHART, tmp_path / "shortstack")
    about = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [*dependencies]}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    # Away from the caches and repositories of whoever runs this.
    environment = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    subprocess.run([helm(), "dependency", "update", str(chart)], check=True, capture_output=True, env=environment)
    return chart


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A chart that holds ours once, with values for it and for all."""
    values = {
        "global": {"imageRegistry": "r.example.com", "imagePullSecrets": ["pull"], "team": "a"},
        "shortstack": {"gateway": {"service": {"port": 8000}}},
    }
    return depending(tmp_path, values, {**OURS, "condition": "shortstack.enabled"})


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A chart that holds ours twice, under names that either override gives."""
    values = {"teama": {"nameOverride": "teama"}, "teamb": {"fullnameOverride": f"{RELEASE}-teamb"}}
    return depending(tmp_path, values, *({**OURS, "alias": team} for team in TEAMS))


def test_it_renders_whole_below_its_parents_values(parent: Path) -> None:
    objects = render(chart=parent)
    alone = render()
    assert {(o["kind"], o["metadata"]["name"]) for o in objects if o["kind"] != "Job"} == {
        (o["kind"], o["metadata"]["name"]) for o in alone if o["kind"] != "Job"
    }
    gateway = pod(objects, "gateway")
    assert gateway.containers[0]["image"] == "r.example.com/shortstack/gateway:0.1.0"
    assert gateway.spec["imagePullSecrets"] == [{"name": "pull"}]
    assert of_kind(objects, "Service")["demo-shortstack-gateway"]["spec"]["ports"][0]["port"] == 8000
    # Files of the chart are its own, not its parent's.
    assert pod(objects, "topics").annotations == pod(alone, "topics").annotations
    assert all(of_kind(objects, "ConfigMap")["demo-shortstack-tests"]["data"].values())


def test_pull_secrets_of_a_parent_may_have_the_shape_that_pods_have() -> None:
    given = ("global.imagePullSecrets[0].name=regcred", "global.imagePullSecrets[1]=plain")
    gateway = pod(render(*given, "image.pullSecrets={regcred,own}"), "gateway")
    assert gateway.spec["imagePullSecrets"] == [{"name": "regcred"}, {"name": "plain"}, {"name": "own"}]


def test_its_parent_may_switch_it_off_and_on(parent: Path) -> None:
    (parent / "templates" / "own.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: own}}\n")
    off = render("shortstack.enabled=false", chart=parent)
    assert [found["metadata"]["name"] for found in off] == ["own"]
    assert f"{FULL}-gateway" in of_kind(render("shortstack.enabled=true", chart=parent), "Deployment")


def test_two_of_it_in_one_parent_take_none_of_each_others_pods(twice: Path) -> None:
    objects = render(chart=twice)
    for own, other in permutations(TEAMS):
        theirs = pods(_of(objects, other), f"{RELEASE}-{other}")
        assert {"gateway", "kafka", "server", "trainer"} <= {each.component for each in theirs}
        mine = _of(objects, own)
        selecting = [(found, _selected(found)) for found in [*mine, *made(mine, f"{RELEASE}-{own}").values()]]
        assert len([found for found, selector in selecting if selector is not None]) > 20
        for found, selector in selecting:
            taken = [each.owner for each in theirs if selector is not None and matches(selector, each.labels)]
            assert not taken, f"{found['kind']} {found['metadata']['name']}"


def _of(objects: list[Object], team: str) -> list[Object]:
    return [found for found in objects if found["metadata"]["name"].startswith(f"{RELEASE}-{team}")]


def _selected(found: Object) -> dict[str, Any] | None:
    """Which pods are its own; None for what has none."""
    spec = found.get("spec", {})
    if found["kind"] == "Service":
        return {"matchLabels": spec["selector"]}
    selector: dict[str, Any] | None = spec.get("podSelector", spec.get("selector"))
    return selector


def test_a_wrong_value_is_refused_there_too(parent: Path) -> None:
    with pytest.raises(Refused, match="kafak"):
        render("shortstack.kafak.kind=external", chart=parent)
