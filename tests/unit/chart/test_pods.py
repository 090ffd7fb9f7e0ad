"""Every pod of a release, for every set of values: what it may do, and that what it is told makes sense to it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.unit.chart.rendering import (
    FULL,
    RELEASE,
    ROOT,
    VALUES,
    PodTemplate,
    made,
    matches,
    of_kind,
    pod,
    pods,
    render,
)

from shortstack.assembly.config import AssemblyConfig
from shortstack.core.config import ServiceConfig
from shortstack.formatting.config import FormattingConfig
from shortstack.gateway.config import GatewayConfig
from shortstack.inference.config import InferenceConfig
from shortstack.ingestion.config import IngestionConfig
from shortstack.serving.config import ServingConfig
from shortstack.training.config import TrainingConfig

CONFIGS: dict[str, type[ServiceConfig]] = {
    "ingestion": IngestionConfig,
    "formatting": FormattingConfig,
    "assembly": AssemblyConfig,
    "training": TrainingConfig,
    "serving": ServingConfig,
    "gateway": GatewayConfig,
}


@pytest.fixture(params=VALUES, ids=str)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(values=request.param)


def test_every_object_says_whose_it_is(objects: list[dict[str, Any]]) -> None:
    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "shortstack", found["metadata"]["name"]
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/component"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"].startswith("shortstack-")
        assert found["metadata"]["name"].startswith(FULL)
        assert len(found["metadata"]["name"]) <= 63


def test_all_pods_are_there(objects: list[dict[str, Any]]) -> None:
    expected = {"kafka", "topics", "base-models", "cli", "test", "trainer", "server", *CONFIGS}
    kafka = set() if "StatefulSet" in {found["kind"] for found in objects} else {"kafka"}
    assert {each.component for each in pods(objects)} == expected - kafka


def test_pod_security_is_restricted(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        security = each.spec["securityContext"]
        assert security["runAsNonRoot"] is True, each.owner
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(each.spec)
        assert all(set(volume) & {"hostPath"} == set() for volume in each.spec["volumes"])
        for container in each.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, f"{each.owner} {container['name']}"


def test_only_the_two_controllers_get_a_token(objects: list[dict[str, Any]]) -> None:
    with_token = {each.component for each in pods(objects) if each.spec["automountServiceAccountToken"] is not False}
    assert with_token == {"training", "serving"}
    for account in of_kind(objects, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False
    accounts = {each.component: each.spec["serviceAccountName"] for each in pods(objects)}
    assert accounts.pop("training") == f"{FULL}-training"
    assert accounts.pop("serving") == f"{FULL}-serving"
    assert set(accounts.values()) == {FULL}
    assert set(of_kind(objects, "ServiceAccount")) == {FULL, f"{FULL}-training", f"{FULL}-serving"}


def test_kubernetes_adds_no_variables_that_look_like_settings(objects: list[dict[str, Any]]) -> None:
    assert all(each.spec["enableServiceLinks"] is False for each in pods(objects))


def test_every_container_asks_for_what_it_needs(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        for container in each.containers:
            resources = container["resources"]
            assert set(resources["requests"]) >= {"cpu", "memory"}, f"{each.owner} {container['name']}"
            assert "memory" in resources["limits"]
            assert "cpu" not in resources["limits"], "a limit of CPU slows down what the machine had time for"


def test_why_a_container_ended_is_told_with_it(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        for container in each.containers:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", each.owner


def test_images_are_pulled_once(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        for container in each.containers:
            assert container["imagePullPolicy"] == "IfNotPresent"
            assert re.fullmatch(r"(registry\.example\.com/)?shortstack/[a-z-]+:0\.1\.0", container["image"])


def test_what_is_mounted_is_there_and_temporary_files_have_a_place(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        volumes = {volume["name"] for volume in each.spec["volumes"]} | (
            {"data"} if each.component == "kafka" else set()
        )
        used = set()
        for container in each.containers:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert len(mounts) == len(container["volumeMounts"]), f"{each.owner} mounts twice at one place"
            assert "/tmp" in mounts or each.owner == "", each.owner
            used |= {mount["name"] for mount in mounts.values()}
        assert used == volumes, each.owner


def test_a_variable_is_set_once(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        for container in each.containers:
            names = [entry["name"] for entry in container.get("env", [])]
            assert len(names) == len(set(names)), f"{each.owner} {container['name']}"
            assert all("value" in e or "valueFrom" in e for e in container.get("env", []))


@pytest.mark.parametrize("component", CONFIGS)
def test_a_service_understands_what_it_is_told(
    objects: list[dict[str, Any]], component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = pod(objects, component).environment(component)
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    config = CONFIGS[component]()

    fields = type(config).model_fields
    unknown = {name for name in told if name.startswith("SHORTSTACK_")} - {f"SHORTSTACK_{f.upper()}" for f in fields}
    assert not unknown
    assert config.host == "0.0.0.0"
    assert config.http_port == (8080 if component == "gateway" else 8081)
    assert config.storage_url in {"file:///blobs", "s3://shortstack/production"}


def test_the_model_server_understands_what_it_is_told(
    objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = pod(objects, "server").environment("server")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODEL_ID", "/weights/0123456789ab")

    config = InferenceConfig()

    assert (config.hostname, config.port, config.max_stop_sequences) == ("0.0.0.0", 8080, 16)
    assert config.graceful_termination_timeout == float(told["GRACEFUL_TERMINATION_TIMEOUT"])


def test_base_models_are_fetched_before_the_start_to_where_they_are_looked_for(objects: list[dict[str, Any]]) -> None:
    for component in ("training", "serving"):
        found = pod(objects, component)
        told = found.environment(component)["SHORTSTACK_BASE_MODELS"]
        for container in found.spec["initContainers"]:
            assert container["image"] == found.spec["containers"][0]["image"]
            command = container["command"]
            assert command[:4] == ["python", "-m", "shortstack.storage.weights", "fetch-base"]
            assert f'"{command[4]}":"{command[5]}"' in told
        assert len(found.spec["initContainers"]) == told.count("/bases/")


def test_one_base_model_that_is_not_imported_holds_up_no_service_that_has_others() -> None:
    one, two = render(), render("baseModels[0].name=a", "baseModels[1].name=b")
    for component in ("training", "serving"):
        (alone,) = pod(one, component).spec["initContainers"]
        assert "--unless" not in alone["command"], "without any there is nothing to do"
        first, second = (container["command"] for container in pod(two, component).spec["initContainers"])
        assert (first[4], first[-2:]) == ("a", ["--unless", "b"])
        assert (second[4], second[-2:]) == ("b", ["--unless", "a"])
        (mount,) = [m for m in pod(two, component).containers[-1]["volumeMounts"] if m["name"] == "bases"]
        assert not mount.get("readOnly"), "what comes later is fetched by the service itself"
    assert "initContainers" not in pod(two, "ingestion").spec, "it needs their names alone"


def test_a_pod_has_longer_than_what_runs_in_it(objects: list[dict[str, Any]]) -> None:
    for each in pods(objects):
        grace = each.spec["terminationGracePeriodSeconds"]
        for container in each.spec["containers"]:
            told = {entry["name"]: entry.get("value", "") for entry in container["env"]} if "env" in container else {}
            if "SHORTSTACK_SHUTDOWN_GRACE_S" in told:
                assert grace >= float(told["SHORTSTACK_SHUTDOWN_GRACE_S"]) + 10, each.owner
            if "GRACEFUL_TERMINATION_TIMEOUT" in told:
                pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
                assert grace >= pause + float(told["GRACEFUL_TERMINATION_TIMEOUT"]) + 10


def test_how_long_an_uninstall_takes_is_as_the_operating_document_says() -> None:
    text = (ROOT / "docs" / "operate.md").read_text().partition("## How long an uninstall takes")[2].partition("## ")[0]
    rows = {row[1]: row[3:5] for row in (re.split(r"\s*\|\s*", line) for line in text.splitlines()) if len(row) == 6}
    named = {"server": "model servers", "trainer": "trainers", "kafka": "broker", "gateway": "gateway"}
    for column, values in enumerate((None, "small-cpu")):
        said: dict[str, int] = {}
        for each in pods(render(values=values)):
            who = named.get(each.component, "other services" if each.component in CONFIGS else "")
            if who:
                said[who] = max(said.get(who, 0), each.spec["terminationGracePeriodSeconds"])
        assert said == {who: int(rows[who][column]) for who in said}
        longest = max(each.spec["terminationGracePeriodSeconds"] for each in pods(render(values=values)))
        assert longest == max(said.values())


def test_everything_that_serves_is_probed(objects: list[dict[str, Any]]) -> None:
    serving = [each for each in pods(objects) if each.owner.split("/")[0] in {"Deployment", "StatefulSet", "made"}]
    for each in serving:
        for container in each.spec["containers"]:
            if "ports" not in container:
                continue
            ports = {port["name"] for port in container["ports"]}
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container[name]
                assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in ports, f"{each.owner} {name}"
            start = container["startupProbe"]
            assert start["periodSeconds"] * start["failureThreshold"] >= 120


def test_services_lead_to_pods(objects: list[dict[str, Any]]) -> None:
    everything = [*objects, *made(objects).values()]
    services = [found for found in everything if found["kind"] == "Service"]
    assert len(services) >= 7
    for service in services:
        found = [each for each in pods(objects) if matches({"matchLabels": service["spec"]["selector"]}, each.labels)]
        assert len(found) == 1, service["metadata"]["name"]
        named = {port["name"] for container in found[0].spec["containers"] for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_selectors_select_their_own_pods(objects: list[dict[str, Any]]) -> None:
    for found in [*objects, *made(objects).values()]:
        if found["kind"] in {"Deployment", "StatefulSet"}:
            labels = found["spec"]["template"]["metadata"]["labels"]
            assert matches(found["spec"]["selector"], labels)
            # A selector can never change: nothing of a version may be in it.
            assert set(found["spec"]["selector"]["matchLabels"]) == {
                "app.kubernetes.io/name",
                "app.kubernetes.io/instance",
                "app.kubernetes.io/component",
            }


def test_who_writes_alone_is_never_two(objects: list[dict[str, Any]]) -> None:
    deployments = of_kind(objects, "Deployment")
    for component in ("assembly", "training", "serving"):
        spec = deployments[f"{FULL}-{component}"]["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_gateway_on_a_file_database_is_never_two() -> None:
    spec = of_kind(render(), "Deployment")[f"{FULL}-gateway"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    several = render("gateway.replicas=2", "gateway.database.existingSecret=mine")
    shared = of_kind(several, "Deployment")[f"{FULL}-gateway"]["spec"]
    assert shared["replicas"] == 2
    assert "strategy" not in shared


def test_no_set_of_values_wants_a_database_that_the_image_has_no_driver_for(objects: list[dict[str, Any]]) -> None:
    told = pod(objects, "gateway").environment("gateway")
    assert told["SHORTSTACK_DATABASE_URL"] == "sqlite:////data/gateway.db"


def test_a_small_node_has_room_for_all_of_it() -> None:
    everything = [each for each in pods(render(values="small-cpu")) if each.component != "test"]
    assert sum(_requested(each, "cpu") for each in everything) <= 1.5
    assert sum(_requested(each, "memory") for each in everything) <= 3.5 * 2**30
    at_rest = [each for each in everything if each.component not in {"trainer", "topics", "base-models"}]
    assert sum(_requested(each, "memory") for each in at_rest) <= 2.5 * 2**30


def _requested(each: PodTemplate, what: str) -> float:
    asked = [_quantity(container["resources"]["requests"][what]) for container in each.spec["containers"]]
    first = [_quantity(c["resources"]["requests"][what]) for c in each.spec.get("initContainers", [])]
    return max(sum(asked), *first, 0.0)


def _quantity(text: str) -> float:
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    assert found, text
    return float(found[1]) * units.get(found[2], 1)
