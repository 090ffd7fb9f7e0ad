"""The Kubernetes API as the controllers use it, against a server in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.kubernetes import NAMESPACE, FakeKubernetes

from shortstack.cluster.api import CONFIG_MAP, JOB, POD, Cluster, read_template
from shortstack.core.errors import Conflict, Fatal, Forbidden, Invalid, Transient

BODY = {
    "metadata": {"name": "train-a", "labels": {"shortstack/run": "r"}},
    "spec": {
        "template": {
            "metadata": {"labels": {"shortstack/run": "r"}},
            "spec": {"containers": [{"name": "trainer", "novel": {"field": 1}}]},
        }
    },
}


@pytest.fixture
def kubernetes() -> FakeKubernetes:
    found = FakeKubernetes()
    found.add("configmaps", "stack-owner")
    return found


@pytest.fixture
def cluster(kubernetes: FakeKubernetes) -> Cluster:
    return kubernetes.cluster("stack-owner")


def test_what_is_made_belongs_to_the_release_and_keeps_every_field(
    kubernetes: FakeKubernetes, cluster: Cluster
) -> None:
    cluster.create(JOB, BODY)
    made = kubernetes.get("jobs", "train-a")
    owner = kubernetes.get("configmaps", "stack-owner")["metadata"]
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "stack-owner", "uid": owner["uid"]}
    ]
    assert made["metadata"]["namespace"] == NAMESPACE
    assert made["spec"]["template"]["spec"]["containers"][0]["novel"] == {"field": 1}
    assert cluster.get(JOB, "train-a") == made
    assert cluster.get(JOB, "train-b") is None


def test_objects_are_found_by_labels(cluster: Cluster) -> None:
    cluster.create(JOB, BODY)
    assert [p["metadata"]["labels"]["shortstack/run"] for p in cluster.list(POD, {"shortstack/run": "r"})] == ["r"]
    assert len(cluster.list(POD, {"shortstack/run": None})) == 1
    assert cluster.list(POD, {"shortstack/run": "other"}) == []


def test_deleting_what_is_gone_is_no_error(kubernetes: FakeKubernetes, cluster: Cluster) -> None:
    cluster.create(JOB, BODY)
    cluster.delete(JOB, "train-a")
    cluster.delete(JOB, "train-a")
    assert kubernetes.all("jobs") == kubernetes.all("pods") == []


def test_deletion_in_the_foreground_keeps_the_object_until_its_pods_are_gone(
    kubernetes: FakeKubernetes, cluster: Cluster
) -> None:
    cluster.create(JOB, BODY)
    pod = kubernetes.pod_of("train-a")
    kubernetes.pods_linger = True
    cluster.delete(JOB, "train-a", foreground=True)
    assert "deletionTimestamp" in kubernetes.get("jobs", "train-a")["metadata"]
    kubernetes.remove_pod(pod)
    assert cluster.get(JOB, "train-a") is None


def test_errors_are_the_stacks_own(kubernetes: FakeKubernetes, cluster: Cluster) -> None:
    cluster.create(JOB, BODY)
    with pytest.raises(Conflict, match="already exists"):
        cluster.create(JOB, BODY)
    for code, kind in ((403, Forbidden), (422, Invalid), (503, Transient), (401, Transient)):
        kubernetes.refusals["jobs"] = (code, "exceeded quota: gpus")
        with pytest.raises(kind, match=r"create Job train-a: .*exceeded quota: gpus"):
            cluster.create(JOB, BODY)
    kubernetes.away = True
    with pytest.raises(Transient, match="the API server does not answer: connection refused"):
        cluster.list(POD, {})


def test_a_release_without_its_owner_is_told(kubernetes: FakeKubernetes) -> None:
    with pytest.raises(Fatal, match='no ConfigMap "gone"'):
        kubernetes.cluster("gone").create(CONFIG_MAP, {"metadata": {"name": "any"}})


def test_no_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Fatal, match="set KUBECONFIG"):
        Cluster.connect()


def test_a_template_holds_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    with pytest.raises(Fatal, match="cannot read"):
        read_template(path, "Job")
    path.write_text("kind: Service\n---\nkind: Deployment\nspec: {replicas: 1}\n---\n")
    deployment, service = read_template(path, "Deployment", "Service")
    assert (deployment["spec"], service["kind"]) == ({"replicas": 1}, "Service")
    with pytest.raises(Fatal, match="holds Service, Deployment and should hold Job"):
        read_template(path, "Job")


def test_the_newest_warning_about_an_object(kubernetes: FakeKubernetes, cluster: Cluster) -> None:
    assert cluster.newest_warning("pod-a") == ""
    kubernetes.warn("pod-a", "FailedMount", "an older one")
    kubernetes.warn("pod-b", "FailedMount", "of another")
    kubernetes.warn("pod-a", "FailedMount", "a newer one")
    assert cluster.newest_warning("pod-a") == "FailedMount: a newer one"
    kubernetes.unreadable.add("events")  # rbac.create is off, and whoever made the Role left events out
    assert cluster.newest_warning("pod-a") == ""
