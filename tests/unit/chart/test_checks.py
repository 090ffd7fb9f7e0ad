"""The checks of the chart that run without a cluster: what they catch, and that nothing is passed unseen."""

from __future__ import annotations

from pathlib import Path

import chart_checks
import pytest
from chart_schemas import KUBERNETES, location
from tests.unit.chart.rendering import helm


@pytest.fixture
def kubeconform(tmp_path: Path) -> list[str]:
    """The command with schemas that are written for this test."""
    found = chart_checks.find("kubeconform")
    if found is None:
        pytest.skip("there is no kubeconform on the PATH or in .tools/bin; `make check` builds it where there is Go")
    where = location(tmp_path / "schemas")
    assert where is not None, "the extra dev brings the package kubernetes-validate"
    return [found, "-strict", "-skip", "ServiceMonitor", "-schema-location", where]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("      containers:\n", "      containrs:\n"),
        ("runAsNonRoot: true", 'runAsNonRoot: "yes"'),
        ("kind: RoleBinding\n", "kind: RoleBindings\n"),
        ("replicas: 1\n", "replicas: 1\n  replcas: 1\n"),
        ("replicas: 1\n", "replicas: 1\n  replicas: 2\n"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused(kubeconform: list[str], right: str, wrong: str) -> None:
    manifests = chart_checks.rendered(helm(), None)
    assert right in manifests
    assert chart_checks.passes(kubeconform, "as it is", manifests)
    assert not chart_checks.passes(kubeconform, "made wrong", manifests.replace(right, wrong))


def test_schemas_are_written_once_and_whole(tmp_path: Path) -> None:
    assert location(tmp_path) == location(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [KUBERNETES]
    kinds = {path.name for path in (tmp_path / KUBERNETES).iterdir()}
    assert {"deployment-apps-v1.json", "pod-v1.json", "networkpolicy-networking-v1.json"} <= kinds


@pytest.mark.parametrize("absent", ["helm", "kubeconform", "schemas"])
@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_what_cannot_be_checked_fails_where_it_must_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str, ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(chart_checks, "find", lambda name: None if name == absent else name)
    monkeypatch.setattr(chart_checks, "location", lambda folder: None if absent == "schemas" else "here")
    monkeypatch.setattr(chart_checks, "check", lambda helm, kubeconform: True)
    assert chart_checks.main() == code
    said = "".join(capsys.readouterr())
    assert {"helm": "no helm", "kubeconform": "no kubeconform", "schemas": "kubernetes-validate"}[absent] in said


def test_with_everything_there_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(chart_checks, "find", lambda name: name)
    monkeypatch.setattr(chart_checks, "location", lambda folder: "here")
    seen: list[list[str] | None] = []

    def check(helm: str, kubeconform: list[str] | None) -> bool:
        seen.append(kubeconform)
        return True

    monkeypatch.setattr(chart_checks, "check", check)
    assert chart_checks.main() == 0
    assert seen == [["kubeconform", "-schema-location", "here"]]
