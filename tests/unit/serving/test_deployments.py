"""Models as Deployments, on a fake API whose pods a test runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.serving.deployed import BASE, OWNER, Deployed

from shortstack.core.errors import Fatal, Poison, Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.serving.deployments.condition import CRASHES
from shortstack.serving.deployments.server import Addresses
from shortstack.serving.rollout import NotReady

SERVED = sv.MODEL_STATE_SERVED


@pytest.fixture
def cluster(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path)


def said(cluster: Deployed, export: Any) -> str:
    """What a rollout says that waits."""
    cluster.clock.advance(1)
    with pytest.raises(NotReady) as raised:
        cluster.rollout.roll_out(export, lambda: None)
    return str(raised.value)


def test_a_base_has_a_server_of_its_own(cluster: Deployed) -> None:
    with pytest.raises(NotReady):
        cluster.look()
    (name,) = cluster.servers()
    cluster.run(name)
    cluster.look()
    endpoint = cluster.rollout.base(BASE, cluster.base_folder, cluster.base_url)
    assert (endpoint.url, endpoint.adapter_id) == (f"http://{name}:8080", "")
    assert (endpoint.max_input_tokens, endpoint.max_total_tokens) == (4095, 4096)
    assert cluster.blobs.exists(endpoint.tokenizer)
    fetch = cluster.env(name, "initContainers")
    assert fetch["SHORTSTACK_WEIGHTS"] == f"bases/{BASE}"
    assert fetch["SHORTSTACK_STORAGE_URL"] == "memory://"
    assert fetch["SHORTSTACK_WEIGHTS_DIR"] == cluster.env(name, "containers")["MODEL_ID"]


def test_what_is_made_belongs_to_the_release_and_is_found_by_its_label(cluster: Deployed) -> None:
    cluster.with_base()
    (name,) = cluster.servers()
    owner = cluster.kubernetes.get("configmaps", OWNER)["metadata"]["uid"]
    server = name.removeprefix("server-")
    assert len(server) == 12
    for plural in ("deployments", "services"):
        found = cluster.kubernetes.get(plural, name)
        assert [reference["uid"] for reference in found["metadata"]["ownerReferences"]] == [owner]
        assert found["metadata"]["labels"]["shortstack/server"] == server
    deployment, service = (cluster.kubernetes.get(plural, name)["spec"] for plural in ("deployments", "services"))
    assert deployment["selector"]["matchLabels"]["shortstack/server"] == server
    assert deployment["template"]["metadata"]["labels"]["shortstack/server"] == server
    assert service["selector"]["shortstack/server"] == server
    assert deployment["template"]["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_a_model_is_started_proven_against_the_base_and_routed_to(cluster: Deployed) -> None:
    cluster.with_base()
    export, proving = cluster.export("a"), []
    assert "its pod" in said(cluster, export) or "fetches the weights" in said(cluster, export)
    cluster.run(cluster.server_of(export))
    result = cluster.rollout.roll_out(export, lambda: proving.append(True))
    assert result.proof.model.passed
    assert result.proof.measurable
    assert set(cluster.asked) == {"a+", "base"}
    assert result.endpoint.url == f"http://{cluster.server_of(export)}:8080"
    assert result.endpoint.adapter_id == ""
    assert proving == [True]
    assert cluster.env(cluster.server_of(export), "containers")["MODEL_ID"] == f"/weights/{export.digest[:12]}"


def test_without_a_base_to_compare_with_a_model_waits(cluster: Deployed) -> None:
    export = cluster.export("a")
    assert f'base "{BASE}" is not ready' in said(cluster, export)


def test_other_weights_under_the_name_are_refused(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a", weights="base+")
    said(cluster, export)
    cluster.run(cluster.server_of(export))
    result = cluster.rollout.roll_out(export, lambda: None)
    assert "in training it was" in result.proof.model.why
    cluster.rollout.remove(export)
    assert len(cluster.servers()) == 1


def test_weights_that_never_make_a_server_healthy_are_refused_by_the_probes(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a", weights="nan")
    said(cluster, export)
    cluster.run(cluster.server_of(export), ready=False)
    result = cluster.rollout.roll_out(export, lambda: None)
    assert "424" in result.proof.model.why


def test_a_model_that_still_loads_is_waited_for(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    cluster.run(cluster.server_of(export), ready=False)
    words = said(cluster, export)
    assert "loads the model" in words
    assert "kubectl logs server-" in words


def test_a_tampered_manifest_is_refused_before_anything_is_made(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    export.manifest_sha256 = "0" * 64
    with pytest.raises(Poison, match="damaged or exchanged"):
        cluster.rollout.roll_out(export, lambda: None)
    assert len(cluster.servers()) == 1


def test_weights_that_cannot_be_fetched_are_refused_with_the_words_of_the_fetch(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    line = "Poison: object models/a/merged/model.safetensors has sha256 1, expected 2."
    cluster.kubernetes.crash(cluster.kubernetes.pod_of(cluster.server_of(export)), "weights", 65, message=line)
    cluster.clock.advance(1)
    with pytest.raises(Poison, match=r"model\.safetensors has sha256") as raised:
        cluster.rollout.roll_out(export, lambda: None)
    assert "train it again" in raised.value.remedy


def test_a_store_that_is_away_or_a_disk_that_is_full_is_waited_for(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    pod = cluster.kubernetes.pod_of(cluster.server_of(export))
    cluster.kubernetes.crash(pod, "weights", 70, times=9, message="Fatal: cannot write: No space left on device.")
    assert "No space left on device" in said(cluster, export)


def test_a_server_that_crashes_again_and_again_is_given_up(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    pod = cluster.run(cluster.server_of(export), ready=False)
    cluster.weights[export.digest[:12]] = "nothing"
    cluster.kubernetes.crash(pod, "server", 1, times=CRASHES - 1, message="a trace\nKeyError: 'lm_head'")
    words = said(cluster, export)
    assert "ended 4 times (Error, exit code 1: KeyError: 'lm_head')" in words
    cluster.kubernetes.crash(pod, "server", 137, times=CRASHES, reason="OOMKilled")
    cluster.clock.advance(1)
    with pytest.raises(Poison, match="OOMKilled") as raised:
        cluster.rollout.roll_out(export, lambda: None)
    assert "memory limit" in raised.value.remedy


def test_what_the_scheduler_and_the_kubelet_say_is_the_models_message(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    pod = cluster.kubernetes.pod_of(cluster.server_of(export))
    cluster.kubernetes.unschedulable(pod, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    assert "Insufficient nvidia.com/gpu" in said(cluster, export)
    cluster.kubernetes.held_up(pod, "server", "ImagePullBackOff", "Back-off pulling image inference:9")
    words = said(cluster, export)
    assert "Back-off pulling image inference:9" in words
    assert "Check the image's name" in words


def test_pods_that_are_evicted_again_and_again_are_told_and_given_up(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    name = cluster.server_of(export)
    words = {"reason": "Evicted", "message": "Usage of EmptyDir volume weights exceeds the limit 1Gi"}
    for times in range(1, CRASHES + 1):
        cluster.kubernetes.end_pod(cluster.kubernetes.pod_of(name), "Failed", **words)
        cluster.kubernetes.respawn(name)
        if times == 1:
            assert "A pod before it ended: Evicted: Usage of EmptyDir" in said(cluster, export)
    cluster.clock.advance(1)
    with pytest.raises(Poison, match="5 pods of it ended, the last: Evicted") as raised:
        cluster.rollout.roll_out(export, lambda: None)
    assert "weightsSize" in raised.value.remedy


def test_what_only_events_say_is_told_too(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    pod = cluster.kubernetes.pod_of(cluster.server_of(export))
    cluster.kubernetes.warn(pod, "FailedMount", 'MountVolume.SetUp failed for volume "blobs"')
    cluster.clock.advance(5)
    assert 'FailedMount: MountVolume.SetUp failed for volume "blobs"' in said(cluster, export)


def test_a_pod_that_the_cluster_does_not_make_says_why(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    name = cluster.server_of(export)
    cluster.kubernetes.remove_pod(cluster.kubernetes.pod_of(name))
    cluster.kubernetes.failed_to_make_pods(name, 'pods "server" is forbidden: exceeded quota: gpus')
    assert "exceeded quota: gpus" in said(cluster, export)


def test_an_api_server_that_refuses_or_is_away_is_tried_again(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    cluster.kubernetes.refusals["deployments"] = (403, "deployments.apps is forbidden: exceeded quota")
    assert "exceeded quota" in said(cluster, export)
    cluster.kubernetes.refusals["deployments"] = (422, "spec.template.spec.containers[0].image: Required value")
    assert "image: Required value" in said(cluster, export)
    cluster.kubernetes.refusals.clear()
    cluster.kubernetes.unreadable = {"pods"}
    cluster.clock.advance(1)
    with pytest.raises(Transient, match="pods is forbidden") as raised:
        cluster.look()
    assert not isinstance(raised.value, NotReady)
    cluster.kubernetes.unreadable = set()
    cluster.kubernetes.away = True
    cluster.clock.advance(1)
    with pytest.raises(Transient, match="does not answer") as raised:
        cluster.look()
    assert not isinstance(raised.value, NotReady)  # so that routes stay as they are
    cluster.kubernetes.away = False
    cluster.roll_out(export)


def test_a_service_that_was_started_again_adopts_what_stands(cluster: Deployed) -> None:
    cluster.with_base()
    export = cluster.export("a")
    said(cluster, export)
    name = cluster.server_of(export)
    uid = cluster.kubernetes.get("deployments", name)["metadata"]["uid"]
    cluster.restarted()
    cluster.look()
    cluster.rollout.keep([])  # before the model is known to be coming: it has its time to drain
    held = cluster.roll_out(export)
    assert held.url == f"http://{name}:8080"
    assert cluster.kubernetes.get("deployments", name)["metadata"]["uid"] == uid


def test_a_server_that_somebody_deleted_comes_back(cluster: Deployed) -> None:
    cluster.with_base()
    held = cluster.roll_out(cluster.export("a"))
    name = cluster.server_of(held.export)
    cluster.kubernetes.delete("deployments", name)
    cluster.kubernetes.delete("services", name)
    with pytest.raises(NotReady):
        cluster.look(held)
    assert name in cluster.servers()
    cluster.run(name)
    cluster.look(held)
    assert cluster.rollout.reload(held.export, held.url) == held.url


def test_what_nobody_needs_is_drained_and_goes_its_service_last(cluster: Deployed) -> None:
    cluster.with_base()
    old, new = cluster.roll_out(cluster.export("a")), cluster.roll_out(cluster.export("b"))
    name = cluster.server_of(old.export)
    cluster.look(old, new)
    cluster.kubernetes.pods_linger = True
    cluster.look(new)
    cluster.clock.advance(28)
    cluster.look(new)
    assert name in cluster.servers()
    cluster.clock.advance(2)
    cluster.look(new)
    assert name not in cluster.servers()
    cluster.look(new)
    assert name in [found["metadata"]["name"] for found in cluster.kubernetes.all("services")]
    cluster.kubernetes.remove_pod(cluster.kubernetes.pod_of(name))
    cluster.look(new)
    assert name not in [found["metadata"]["name"] for found in cluster.kubernetes.all("services")]
    assert len(cluster.servers()) == 2


def test_a_model_that_is_needed_again_in_time_keeps_its_server(cluster: Deployed) -> None:
    cluster.with_base()
    held = cluster.roll_out(cluster.export("a"))
    uid = cluster.kubernetes.get("deployments", cluster.server_of(held.export))["metadata"]["uid"]
    cluster.look()
    cluster.clock.advance(20)
    cluster.look(held)
    cluster.clock.advance(20)
    cluster.look()
    assert cluster.kubernetes.get("deployments", cluster.server_of(held.export))["metadata"]["uid"] == uid


def test_servers_of_other_releases_are_left(cluster: Deployed) -> None:
    cluster.with_base()
    labels = {"app.kubernetes.io/name": "shortstack", "app.kubernetes.io/instance": "other", "shortstack/server": "f"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "server"}]}}
    cluster.kubernetes.add("deployments", "server-f", metadata={"labels": labels}, spec={"template": template})
    cluster.look()
    cluster.clock.advance(100)
    cluster.look()
    assert "server-f" in cluster.servers()


def test_nothing_is_an_orphan_before_every_base_was_looked_at(cluster: Deployed) -> None:
    cluster.with_base()
    cluster.restarted()
    cluster.rollout.keep([])
    cluster.clock.advance(100)
    cluster.rollout.keep([])
    assert len(cluster.servers()) == 1


# When the release is upgraded.


def test_an_upgraded_template_brings_new_servers_that_are_proven_before_they_are_routed_to(cluster: Deployed) -> None:
    cluster.with_base()
    held = cluster.roll_out(cluster.export("a"))
    before, base_before = cluster.server_of(held.export), cluster.base_url
    cluster.upgrade("2")
    cluster.clock.advance(1)
    cluster.look(held)
    assert cluster.base_url == base_before  # the new ones are not ready, the old ones still answer
    assert cluster.rollout.reload(held.export, held.url) == held.url
    assert len(cluster.servers()) == 4
    cluster.run_all()
    cluster.asked.clear()
    cluster.look(held)
    assert cluster.base_url != base_before
    moved = cluster.rollout.reload(held.export, held.url)
    assert moved != held.url
    assert "a+" in cluster.asked
    after = type(held)(held.export, moved)
    cluster.look(after)
    cluster.clock.advance(40)
    cluster.look(after)
    assert before not in cluster.servers()
    assert len(cluster.servers()) == 2


def test_an_upgrade_that_breaks_a_model_leaves_its_old_server_in_place(cluster: Deployed) -> None:
    cluster.with_base()
    held = cluster.roll_out(cluster.export("a"))
    cluster.upgrade("2")
    cluster.clock.advance(1)
    cluster.look(held)
    cluster.run_all()
    cluster.weights[held.export.digest[:12]] = "other+"
    for _ in range(3):
        cluster.look(held)
        assert cluster.rollout.reload(held.export, held.url) == held.url
    assert cluster.asked.count("other+") == 16  # asked once


def test_upgraded_servers_start_one_at_a_time(cluster: Deployed) -> None:
    cluster.with_base()
    one, two = cluster.roll_out(cluster.export("a")), cluster.roll_out(cluster.export("b"))
    cluster.upgrade("2")
    cluster.clock.advance(1)
    cluster.look(one, two)
    assert len(cluster.servers()) == 3 + 2  # the base's and the first model's
    cluster.run_all()
    moved = type(one)(one.export, cluster.rollout.reload(one.export, one.url))
    cluster.look(moved, two)
    assert len(cluster.servers()) == 3 + 3


# What the chart must give.


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("name: weights", 'no container "weights"'),
        ("- name: server\n", 'no container "server"'),
        ("kind: Service", "should hold Deployment, Service"),
    ],
)
def test_a_template_that_cannot_be_used_ends_the_service(cluster: Deployed, wrong: str, words: str) -> None:
    cluster.template.write_text(cluster.template.read_text().replace(wrong, wrong.replace("e", "x").rstrip() + "\n"))
    with pytest.raises(Fatal, match=words):
        cluster.look()


def test_a_base_that_was_not_imported_is_said_and_keeps_nothing_else_waiting(cluster: Deployed) -> None:
    cluster.with_base()
    base = cluster.servers()
    old = cluster.export("old")
    said(cluster, old)
    cluster.restarted()
    away = cluster.base_folder.rename(cluster.base_folder.with_name("away"))
    for _ in range(2):
        with pytest.raises(NotReady, match=r"base model tiny-llama.*not imported"):
            cluster.rollout.base(BASE, cluster.base_folder, cluster.base_url)
        cluster.rollout.keep([])
        cluster.clock.advance(cluster.terms.drain_s + 1)
    assert cluster.servers() == base, "what nobody needs goes, and what was known of the base stays"
    away.rename(cluster.base_folder)
    assert cluster.rollout.base(BASE, cluster.base_folder, cluster.base_url).url == cluster.base_url


def test_addresses_are_read_back() -> None:
    addresses = Addresses()
    assert addresses.server(addresses.url("0123456789ab")) == "0123456789ab"
    assert addresses.server("http://127.0.0.1:18071") == ""
    assert addresses.pod({"status": {"podIP": "fd00::1"}}) == "http://[fd00::1]:8080"
    assert addresses.pod({"status": {}}) == ""
