"""The Job of a run and the server of a model, as the controllers get them from the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.chart.rendering import FULL, VALUES, made, of_kind, pod, render

from shortstack.cluster.api import read_template

TGI = ("serving.server.kind=tgi",)
EMBEDDED = ("serving.server.kind=embedded", "serving.server.gpus=0", "gpu.nodeLabel=")  # without a wish for a node


def _container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [c for c in [*spec.get("initContainers", []), *spec["containers"]] if c["name"] == name]
    return dict(found)


@pytest.mark.parametrize("values", VALUES)
def test_the_controllers_can_read_what_they_are_given(tmp_path: Path, values: str | None) -> None:
    objects = render(values=values)
    texts = of_kind(objects, "ConfigMap")[f"{FULL}-templates"]["data"]
    for name, kinds in {"job.yaml": ("Job",), "server.yaml": ("Deployment", "Service")}.items():
        file = tmp_path / name
        file.write_text(texts[name])
        assert len(read_template(file, *kinds)) == len(kinds)
    for controller, name in {"training": "job.yaml", "serving": "server.yaml"}.items():
        each = pod(objects, controller)
        variable = {"training": "SHORTSTACK_TRAINING_JOB_TEMPLATE", "serving": "SHORTSTACK_SERVER_TEMPLATE"}[controller]
        told = each.environment(controller)
        (mount,) = [m for m in _container(each.spec, controller)["volumeMounts"] if m["name"] == "template"]
        (volume,) = [v for v in each.spec["volumes"] if v["name"] == "template"]
        assert volume["configMap"]["name"] == f"{FULL}-templates"
        assert told[variable] == f"{mount['mountPath']}/{name}"
        assert [item["path"] for item in volume["configMap"]["items"]] == [name]
        assert told["SHORTSTACK_OWNER"] in of_kind(objects, "ConfigMap")


def test_an_attempt_is_one_try_of_one_pod() -> None:
    spec = made(render())["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 1, 1)
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("values", ["external-kafka", "s3", None])
def test_the_trainer_itself_knows_neither_kafka_nor_the_object_store(values: str | None) -> None:
    each = pod(render(values=values), "trainer")
    trainer = _container(each.spec, "trainer")
    names = set(each.environment("trainer"))
    assert not [name for name in names if name.startswith(("SHORTSTACK_KAFKA", "SHORTSTACK_STORAGE", "AWS_"))]
    assert {mount["name"] for mount in trainer["volumeMounts"]} == {"work", "tmp", "var", "shm"}
    assert "SHORTSTACK_KAFKA_BOOTSTRAP" not in each.environment("prepare")
    assert {"SHORTSTACK_KAFKA_BOOTSTRAP", "SHORTSTACK_STORAGE_URL"} <= set(each.environment("agent"))
    assert [c["command"][-1] for c in each.containers] == ["prepare", "train", "agent"]


def test_gpus_of_a_run_are_its_ranks() -> None:
    objects = render("training.job.gpus=4", "gpu.resource=amd.com/gpu", "training.job.runtimeClassName=gpu")
    each = pod(objects, "trainer")
    assert _container(each.spec, "trainer")["resources"]["limits"]["amd.com/gpu"] == 4
    assert "amd.com/gpu" not in _container(each.spec, "agent")["resources"]["limits"]
    assert each.spec["runtimeClassName"] == "gpu"
    assert pod(objects, "training").environment("training")["SHORTSTACK_TRAINING_PROCESSES"] == "4"
    assert pod(render(values="small-cpu"), "training").environment("training")["SHORTSTACK_TRAINING_PROCESSES"] == "1"


def test_shared_memory_is_in_memory_and_bounded() -> None:
    objects = render("training.job.sharedMemory=4Gi")
    for component, size in {"trainer": "4Gi", "server": "1Gi"}.items():
        (volume,) = [v for v in pod(objects, component).spec["volumes"] if v["name"] == "shm"]
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_tgi_gets_what_it_must_have() -> None:
    """The facts of TGI 3.3.7: from its source, and from a running one."""
    each = pod(render(*TGI), "server")
    server, told = _container(each.spec, "server"), each.environment("server")
    assert server["image"] == "shortstack/tgi:0.1.0"
    # Four stops are the default limit, which one of our prompt formats alone takes.
    assert told["MAX_STOP_SEQUENCES"] == "16"
    # Images listen at 80, which a numeric user may not; the kubelet sets HOSTNAME to the pod's name.
    assert (told["PORT"], told["HOSTNAME"]) == ("8080", "0.0.0.0")
    assert (told["USAGE_STATS"], told["HF_HUB_OFFLINE"]) == ("off", "1")
    writable = {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/dev/shm", "/usr/src/out"}
    caches = ("HOME", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "OUTLINES_CACHE_DIR")
    for variable in caches:
        assert told[variable].startswith("/tmp"), variable
    (shm,) = [volume for volume in each.spec["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    # It refuses connections at SIGTERM, and ends what is under way in its own time.
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]
    assert told["GRACEFUL_TERMINATION_TIMEOUT"] == "90"
    assert each.spec["terminationGracePeriodSeconds"] > 100
    # /health has blocked for 20 s while the shard was busy.
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server[probe]["httpGet"]["path"] == "/health"
        assert server[probe]["timeoutSeconds"] > 20
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] == 900
    assert each.spec["securityContext"]["runAsUser"] == 10001
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    # Adapters and the key are the controller's to say, and an entry point of the image's own starts it.
    assert not {"LORA_ADAPTERS", "API_KEY", "MODEL_ID"} & set(told)
    assert not {"command", "args"} & set(server)


def test_the_embedded_server_is_a_drop_in() -> None:
    tgi, embedded = made(render(*TGI)), made(render(*EMBEDDED))
    assert tgi["Service"] == embedded["Service"]
    one, other = tgi["Deployment"], embedded["Deployment"]
    a, b = (
        _container(one["spec"]["template"]["spec"], "server"),
        _container(other["spec"]["template"]["spec"], "server"),
    )
    assert b["image"] == "shortstack/inference:0.1.0"
    assert a["env"] == b["env"]
    differing = {key for key in a if a[key] != b.get(key)} | set(b) - set(a)
    assert differing == {"image", "resources", "volumeMounts"}
    assert [m for m in a["volumeMounts"] if m["mountPath"] != "/usr/src/out"] == b["volumeMounts"]
    for deployment, container in ((one, a), (other, b)):
        pod_spec = deployment["spec"]["template"]["spec"]
        pod_spec["containers"].remove(container)
        pod_spec["volumes"] = [volume for volume in pod_spec["volumes"] if volume["name"] != "out"]
    assert one == other


def test_weights_are_fetched_by_an_init_container_and_read_only_afterwards() -> None:
    each = pod(render(), "server")
    weights, server = _container(each.spec, "weights"), _container(each.spec, "server")
    assert weights["command"] == ["python", "-m", "shortstack.storage.weights", "fetch"]
    assert weights["image"] == "shortstack/serving:0.1.0"
    (mount,) = [mount for mount in server["volumeMounts"] if mount["name"] == "weights"]
    assert mount == {"name": "weights", "mountPath": "/weights", "readOnly": True}
    assert not [name for name in each.environment("server") if name.startswith(("AWS_", "SHORTSTACK_STORAGE"))]


def test_limits_of_a_model_are_values() -> None:
    told = pod(render("serving.server.maxTotalTokens=4096", "serving.server.gpus=2"), "server").environment("server")
    assert told["MAX_TOTAL_TOKENS"] == "4096"
    assert told["NUM_SHARD"] == "2"
    assert "MAX_INPUT_TOKENS" not in told


def test_nothing_of_a_version_stands_in_a_servers_template() -> None:
    """Its digest names servers: what changes with each chart would make all of them anew."""
    text = of_kind(render("image.tag=v9"), "ConfigMap")[f"{FULL}-templates"]["data"]["server.yaml"]
    assert "helm.sh/chart" not in text
    assert "0.1.0" not in text
    same = of_kind(render("image.tag=v9", "gateway.env.A=1"), "ConfigMap")[f"{FULL}-templates"]["data"]["server.yaml"]
    assert text == same


def test_a_controller_restarts_when_its_template_changes() -> None:
    def checksums(*sets: str) -> dict[str, str | None]:
        objects = render(*sets)
        components = ("training", "serving", "gateway")
        return {name: pod(objects, name).annotations.get("checksum/config") for name in components}

    before, after = checksums(), checksums("training.job.workSize=9Gi")
    assert before["training"] != after["training"]
    assert before["serving"] == after["serving"]
    assert before["gateway"] is None
    assert checksums("serving.server.replicas=2")["serving"] != before["serving"]


def test_how_servers_are_rolled_out_is_a_value() -> None:
    told = pod(render(values="gpu-tgi"), "serving").environment("serving")
    assert told["SHORTSTACK_ROLLOUT"] == "deployments"
    assert told["SHORTSTACK_ROLLOUT_STRATEGY"] == "replace"
    assert told["SHORTSTACK_SERVING_KEEP_SUPERSEDED"] == "false"


def test_rights_are_those_that_the_controllers_use() -> None:
    shared = {
        ("", "pods"): {"list"},
        ("", "events"): {"list"},
        ("", "configmaps"): {"get"},
    }
    making = {"create", "list", "delete"}
    own = {
        "training": {("batch", "jobs"): making | {"get"}},
        "serving": {("apps", "deployments"): making, ("", "services"): making},
    }
    objects = render()
    for component, rights in own.items():
        rules = of_kind(objects, "Role")[f"{FULL}-{component}"]["rules"]
        given = {(g, r): set(rule["verbs"]) for rule in rules for g in rule["apiGroups"] for r in rule["resources"]}
        assert given == shared | rights
        (owner,) = [rule for rule in rules if rule["resources"] == ["configmaps"]]
        assert owner["resourceNames"] == [f"{FULL}-owner"]
        binding = of_kind(objects, "RoleBinding")[f"{FULL}-{component}"]
        assert binding["subjects"][0]["name"] == binding["roleRef"]["name"] == f"{FULL}-{component}"
    assert not of_kind(render("rbac.create=false"), "Role")


def test_monitors_lead_to_services_with_metrics() -> None:
    objects = render(values="monitoring")
    services = [*of_kind(objects, "Service").values(), made(objects)["Service"]]
    monitors = of_kind(objects, "ServiceMonitor")
    assert len(monitors) == 7
    for monitor in monitors.values():
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [service for service in services if wanted <= service["metadata"]["labels"].items()]
        assert len(found) == 1, monitor["metadata"]["name"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
    unseen = of_kind(render("monitoring.serviceMonitors.enabled=true"), "ServiceMonitor")
    assert f"{FULL}-server" not in unseen, "nobody is let in to their metrics, so they would be seen as down"
    assert f"{FULL}-gateway" in unseen


@pytest.mark.parametrize("values", [name for name in VALUES if name != "monitoring"], ids=str)
def test_a_cluster_without_further_kinds_takes_the_chart(values: str | None) -> None:
    groups = {found["apiVersion"].rpartition("/")[0] for found in render(values=values)}
    assert groups <= {"", "apps", "batch", "networking.k8s.io", "rbac.authorization.k8s.io"}


def test_a_closed_gateway_is_watched_where_someone_is_let_in_to_its_metrics() -> None:
    closed = ("monitoring.serviceMonitors.enabled=true", "networkPolicy.gateway.open=false")
    peer = "networkPolicy.gateway.metricsFrom[0].podSelector.matchLabels.app=prometheus"
    assert f"{FULL}-gateway" not in of_kind(render(*closed), "ServiceMonitor")
    assert f"{FULL}-gateway" in of_kind(render(*closed, peer), "ServiceMonitor")


def test_the_dashboard_is_whole() -> None:
    (dashboard,) = [
        found
        for found in of_kind(render(values="monitoring"), "ConfigMap").values()
        if "grafana_dashboard" in found["metadata"]["labels"]
    ]
    (text,) = dashboard["data"].values()
    assert yaml.safe_load(text)["panels"]


def test_the_toolbox_starts_when_a_secret_is_missing_and_says_so() -> None:
    toolbox = pod(render(values="external-kafka"), "cli")
    from_secrets = [
        entry["valueFrom"]["secretKeyRef"] for entry in toolbox.containers[0]["env"] if "valueFrom" in entry
    ]
    assert len(from_secrets) == 3
    assert all(entry["optional"] is True for entry in from_secrets)
    (volume,) = [volume for volume in toolbox.spec["volumes"] if volume["name"] == "kafka-tls"]
    assert volume["secret"]["optional"] is True


def test_a_level_of_logs_starts_no_server_anew() -> None:
    texts = [
        of_kind(render(*sets), "ConfigMap")[f"{FULL}-templates"]["data"]["server.yaml"]
        for sets in ((), ("logging.level=DEBUG", "serving.resources.limits.memory=2Gi"))
    ]
    assert texts[0] == texts[1]
