"""Values: wrong ones are refused by name, and all that is written of them is fresh."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import chart_files
import jsonschema
import pytest
import yaml
from tests.unit.chart.rendering import CHART, ROOT, VALUES, Refused, made, of_kind, pod, render


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("kafak.kind=external", "kafak"),
        ("kafka.embeded.size=1Gi", "embeded"),
        ("kafka.kind=strimzi", "kind"),
        ("gateway.replica=2", "replica"),
        ("gateway.replicas=two", "replicas"),
        ("serving.rollout=canary", "rollout"),
        ("serving.server.gpu=1", "gpu"),
        ("training.job.workSize=lots", "workSize"),
        ("storage.claim.accessMode=ReadWriteOncePod", "accessMode"),
        ("ingestion.resources.request.cpu=1", "request"),
        ("formatting.env.a-b=1", "a-b"),
        ("networkPolicy.kafkaFrom[0].podselector.x=1", "podselector"),
        ("kafka.kind=external", "bootstrap"),
        ("storage.kind=s3", "bucket"),
        ("gateway.ingress.enabled=true", "hosts"),
        ("baseModels[0].nmae=x", "nmae"),
        ("gateway.replicas=2", "gateway.replicas"),
        ("serving.rollout=replace,serving.keepSuperseded=true", "serving.keepSuperseded"),
        ("training.env.SHORTSTACK_LAUNCHER=processes", "training.env.SHORTSTACK_LAUNCHER"),
        ("serving.server.dtype=float32", "dtype"),
        ("serving.server.maxInputTokens=4096,serving.server.maxTotalTokens=4096", "serving.server.maxInputTokens"),
        ("serving.server.kind=embedded,serving.server.maxInputTokens=9,serving.server.maxTotalTokens=8", "TotalTokens"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(given: str, named: str) -> None:
    with pytest.raises(Refused, match=named):
        render(given)


def test_what_one_kind_of_server_refuses_the_other_may_take() -> None:
    told = pod(render("serving.server.kind=embedded", "serving.server.dtype=float32"), "server").environment("server")
    assert told["DTYPE"] == "float32"
    limits = ("serving.server.maxInputTokens=4095", "serving.server.maxTotalTokens=4096")
    assert pod(render(*limits), "server").environment("server")["MAX_INPUT_TOKENS"] == "4095"
    assert "MAX_TOTAL_TOKENS" not in pod(render(limits[0]), "server").environment("server")


@pytest.mark.parametrize("place", ["commonLabels", "gateway.podLabels", "training.job.podLabels"])
@pytest.mark.parametrize(
    "label",
    [
        *(f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "managed-by")),
        *("helm.sh/chart", "shortstack/api-client", "shortstack/blobs", "shortstack/run"),
    ],
)
def test_a_label_that_selectors_or_policies_rest_on_is_refused(place: str, label: str) -> None:
    with pytest.raises(Refused, match=label):
        render(f"{place}.{label.replace('.', chr(92) + '.')}=mine")


def test_other_labels_are_put_on_and_one_of_ours_opens_kafka() -> None:
    opened = render("commonLabels.team=a", "gateway.podLabels.shortstack/kafka-client=true_", r"cli.podLabels.a\.b/c=d")
    assert pod(opened, "gateway").labels["shortstack/kafka-client"] == "true_"
    assert pod(opened, "cli").labels["a.b/c"] == "d"
    assert all(found["metadata"]["labels"]["team"] == "a" for found in opened)
    with pytest.raises(Refused, match="shortstack/kafka-client"):
        render("commonLabels.shortstack/kafka-client=true_")


def test_a_password_wants_a_secret() -> None:
    with pytest.raises(Refused, match="existingSecret"):
        render(
            "kafka.kind=external", "kafka.external.bootstrap=k:9092", "kafka.external.securityProtocol=SASL_PLAINTEXT"
        )


def test_global_is_free() -> None:
    assert render("global.anything.at.all=1")


def test_settings_of_a_service_are_passed_on() -> None:
    told = pod(render("gateway.env.SHORTSTACK_STREAM_MAX_S=30"), "gateway").environment("gateway")
    assert told["SHORTSTACK_STREAM_MAX_S"] == "30"


def test_whole_numbers_of_a_values_file_stay_whole() -> None:
    """Helm reads them as floats, which would be told as 5.36870912e+08."""
    objects = render(
        "gateway.env.SHORTSTACK_UPLOAD_MAX_BYTES=536870912",
        "serving.server.env.BYTES=268435456",
        "serving.server.maxTotalTokens=1000000",
        "topics.deadlineSeconds=2592000",
        "training.job.keepSeconds=2592000",
    )
    assert pod(objects, "gateway").environment("gateway")["SHORTSTACK_UPLOAD_MAX_BYTES"] == "536870912"
    server = pod(objects, "server").environment("server")
    assert (server["BYTES"], server["MAX_TOTAL_TOKENS"]) == ("268435456", "1000000")
    (topics,) = [job for name, job in of_kind(objects, "Job").items() if "topics" in name]
    kept = [topics["spec"]["activeDeadlineSeconds"], made(objects)["Job"]["spec"]["ttlSecondsAfterFinished"]]
    assert [(type(seconds), seconds) for seconds in kept] == [(int, 2592000)] * 2


def test_a_fraction_and_a_yes_stay_what_they_are() -> None:
    objects = render("gateway.env.HALF=0.5,gateway.env.YES=true,gateway.env.WORD=1e3")
    told = pod(objects, "gateway").environment("gateway")
    assert (told["HALF"], told["YES"], told["WORD"]) == ("0.5", "true", "1e3")


def test_every_number_is_told_as_on_the_command_line() -> None:
    """Each one that the schema knows, so large that a float of it would be written with an exponent."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    large = [f"{path}=12345678" for path in _whole_numbers(schema) if path != "gateway.replicas"]
    assert len(large) > 20
    large.append("serving.server.maxInputTokens=12345677")
    assert _unowned(render(*large)) == _unowned(render(*large, by="set"))


