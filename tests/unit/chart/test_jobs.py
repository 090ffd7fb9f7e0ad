"""What the chart runs once: topics and base models; and that nothing but the tests waits in a hook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.chart.rendering import CHART, FULL, RELEASE, ROOT, VALUES, of_kind, pod, pods, render


def _names(objects: list[dict[str, Any]]) -> dict[str, str]:
    found = {
        name: re.fullmatch(rf"{FULL}-(topics|base-models)-([0-9a-f]{{10}})", name) for name in of_kind(objects, "Job")
    }
    assert all(found.values()), found
    return {match[1]: match[2] for match in found.values() if match}


def test_nothing_but_the_tests_is_a_hook() -> None:
    for values in VALUES:
        for found in render(values=values):
            hook = (found["metadata"].get("annotations") or {}).get("helm.sh/hook")
            assert hook == ("test" if found["kind"] == "Pod" else None), found["metadata"]["name"]


def test_a_test_that_failed_is_kept_to_be_read_and_all_texts_say_how_to_remove_it() -> None:
    """Helm 3 deletes by policy before it reads logs, and an uninstall leaves hooks, so a failed one is for people."""
    objects = render()
    for found in of_kind(objects, "Pod").values():
        policy = found["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(",")
        assert policy == ["before-hook-creation", "hook-succeeded"]
    uninstalling = (ROOT / "docs" / "install.md").read_text().partition("## Upgrade, uninstall")[2]
    for text, release in ((CHART / "README.md").read_text(), "RELEASE"), (uninstalling, "shortstack"):
        (selector,) = re.findall(r"kubectl delete pod -l (\S+?)(?:`|\s)", text)
        wanted = dict(part.split("=") for part in selector.replace(release, RELEASE).split(","))
        left = [each.owner for each in pods(objects) if wanted.items() <= each.labels.items()]
        assert left == [f"Pod/{name}" for name in of_kind(objects, "Pod")]


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("image.tag=v2", {"topics", "base-models"}),
        ("kafka.replication=3", {"topics"}),
        ("ingestion.owners={alice}", {"topics"}),
        ("topics.resources.requests.cpu=60m", {"topics"}),
        ("baseModels[0].name=other", {"base-models"}),
        ("storage.claim.existingClaim=mine", {"base-models"}),
        ("gateway.env.SHORTSTACK_STREAM_MAX_S=30", set()),
        ("kafka.embedded.heapMb=512", set()),
        ("training.parallel=2", set()),
    ],
)
def test_a_job_has_another_name_when_it_would_do_something_else(given: str, changed: set[str]) -> None:
    before, after = _names(render()), _names(render(given))
    assert {name for name in before if before[name] != after[name]} == changed


def test_another_declaration_of_topics_makes_another_job(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "shortstack")
    declared = chart / "files" / "topics.json"
    declared.write_text(declared.read_text().replace('"partitions": 4', '"partitions": 8', 1))
    before, after = _names(render()), _names(render(chart=chart))
    assert before["topics"] != after["topics"]
    assert before["base-models"] == after["base-models"]


def test_jobs_go_on_when_the_cause_is_gone() -> None:
    for job in of_kind(render(), "Job").values():
        assert job["spec"]["backoffLimit"] >= 1000
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
        assert "activeDeadlineSeconds" not in job["spec"]
        assert "ttlSecondsAfterFinished" not in job["spec"], "GitOps would run it over and over"
    assert of_kind(render("topics.deadlineSeconds=60"), "Job")


def test_topics_of_owners_are_applied_and_read() -> None:
    objects = render("ingestion.owners={alice,bob}")
    assert pod(objects, "topics").containers[0]["command"][-2:] == ["alice", "bob"]
    assert pod(objects, "ingestion").environment("ingestion")["SHORTSTACK_INGEST_OWNERS"] == '["alice","bob"]'


def test_base_models_come_from_an_image_or_a_claim() -> None:
    importing = pod(render(values="existing-secrets"), "base-models")
    small, large = importing.containers
    assert small["command"][-2:] == ["smollm2-135m-instruct", "/models/smollm2-135m-instruct"]
    assert not [mount for mount in small["volumeMounts"] if mount["mountPath"] == "/models"]
    assert large["command"][-2:] == ["qwen2.5-7b-instruct", "/models/qwen2.5-7b-instruct"]
    (mount,) = [mount for mount in large["volumeMounts"] if mount["mountPath"] == "/models"]
    (volume,) = [volume for volume in importing.spec["volumes"] if volume["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_test_pods_run_what_the_chart_holds() -> None:
    objects = render()
    scripts = of_kind(objects, "ConfigMap")[f"{FULL}-tests"]["data"]
    commands = {each.containers[0]["command"][1] for each in pods(objects) if each.component == "test"}
    assert commands == {f"/tests/{name}" for name in scripts}
    for name, text in scripts.items():
        compile(text, name, "exec")
