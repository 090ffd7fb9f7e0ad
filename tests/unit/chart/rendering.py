"""The chart as helm renders it, and the pods that are in it, those that controllers make later too."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "shortstack"
RELEASE = "demo"
FULL = "demo-shortstack"
VALUES = [None, *sorted(path.stem for path in (CHART / "values").glob("*.yaml"))]
"""Sets of values: the defaults, and each file below the chart's ``values``."""

Object = dict[str, Any]
Given = Literal["file", "set"]


class Refused(Exception):
    """Helm did not render the chart; says why."""


@dataclass(frozen=True)
class PodTemplate:
    """A pod that the chart makes, or has made.

    Attributes:
        owner: kind and name of what makes it; of the controllers' own, ``made/Job`` and ``made/Deployment``.
        labels, annotations, spec: as in the manifest.
    """

    owner: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def environment(self, container: str) -> dict[str, str]:
        """Its variables; what comes from a secret stands as secret/KEY."""
        (found,) = [c for c in self.containers if c["name"] == container]
        return {entry["name"]: entry.get("value", _secret(entry)) for entry in found["env"]}


def _secret(entry: Object) -> str:
    return f"secret/{entry['valueFrom']['secretKeyRef']['key']}" if "valueFrom" in entry else ""


def helm() -> str:
    """The helm command; skips the test where there is none."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(ROOT / ".tools" / "bin")])
    found = shutil.which("helm", path=path)
    if found is None:
        pytest.skip("there is no helm on the PATH or in .tools/bin; `make check` builds it where there is Go")
    return found


def render(
    *sets: str, values: str | None = None, chart: Path = CHART, by: Given = "file", cluster: Path | None = None
) -> list[Object]:
    """The objects of the chart.

    Args:
        sets: as of ``--set``.
        values: name of a file below the chart's ``values``.
        chart: another one.
        cluster: kubeconfig of the API server that ``lookup`` asks; None: nothing is found.
        by: how helm is given ``sets``. As a file, as people do: there its numbers are floats, with ``--set`` integers.

    Raises:
        Refused: a value is wrong.
    """
    return list(_rendered(sets, values, chart, by, cluster))


@cache
def _rendered(
    sets: tuple[str, ...], values: str | None, chart: Path, by: Given, cluster: Path | None
) -> tuple[Object, ...]:
    given = ["--values", str(CHART / "values" / f"{values}.yaml")] if values else []
    given += [part for each in sets for part in ("--set", each)] if by == "set" else ["--values", "-"]
    given += ["--kubeconfig", str(cluster), "--dry-run=server"] if cluster else []
    command = [helm(), "template", RELEASE, str(chart), "--namespace", "here", *given]
    text = json.dumps(nested(sets)) if by == "file" else None
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise Refused(done.stderr)
    # The parser in C, where there is one: the manifests are long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(document for document in yaml.load_all(done.stdout, loader) if document)


def nested(sets: Sequence[str]) -> Object:
    """What ``--set`` means, as a person writes it into a values file: fractions, which it takes for words, are numbers.

    Source of its syntax: Helm's documentation, "Using Helm".
    """
    found: Object = {}
    for each in sets:
        for assignment in _PARTS.findall(each):
            path, _, value = assignment.partition("=")
            steps = [step.replace("\\.", ".") for step in _STEPS.findall(path)]
            _put(found, [int(step[1:-1]) if step.startswith("[") else step for step in steps], _value(value))
    return found


_PARTS = re.compile(r"(?:\{[^}]*\}|\\.|[^,])+")
_STEPS = re.compile(r"\[\d+\]|(?:\\.|[^.\[])+")


def _put(into: Any, steps: Sequence[str | int], value: object) -> None:
    *way, last = steps
    for step, following in pairwise([*way, last]):
        fresh: Any = [] if isinstance(following, int) else {}
        if isinstance(step, str):
            into = into.setdefault(step, fresh)
        else:
            into.extend(deepcopy(fresh) for _ in range(step + 1 - len(into)))
            into = into[step]
    if isinstance(last, int):
        into.extend([None] * (last + 1 - len(into)))
    into[last] = value


def _value(text: str) -> object:
    if text.startswith("{"):
        return [_value(part) for part in text[1:-1].split(",") if part]
    if text in {"true", "false", "null"} or re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", text):
        return json.loads(text)
    return text.replace("\\,", ",")


def notes(folder: Path, *sets: str, cluster: Path | None = None) -> str:
    """What an install says at its end; ``folder`` is for a copy of the chart, as helm tells it to installs alone."""
    chart = shutil.copytree(CHART, folder / f"notes-{len(list(folder.iterdir()))}")
    text = (
        '{{ dict "kind" "Notes" "metadata" (dict "name" "notes") "text" (include "shortstack/templates/NOTES.txt" .) }}'
    )
    (chart / "templates" / "notes.yaml").write_text(text.replace("}}", "| toYaml }}"))
    return str(of_kind(render(*sets, chart=chart, cluster=cluster), "Notes")["notes"]["text"])


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Objects of a kind by name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def made(objects: list[Object], full: str = FULL) -> dict[str, Object]:
    """What the controllers make: Job, Deployment, Service."""
    texts = of_kind(objects, "ConfigMap")[f"{full}-templates"]["data"]
    return {found["kind"]: found for text in texts.values() for found in yaml.safe_load_all(text)}


def pods(objects: list[Object], full: str = FULL) -> list[PodTemplate]:
    """Every pod of the release, those of the controllers too."""
    return [*_pods(objects, ""), *_pods(list(made(objects, full).values()), "made/")]


def pod(objects: list[Object], component: str) -> PodTemplate:
    """The one pod of a component."""
    (found,) = [each for each in pods(objects) if each.component == component]
    return found


def _pods(objects: list[Object], prefix: str) -> Iterator[PodTemplate]:
    for found in objects:
        kind, metadata = found["kind"], found["metadata"]
        if kind == "Pod":
            yield _pod(f"Pod/{metadata['name']}", metadata, found["spec"])
        elif kind in {"Deployment", "StatefulSet", "Job"}:
            template = found["spec"]["template"]
            name = kind if prefix else f"{kind}/{metadata['name']}"
            yield _pod(f"{prefix}{name}", template["metadata"], template["spec"])


def _pod(owner: str, metadata: Mapping[str, Any], spec: Object) -> PodTemplate:
    return PodTemplate(owner, dict(metadata["labels"]), dict(metadata.get("annotations") or {}), spec)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels alone selects; an empty one selects all."""
    assert set(selector) <= {"matchLabels"}, f"a selector that this does not read: {selector}"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