def _whole_numbers(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, entry in schema["properties"].items():
        if entry.get("type") == "integer" and "maximum" not in entry:
            yield f"{path}{name}"
        yield from _whole_numbers(entry, f"{path}{name}.") if "properties" in entry else ()


def _unowned(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """But for the key, which is drawn anew."""
    return [found for found in objects if found["kind"] != "Secret"]


def test_the_schema_knows_every_value_and_every_value_has_a_meaning() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = list(chart_files.leaves(schema, values))
    assert len(rows) > 200
    assert all(meaning.endswith((".", "`.")) for _, _, meaning in rows)


def test_the_schema_is_strict_wherever_it_names_values() -> None:
    def loose(schema: dict[str, object], path: str = "") -> list[str]:
        found = []
        for name, entry in schema["properties"].items():  # type: ignore[attr-defined]
            if "properties" in entry:
                found += [] if entry["additionalProperties"] is False else [f"{path}{name}"]
                found += loose(entry, f"{path}{name}.")
            elif entry.get("type") == "object":
                found.append(f"{path}{name}")
        return found

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert loose(schema) == ["global"]


def test_readme_and_topics_are_fresh() -> None:
    assert chart_files.main(["--check"]) == 0


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == chart["version"] == project["version"]


def test_the_readme_names_every_set_of_values() -> None:
    readme = (CHART / "README.md").read_text()
    assert all(f"`{name}.yaml`" in readme for name in VALUES if name)


def test_a_secret_that_is_named_is_not_drawn() -> None:
    objects = render("gateway.key.existingSecret=mine", "gateway.key.secretKey=token")
    assert not of_kind(objects, "Secret")
    assert pod(objects, "gateway").environment("gateway")["SHORTSTACK_BOOTSTRAP_KEY"] == "secret/token"
    assert pod(objects, "cli").environment("cli")["SHORTSTACK_API_KEY"] == "secret/token"


def test_where_pods_run_is_said_once_or_for_each() -> None:
    objects = render(
        "storage.claim.accessMode=ReadWriteMany",
        "scheduling.nodeSelector.pool=general",
        "training.job.nodeSelector.pool=gpu",
        "training.job.tolerations[0].key=nvidia.com/gpu",
        "training.job.tolerations[0].operator=Exists",
    )
    assert pod(objects, "gateway").spec["nodeSelector"] == {"pool": "general"}
    assert pod(objects, "trainer").spec["nodeSelector"] == {"pool": "gpu"}
    assert pod(objects, "trainer").spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_names_of_images_are_put_together_and_can_be_given_whole() -> None:
    objects = render("image.registry=r.example.com", "image.prefix=team/x", "image.tag=v2", "cli.image=other:1")
    assert pod(objects, "gateway").containers[0]["image"] == "r.example.com/team/x/gateway:v2"
    assert pod(objects, "cli").containers[0]["image"] == "other:1"
    assert pod(render("image.prefix="), "gateway").containers[0]["image"] == "gateway:0.1.0"
