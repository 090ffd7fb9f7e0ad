"""The stack's images in the lab: built where their files changed, and given to its containerd where it lacks them.

python -m tests.cluster.images    does that for the lab beside the repository, once it is up
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cluster.cluster import Cluster, lab, named_cluster

__all__ = ["LabImages", "any_cluster", "image_name", "image_values"]

ROOT: Final = Path(__file__).resolve().parents[2]
REGISTRY: Final = "localhost"
PREFIX: Final = f"{REGISTRY}/shortstack"
PYTHON_IMAGE: Final = "localhost/lab/python:3.11"
NAMES: Final = (
    "ingestion",
    "formatting",
    "assembly",
    "serving",
    "gateway",
    "cli",
    "broker",
    "training",
    "inference",
    "base-model",
)
"""What the chart runs here. TGI needs a GPU."""

_SOCKET: Final = "/run/lab/containerd.sock"
_LABEL: Final = "shortstack/image"
_BUILD_S: Final = 2400.0
_AS_HERE: Final = ("/etc/ssl/certs", "/etc/pip.conf")
"""How this machine reaches the package index: its certificates and pip's settings, for a build's steps too."""


def image_values(*, in_lab: bool) -> dict[str, Any]:
    """Chart values that name the images: those of the lab, else what SHORTSTACK_TEST_IMAGES says, as JSON of values
    such as {"image.registry": "registry.example"}; the chart's own names by default."""
    if in_lab:
        return {"image.registry": REGISTRY}
    values: dict[str, Any] = json.loads(os.environ.get("SHORTSTACK_TEST_IMAGES", "{}"))
    return values


def image_name(name: str) -> str:
    """Full name of an image of the stack, as it is built for the lab: the version is its only tag."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        version = tomllib.load(stream)["project"]["version"]
    return f"{PREFIX}/{name}:{version}"


def any_cluster() -> Cluster | None:
    """The cluster that KUBECONFIG names, which has the images; else the lab, with images built and loaded; or none."""
    named = named_cluster()
    if named is not None:
        return named
    found = lab(ROOT.parent / "shared")
    if found is None:
        return None
    started = found.up()
    LabImages(found.folder, started.environment).ensure()
    return started


@dataclass(frozen=True, slots=True)
class LabImages:
    """Builds and loads.

    Attributes:
        folder: the lab's scripts.
        environment: with PATH for what the lab installed.
    """

    folder: Path
    environment: Mapping[str, str]

    def ensure(self) -> None:
        """Builds what changed and loads what the lab does not have as it is now."""
        self.build()
        loaded = self.loaded()
        for image in self.all():
            identity = self.identity(image)
            if loaded.get(image) != identity:
                self._run(str(self.folder / "load-image"), image)
                self._ctr("images", "label", image, f"{_LABEL}={identity}")

    def build(self) -> None:
        """All images, from the lab's Python image, with torch for CPUs."""
        self._run(str(self.folder / "base-image"))
        volumes = [*(f"{path}:{path}:ro" for path in _AS_HERE if Path(path).exists()), f"{self.folder}:/lab:ro"]
        flags = ["--if-changed", "--engine=buildah", f"--prefix={PREFIX}", f"--build-arg=PYTHON_IMAGE={PYTHON_IMAGE}"]
        flags += [f"--file=torch={Path(__file__).with_name('torch.Dockerfile')}"]
        flags += [f"--volume={volume}" for volume in volumes] + [f"--only={name}" for name in NAMES]
        self._run(sys.executable, str(ROOT / "deploy" / "bootstrap.py"), "images", *flags)

    def all(self) -> list[str]:
        """Full names of the images."""
        return [image_name(name) for name in NAMES]

    def identity(self, image: str) -> str:
        """What buildah calls the image's present content."""
        found = json.loads(self._run("buildah", "images", "--json", "--no-trunc", image))
        return str(found[0]["id"]).removeprefix("sha256:")[:32]

    def loaded(self) -> dict[str, str]:
        """The images that the lab has, by name, with the identity that they were loaded with."""
        rows = [line.split() for line in self._ctr("images", "ls").splitlines()[1:]]
        return {
            row[0]: label.partition("=")[2]
            for row in rows
            for label in row[-1].split(",")
            if label.startswith(f"{_LABEL}=")
        }

    def _ctr(self, *arguments: str) -> str:
        return self._run("ctr", "--address", _SOCKET, "--namespace", "k8s.io", *arguments)

    def _run(self, *command: str) -> str:
        environment = {**self.environment, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_BUILD_S,
            check=True,
        )
        return done.stdout


if __name__ == "__main__":
    LabImages(ROOT.parent / "shared" / "lab", os.environ).ensure()
