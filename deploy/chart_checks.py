"""Checks of the chart without a cluster: what is written from elsewhere is fresh, and every values file renders.

helm lint, then helm template | kubeconform -strict, for the defaults and each file below helm/shortstack/values; what
the controllers make from the rendered templates is checked as well. helm and kubeconform come from the PATH, else from
.tools/bin, else are built there once with Go, which takes minutes. Where that cannot be had, it says what is left out;
with CI=true it fails then, so that nothing passes there that was not looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chart_files import CHART
from chart_files import main as check_files
from chart_schemas import location
from environment import TOOLS, exclusive, say

BIN = TOOLS / "bin"
SCHEMAS = TOOLS / "schemas"
RELEASE = ("check", "--namespace", "check")


@dataclass(frozen=True)
class GoTool:
    """A program that can be built from its published source.

    Attributes:
        package: of Go.
        version: that is built here; another one on the PATH is taken as it is.
        seconds: that a build took on two cores, to tell whoever waits.
        variable: of the linker, that its version is written to.
    """

    package: str
    version: str
    seconds: int
    variable: str


TOOLS_OF_GO = {
    "helm": GoTool("helm.sh/helm/v3/cmd/helm", "v3.18.6", 120, "helm.sh/helm/v3/internal/version.version"),
    "kubeconform": GoTool("github.com/yannh/kubeconform/cmd/kubeconform", "v0.6.7", 20, "main.version"),
}


def find(name: str) -> str | None:
    """The program, from the PATH or .tools/bin; built there if it is in neither; None where that fails."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(BIN)])
    return shutil.which(name, path=path) or build(name)


def build(name: str) -> str | None:
    """Builds a program with Go into .tools/bin; None where there is no Go or it fails, after saying why."""
    go, tool = shutil.which("go"), TOOLS_OF_GO[name]
    if go is None:
        say(f"There is no {name} here, and no Go to build it with.")
        return None
    with exclusive():
        if (BIN / name).exists():
            return str(BIN / name)
        say(f"Building {name} {tool.version} into .tools/bin, once: about {tool.seconds} s on two free cores.")
        began = time.monotonic()
        environment = dict(os.environ) | {"GOBIN": str(BIN), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
        flags = ["-trimpath", "-ldflags", f"-s -w -X {tool.variable}={tool.version}"]
        done = subprocess.run(
            [go, "install", *flags, f"{tool.package}@{tool.version}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            say(f"Building {name} failed: {done.stderr.strip()[-600:]}")
            return None
        say(f"Built {name} in {time.monotonic() - began:.0f} s.")
    return str(BIN / name)


def values_files() -> list[Path | None]:
    """The defaults, as None, then each values file."""
    return [None, *sorted((CHART / "values").glob("*.yaml"))]


def rendered(helm: str, values: Path | None) -> str:
    """The chart's manifests.

    Raises:
        subprocess.CalledProcessError: it does not render.
    """
    given = ["--values", str(values)] if values else []
    command = [helm, "template", *RELEASE, str(CHART), *given]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def made_later(manifests: str) -> Iterator[str]:
    """What the controllers make: the texts of the ConfigMap of templates."""
    for found in yaml.safe_load_all(manifests):
        document: dict[str, Any] = found or {}
        if document.get("kind") == "ConfigMap" and document["metadata"]["name"].endswith("-templates"):
            yield from document["data"].values()


def passes(command: Sequence[str], about: str, text: str | None = None) -> bool:
    """Whether a command ends well; else what it said is shown."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(f"{about}:\n{done.stdout}{done.stderr}\n")
    return done.returncode == 0


def check(helm: str, kubeconform: list[str] | None) -> bool:
    """Whether every values file lints, renders, and renders to what the API server takes."""
    good = True
    for values in values_files():
        name = values.name if values else "the defaults"
        given = ["--values", str(values)] if values else []
        lint = [helm, "lint", "--strict", "--quiet", str(CHART), *given]
        if not passes(lint, f"helm lint with {name}"):
            good = False
            continue
        manifests = rendered(helm, values)
        if kubeconform:
            text = "\n---\n".join([manifests, *made_later(manifests)])
            # The Prometheus operator's kind is not one of Kubernetes'.
            good &= passes([*kubeconform, "-strict", "-skip", "ServiceMonitor"], f"kubeconform with {name}", text)
    return good


def lacks(what: str) -> int:
    """Says what is left out; 1 where that may not be."""
    say(what)
    if os.environ.get("CI") != "true":
        return 0
    say("With CI=true none of the chart's checks may be left out: have it on the PATH, in .tools/bin, or bring Go.")
    return 1


def main() -> int:
    """Everything that can be checked here; 1 if something is wrong, or was left out where it may not be."""
    stale = check_files(["--check"])
    helm = find("helm")
    if helm is None:
        return max(stale, lacks("The chart is not rendered: there is no helm."))
    kubeconform, schemas = find("kubeconform"), location(SCHEMAS)
    command = [kubeconform, "-schema-location", schemas] if kubeconform and schemas else None
    if not check(helm, command):
        return 1
    if command is None:
        missing = "kubeconform" if kubeconform is None else "package kubernetes-validate, which is in the extra dev"
        return max(
            stale, lacks(f"What the chart renders is not held against Kubernetes' schemas: there is no {missing}.")
        )
    say(f"The chart with {len(values_files())} sets of values: helm lint and kubeconform -strict.")
    return stale


if __name__ == "__main__":
    sys.exit(main())
