"""An upgrade, or an install that finds what an earlier one has left: what may not change is refused by name."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from tests.unit.chart.cluster import FORBIDDEN, api_server
from tests.unit.chart.rendering import FULL, Refused, notes, of_kind, render

BLOBS = f"persistentvolumeclaims/{FULL}-blobs"


class Installed(Protocol):
    """Starts a cluster in which a claim is there with these access modes; its kubeconfig."""

    def __call__(self, *modes: str, name: str = BLOBS) -> Path: ...


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    with ExitStack() as servers:

        def start(*modes: str, name: str = BLOBS) -> Path:
            claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"accessModes": list(modes)}}
            metadata = {"name": name.partition("/")[2], "namespace": "here"}
            return servers.enter_context(api_server(tmp_path, {name: {**claim, "metadata": metadata}}))

        yield start


def test_an_unchanged_claim_is_no_obstacle(installed: Installed) -> None:
    assert of_kind(render(cluster=installed("ReadWriteOnce")), "PersistentVolumeClaim")
    assert render("storage.claim.accessMode=ReadWriteMany", cluster=installed("ReadWriteMany"))


@pytest.mark.parametrize(
    ("name", "value", "has", "wanted", "expected"),
    [
        ("blobs", "storage.claim.size", "100Gi", "20Gi", "100Gi"),
        ("blobs", "storage.claim.size", "20Gi", "100Gi", "100Gi"),
        ("blobs", "storage.claim.size", "30G", "28Gi", "28Gi"),
        ("blobs", "storage.claim.size", "21474836480", "1.5Gi", "21474836480"),
        ("gateway", "gateway.database.size", "1Ti", "900Gi", "1Ti"),
    ],
)
def test_a_claim_that_was_made_larger_is_never_asked_to_shrink(
    tmp_path: Path, name: str, value: str, has: str, wanted: str, expected: str
) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": has}}}
    metadata = {"name": f"{FULL}-{name}", "namespace": "here"}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    with api_server(tmp_path, {f"persistentvolumeclaims/{FULL}-{name}": claim}) as cluster:
        found = of_kind(render(f"{value}={wanted}", cluster=cluster), "PersistentVolumeClaim")[f"{FULL}-{name}"]
    assert found["spec"]["resources"]["requests"]["storage"] == expected


@pytest.mark.parametrize("own", ["", "storage.claim.existingClaim=mine"])
def test_another_access_mode_is_refused_by_its_name(installed: Installed, own: str) -> None:
    cluster = installed("ReadWriteOnce", name="persistentvolumeclaims/mine" if own else BLOBS)
    with pytest.raises(Refused, match=r"storage\.claim\.accessMode: ReadWriteMany, but the claim .* as ReadWriteOnce"):
        render("storage.claim.accessMode=ReadWriteMany", *([own] if own else []), cluster=cluster)


def test_a_shared_claim_of_ones_own_is_no_obstacle_where_one_node_is_enough(installed: Installed) -> None:
    cluster = installed("ReadWriteMany", name="persistentvolumeclaims/mine")
    assert render("storage.claim.existingClaim=mine", cluster=cluster)


@pytest.mark.parametrize(
    "values",
    [("storage.kind=s3", "storage.s3.bucket=b"), ("storage.claim.existingClaim=mine",)],
)
def test_who_may_not_read_claims_needs_none_that_is_looked_up(tmp_path: Path, values: tuple[str, ...]) -> None:
    claims = dict.fromkeys((BLOBS, "persistentvolumeclaims/mine"), FORBIDDEN)
    with api_server(tmp_path, claims) as cluster:
        assert "is being started" in notes(tmp_path, *values, cluster=cluster)


def test_the_key_that_was_drawn_is_kept(tmp_path: Path) -> None:
    name = f"{FULL}-gateway-key"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "here"}}
    data = {"api-key": base64.b64encode(b"sk-ss-kept").decode()}
    with api_server(tmp_path, {f"secrets/{name}": {**secret, "data": data}}) as cluster:
        assert of_kind(render(cluster=cluster), "Secret")[name]["data"] == data


def test_notes_say_that_a_node_for_all_must_have_gpus_where_some_need_them(tmp_path: Path) -> None:
    cpu = ("training.job.gpus=0", "serving.server.gpus=0", "serving.server.kind=embedded")
    assert "before the first install" in notes(tmp_path)
    assert "training.job.nodeSelector" in notes(tmp_path)
    assert "training.job.nodeSelector" not in notes(tmp_path, *cpu)
    assert "one node" not in notes(tmp_path, "storage.claim.accessMode=ReadWriteMany")


def test_notes_name_the_image_that_is_built_on_request_where_it_is_needed(tmp_path: Path) -> None:
    assert "shortstack/tgi:0.1.0. `make images`" in notes(tmp_path)
    assert "TGI_IMAGE" not in notes(tmp_path, "serving.server.kind=embedded", "serving.server.gpus=0")
    assert "TGI_IMAGE" not in notes(tmp_path, "serving.server.image=team/tgi:1")


def test_notes_give_other_namespaces_the_brokers_address_where_they_may_reach_it(tmp_path: Path) -> None:
    who = "networkPolicy.kafkaFrom[0].namespaceSelector.matchLabels.team=a"
    assert f"{FULL}-kafka.here.svc:9092" in notes(tmp_path, who)
    assert "kafkaFrom" not in notes(tmp_path)
