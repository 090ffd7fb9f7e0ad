"""A server as the cluster is told of it: the chart's template, the weights, and the name that follows from both.

A server never changes: another template or other weights make another name, and so another Deployment and Service.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.cluster.api import ClusterObject, read_template, release_labels
from shortstack.core.digest import file_sha256, identity
from shortstack.core.errors import Fatal
from shortstack.declarations.base_models import BaseModel
from shortstack.messages.v1.training_pb2 import Export
from shortstack.serving.rollout import NotReady

__all__ = ["SERVER_LABEL", "Addresses", "Server", "Servers", "Weights"]

SERVER_LABEL: Final = "shortstack/server"
PORT: Final = 8080
_HEX: Final = 12
_FOLDER: Final = "/weights"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a server holds.

    Attributes:
        source: ``bases/NAME`` or the object key of an export's manifest.
        sha256: of its manifest.
        digest: names the folder that the pod reads it from.
    """

    source: str
    sha256: str
    digest: str

    @classmethod
    def of_base(cls, name: str, folder: Path) -> Weights:
        """A base model, by the manifest that was fetched with its tokenizer.

        Raises:
            NotReady: it was not imported into the object store yet.
        """
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise NotReady(
                f"it was not imported into the object store yet: {folder} has no manifest.json",
                where=f"base model {name}",
                remedy="See the Job base-models, which imports it; it is fetched as soon as it is there.",
            )
        return cls(f"bases/{name}", file_sha256(manifest), BaseModel(name, folder).digest())

    @classmethod
    def of_export(cls, export: Export) -> Weights:
        """The merged weights of a trained model."""
        return cls(export.manifest, export.manifest_sha256, export.digest)


@dataclass(frozen=True, slots=True)
class Server:
    """One server: 12 hex digits, and what is to be made in the cluster."""

    hex: str
    deployment: ClusterObject
    service: ClusterObject

    @property
    def name(self) -> str:
        """Of its Deployment and its Service."""
        return f"server-{self.hex}"


class Addresses:
    """Where servers answer: at their Service, in the namespace of whoever asks; a pod at its own address."""

    def url(self, server: str) -> str:
        """URL of a server by its hex digits."""
        return f"http://server-{server}:{PORT}"

    def server(self, url: str) -> str:
        """Hex digits of the server at ``url``; empty if it is none."""
        match = re.match(rf"http://server-([0-9a-f]{{{_HEX}}})[.:]", url)
        return match[1] if match else ""

    def pod(self, pod: ClusterObject) -> str:
        """URL of one pod, whether it is ready or not; empty if it has no address yet."""
        address = str((pod.get("status") or {}).get("podIP") or "")
        bracketed = f"[{address}]" if ":" in address else address
        return f"http://{bracketed}:{PORT}" if address else ""


class Servers:
    """The template of the release. Its file is looked at for each server, since an upgrade changes it."""

    def __init__(self, template: Path) -> None:
        self._path = template
        self._read: tuple[str, ClusterObject, ClusterObject] | None = None

    def of(self, weights: Weights) -> Server:
        """The server of these weights.

        Raises:
            Fatal: the template cannot be used.
        """
        text, deployment, service = self._template()
        server = identity("server", text, weights.source, weights.sha256)[:_HEX]
        return Server(server, self._deployment(server, deployment, weights), self._service(server, service))

    def selector(self) -> dict[str, str | None]:
        """Labels by which all servers of this release are found."""
        return {SERVER_LABEL: None, **release_labels(self._template()[1])}

    def _template(self) -> tuple[str, ClusterObject, ClusterObject]:
        """Its text and its two objects, parsed once for each text."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError:
            text = ""  # `read_template` says what is wrong
        if self._read is None or self._read[0] != text:
            deployment, service = read_template(self._path, "Deployment", "Service")
            self._read = (text, deployment, service)
        return self._read

    def _deployment(self, server: str, template: ClusterObject, weights: Weights) -> ClusterObject:
        made = copy.deepcopy(template)
        _name(made, server, {"shortstack/weights": weights.source})
        made["spec"].setdefault("selector", {}).setdefault("matchLabels", {})[SERVER_LABEL] = server
        pod = made["spec"]["template"]
        pod.setdefault("metadata", {}).setdefault("labels", {})[SERVER_LABEL] = server
        folder = f"{_FOLDER}/{weights.digest[:_HEX]}"
        fetched = {
            "SHORTSTACK_WEIGHTS": weights.source,
            "SHORTSTACK_WEIGHTS_SHA256": weights.sha256,
            "SHORTSTACK_WEIGHTS_DIR": folder,
        }
        self._tell(pod["spec"].get("initContainers"), "weights", fetched)
        self._tell(pod["spec"].get("containers"), "server", {"MODEL_ID": folder})
        return made

    def _service(self, server: str, template: ClusterObject) -> ClusterObject:
        made = copy.deepcopy(template)
        _name(made, server, {})
        made["spec"].setdefault("selector", {})[SERVER_LABEL] = server
        return made

    def _tell(self, containers: list[dict[str, Any]] | None, name: str, variables: dict[str, str]) -> None:
        """Sets variables of the container of that name."""
        for container in containers or ():
            if container.get("name") == name:
                kept = [entry for entry in container.get("env") or () if entry["name"] not in variables]
                container["env"] = [*kept, *({"name": key, "value": value} for key, value in variables.items())]
                return
        raise Fatal(
            f'the pod has no container "{name}"',
            where=str(self._path),
            remedy="The chart renders it; install or upgrade the release.",
        )


def _name(made: ClusterObject, server: str, annotations: dict[str, str]) -> None:
    metadata = made["metadata"]
    metadata["name"] = f"server-{server}"
    metadata["labels"] = {**(metadata.get("labels") or {}), SERVER_LABEL: server}
    if annotations:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
