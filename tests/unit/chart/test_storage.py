"""Objects, messages and keys: on claims or elsewhere, and what that means for where pods run."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import SecretStr
from tests.unit.chart.rendering import FULL, PodTemplate, Refused, matches, of_kind, pod, pods, render

from shortstack.gateway.keys.secret import check_key

USERS = {
    *("ingestion", "formatting", "assembly", "training", "serving", "gateway"),
    *("trainer", "server", "base-models", "cli"),
}


def _claims(each: PodTemplate) -> set[str]:
    return {v["persistentVolumeClaim"]["claimName"] for v in each.spec["volumes"] if "persistentVolumeClaim" in v}


def _required(each: PodTemplate) -> list[dict[str, object]]:
    affinity = each.spec.get("affinity", {}).get("podAffinity", {})
    return list(affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []))


def test_a_claim_for_one_node_keeps_all_its_users_there() -> None:
    objects = render()
    users = [each for each in pods(objects) if f"{FULL}-blobs" in _claims(each)]
    assert {each.component for each in users} == USERS
    for each in users:
        (term,) = _required(each)
        assert term["topologyKey"] == "kubernetes.io/hostname"
        # Also itself: the first one schedules because it fulfils its own affinity.
        assert all(matches(term["labelSelector"], other.labels) for other in users), each.owner  # type: ignore[arg-type]
    assert of_kind(objects, "PersistentVolumeClaim")[f"{FULL}-blobs"]["spec"]["accessModes"] == ["ReadWriteOnce"]


GPU_NODES = (
    "training.job.nodeSelector.pool=gpu",
    "training.job.tolerations[0].key=nvidia.com/gpu",
    "training.job.tolerations[0].operator=Exists",
)


def _preferred(each: PodTemplate) -> list[dict[str, Any]]:
    affinity = each.spec.get("affinity", {}).get("nodeAffinity", {})
    return list(affinity.get("preferredDuringSchedulingIgnoredDuringExecution", []))


def test_a_claim_for_one_node_lies_where_gpus_are() -> None:
    """The first pod that is scheduled chooses the node, and that is seldom one that asks for a GPU."""
    label = [{"key": "nvidia.com/gpu.present", "operator": "Exists"}]
    for each in pods(render()):
        wanted = each.component in USERS - {"trainer", "server"}
        assert [wish["preference"]["matchExpressions"] for wish in _preferred(each)] == ([label] if wanted else [])
    own = "gateway.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=7"
    assert [wish["weight"] for wish in _preferred(pod(render(own), "gateway"))] == [7, 100]
    assert not [each.owner for each in pods(render("gpu.nodeLabel=")) if _preferred(each)]
    assert not [each.owner for each in pods(render(values="small-cpu")) if _preferred(each)]


def test_where_gpu_pods_must_run_all_run_that_share_their_node() -> None:
    for each in pods(render(*GPU_NODES)):
        shares = each.component in USERS
        assert each.spec.get("nodeSelector") == ({"pool": "gpu"} if shares else None), each.owner
        tolerated = [toleration["key"] for toleration in each.spec.get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if shares else []), each.owner
    for apart in ("storage.claim.accessMode=ReadWriteMany", "training.job.gpus=0"):
        assert "nodeSelector" not in pod(render(*GPU_NODES, apart), "gateway").spec


@pytest.mark.parametrize("other", ["serving.server.nodeSelector.pool=large", "scheduling.nodeSelector.pool=general"])
def test_nodes_that_cannot_be_the_same_are_refused(other: str) -> None:
    with pytest.raises(Refused, match=r"nodeSelector: pool is .* one node alone"):
        render(*GPU_NODES, other)


@pytest.mark.parametrize("values", ["s3", "gpu-tgi", "existing-secrets"])
def test_elsewhere_pods_run_on_any_node(values: str) -> None:
    objects = render(values=values)
    assert not [each.owner for each in pods(objects) if _required(each)]


def test_a_persons_affinity_is_kept_beside_ours() -> None:
    objects = render("gateway.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=zone")
    assert [term["topologyKey"] for term in _required(pod(objects, "gateway"))] == ["zone", "kubernetes.io/hostname"]
    assert len(_required(pod(objects, "assembly"))) == 1


def test_s3_needs_no_volume_and_its_credentials_stay_in_the_secret() -> None:
    objects = render(values="s3")
    assert set(of_kind(objects, "PersistentVolumeClaim")) == {f"{FULL}-gateway"}
    for each in pods(objects):
        for container in each.containers:
            told = each.environment(container["name"]) if container.get("env") else {}
            if "SHORTSTACK_STORAGE_URL" not in told:
                continue
            assert told["SHORTSTACK_STORAGE_URL"] == "s3://shortstack/production"
            assert told["AWS_ENDPOINT_URL"] == "https://objects.example.com:9000"
            assert told["AWS_REGION"] == "eu-central-1"
            assert told["AWS_SECRET_ACCESS_KEY"] == "secret/AWS_SECRET_ACCESS_KEY"
            assert told["AWS_ACCESS_KEY_ID"] == "secret/AWS_ACCESS_KEY_ID"


def test_a_role_of_the_cloud_needs_no_secret() -> None:
    objects = render("storage.kind=s3", "storage.s3.bucket=b", "serviceAccount.annotations.role=writer")
    told = pod(objects, "assembly").environment("assembly")
    assert told["SHORTSTACK_STORAGE_URL"] == "s3://b"
    assert "AWS_ACCESS_KEY_ID" not in told
    accounts = of_kind(objects, "ServiceAccount").values()
    assert all(account["metadata"]["annotations"] == {"role": "writer"} for account in accounts)


def test_a_role_of_the_cloud_is_not_for_containers_that_read_no_object() -> None:
    """EKS gives a role to every container of a pod but those that the pod names itself."""
    skip = "eks.amazonaws.com/skip-containers"
    role = r"serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/stack"
    objects = render(role, "training.job.podAnnotations.team=ml")
    assert pod(objects, "trainer").annotations == {skip: "trainer", "team": "ml"}
    assert pod(objects, "server").annotations == {skip: "server"}
    own = r"training.job.podAnnotations.eks\.amazonaws\.com/skip-containers=trainer\,mesh"
    assert pod(render(role, own), "trainer").annotations == {skip: "trainer,mesh"}
    assert pod(render(), "trainer").annotations == pod(render(), "server").annotations == {}


def test_claims_outlive_the_release_unless_told() -> None:
    kept = of_kind(render(), "PersistentVolumeClaim").values()
    assert all(claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for claim in kept)
    gone = of_kind(render("storage.claim.keep=false", "gateway.database.keep=false"), "PersistentVolumeClaim").values()
    assert len(list(gone)) == 2
    assert not [claim for claim in gone if "annotations" in claim["metadata"]]


def test_claims_that_are_there_are_used() -> None:
    objects = render(values="existing-secrets")
    assert not of_kind(objects, "PersistentVolumeClaim")
    assert all("objects" in _claims(each) for each in pods(objects) if each.component in USERS)


def test_the_gateways_database_is_a_file_or_a_url_from_a_secret() -> None:
    assert pod(render(), "gateway").environment("gateway")["SHORTSTACK_DATABASE_URL"] == "sqlite:////data/gateway.db"
    named = pod(render("gateway.database.existingSecret=mine"), "gateway")
    assert named.environment("gateway")["SHORTSTACK_DATABASE_URL"] == "secret/url"


def test_the_key_that_is_drawn_has_the_form_of_a_key() -> None:
    secret = of_kind(render(), "Secret")[f"{FULL}-gateway-key"]
    key = SecretStr(base64.b64decode(secret["data"]["api-key"]).decode())
    assert check_key(key.get_secret_value(), where="the chart") == key.get_secret_value()


def test_an_external_kafka_is_spoken_to_with_what_the_secret_holds() -> None:
    objects = render(values="external-kafka")
    assert not of_kind(objects, "StatefulSet")
    assert f"{FULL}-kafka" not in of_kind(objects, "Service")
    for component in ("ingestion", "formatting", "assembly", "training", "serving", "topics", "cli"):
        each = pod(objects, component)
        told = each.environment(component)
        assert told["SHORTSTACK_KAFKA_BOOTSTRAP"] == "kafka-0.example.com:9093,kafka-1.example.com:9093"
        assert told["SHORTSTACK_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
        assert told["SHORTSTACK_KAFKA_SASL_USERNAME"] == "secret/username"
        assert told["SHORTSTACK_KAFKA_SASL_PASSWORD"] == "secret/password"
        assert "SHORTSTACK_KAFKA_SSL_CERTFILE" not in told
        (container,) = [c for c in each.containers if c["name"] == component]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "kafka-tls"]
        assert told["SHORTSTACK_KAFKA_SSL_CAFILE"] == f"{mount['mountPath']}/ca.crt"


def test_a_clients_certificate_is_used_where_it_is_named() -> None:
    objects = render(
        "kafka.kind=external",
        "kafka.external.bootstrap=k:9093",
        "kafka.external.securityProtocol=SSL",
        "kafka.external.existingSecret=mine",
        "kafka.external.secretKeys.certificate=tls.crt",
        "kafka.external.secretKeys.privateKey=tls.key",
    )
    each = pod(objects, "formatting")
    told = each.environment("formatting")
    assert told["SHORTSTACK_KAFKA_SSL_CERTFILE"].endswith("/tls.crt")
    assert told["SHORTSTACK_KAFKA_SSL_KEYFILE"].endswith("/tls.key")
    assert "SHORTSTACK_KAFKA_SASL_PASSWORD" not in told
    (volume,) = [volume for volume in each.spec["volumes"] if volume["name"] == "kafka-tls"]
    assert {item["path"] for item in volume["secret"]["items"]} == {"ca.crt", "tls.crt", "tls.key"}


def test_the_embedded_broker_is_told_where_it_stands() -> None:
    objects = render("kafka.embedded.heapMb=512")
    told = pod(objects, "kafka").environment("kafka")
    assert told == {
        "SHORTSTACK_BROKER_DIR": "/var/lib/kafka",
        # Not the bare name: metadata sends clients there, and another namespace resolves no bare name.
        "SHORTSTACK_BROKER_ADVERTISED": f"{FULL}-kafka.here.svc:9092",
        "SHORTSTACK_BROKER_HEAP_MB": "512",
    }
    (claim,) = of_kind(objects, "StatefulSet")[f"{FULL}-kafka"]["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    clients = {
        each.environment(each.component).get("SHORTSTACK_KAFKA_BOOTSTRAP")
        for each in pods(objects)
        if each.component == "formatting"
    }
    assert clients == {f"{FULL}-kafka:9092"}


def test_an_authority_of_ones_own_is_known_wherever_objects_are_read() -> None:
    objects = render("storage.kind=s3", "storage.s3.bucket=b", "storage.s3.existingSecret=s", "storage.s3.caKey=ca.pem")
    for each in pods(objects):
        for container in each.containers:
            told = each.environment(container["name"]) if container.get("env") else {}
            mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert ("SHORTSTACK_STORAGE_URL" in told) == ("s3-tls" in mounted), f"{each.owner} {container['name']}"
            if "s3-tls" in mounted:
                assert told["AWS_CA_BUNDLE"] == f"{mounted['s3-tls']}/ca.crt"
