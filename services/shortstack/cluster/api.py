"""The Kubernetes API as the controllers use it: plain dicts in and out, and errors of the stack's own kinds.

Objects are dicts and not lightkube's typed models, so that a template of the chart reaches the API server with every
field it has, also those that the models of this version do not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml
from lightkube import Client, KubeConfig
from lightkube.core.client import FieldSelector
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import GenericNamespacedResource, create_api_info
from lightkube.types import CascadeType

from shortstack.core.errors import Conflict, Fatal, Forbidden, Invalid, NotFound, Poison, Transient

__all__ = [
    "CONFIG_MAP",
    "DEPLOYMENT",
    "JOB",
    "POD",
    "SERVICE",
    "Cluster",
    "ClusterObject",
    "Kind",
    "read_template",
    "release_labels",
]

ClusterObject = dict[str, Any]
"""An object as the API has it: apiVersion, kind, metadata, spec, status."""

Kind = type[GenericNamespacedResource]
"""A kind of namespaced objects."""

_REQUEST_S: Final = 10.0


class _ConfigMap(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "ConfigMap", "configmaps")


class _Pod(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Pod", "pods")


class _Service(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Service", "services")


class _Event(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Event", "events")


class _Job(GenericNamespacedResource):
    _api_info = create_api_info("batch", "v1", "Job", "jobs")


class _Deployment(GenericNamespacedResource):
    _api_info = create_api_info("apps", "v1", "Deployment", "deployments")


CONFIG_MAP: Final[Kind] = _ConfigMap
POD: Final[Kind] = _Pod
SERVICE: Final[Kind] = _Service
JOB: Final[Kind] = _Job
DEPLOYMENT: Final[Kind] = _Deployment


class Cluster:
    """One namespace of a cluster. Safe to share between threads.

    Every method raises `Transient` while the API server does not answer or is overloaded, and `Forbidden` where this
    process may not do what it asks for; both say what was asked.

    Args:
        owner: name of the ConfigMap of the release that owns what is made here; "" for none.
    """

    def __init__(self, client: Client, owner: str = "") -> None:
        self._client, self._owner = client, owner

    @classmethod
    def connect(cls, *, namespace: str | None = None, owner: str = "") -> Cluster:
        """The cluster that this pod runs in, else the one of KUBECONFIG.

        Args:
            namespace: None takes the pod's own, or the one of KUBECONFIG.

        Raises:
            Fatal: neither is there.
        """
        try:
            config = KubeConfig.from_env().get()
        except (ConfigError, OSError, KeyError) as error:
            raise Fatal(
                f"no cluster is known here: {error}",
                where="Kubernetes",
                remedy="Run it in a pod with a service account, or set KUBECONFIG.",
            ) from error
        timeout = httpx2.Timeout(_REQUEST_S)
        return cls(Client(config, namespace=namespace, timeout=timeout), owner)

    @property
    def namespace(self) -> str:
        """The namespace."""
        return str(self._client.namespace)

    def create(self, kind: Kind, body: Mapping[str, Any]) -> ClusterObject:
        """Makes an object, owned by the release's ConfigMap.

        Raises:
            Conflict: one of that name is there.
            Invalid: the API server refuses it as malformed.
        """
        metadata = {**body["metadata"], "namespace": self.namespace}
        if self._owner:
            metadata["ownerReferences"] = [self.owner_reference()]
        with _asking(f"create {kind.__name__[1:]} {metadata['name']}"):
            return dict(self._client.create(kind.from_dict({**body, "metadata": metadata})))

    def get(self, kind: Kind, name: str) -> ClusterObject | None:
        """The object of that name; None where there is none."""
        try:
            with _asking(f"get {kind.__name__[1:]} {name}"):
                return dict(self._client.get(kind, name))
        except NotFound:
            return None

    def list(self, kind: Kind, labels: Mapping[str, str | None]) -> list[ClusterObject]:
        """The objects with these labels; a label whose value is None must only be there."""
        with _asking(f"list {kind.__name__[1:]}s"):
            return [dict(found) for found in self._client.list(kind, labels=dict(labels))]

    def newest_warning(self, name: str) -> str:
        """``REASON: words`` of the newest warning about an object; "" where there is none, or none may be read."""
        about: FieldSelector = {"involvedObject.name": name, "type": "Warning"}
        try:
            with _asking(f"list Events of {name}"):
                found = list(self._client.list(_Event, fields=about))
        except Forbidden:
            return ""
        newest = max(found, key=_event_time, default=None)
        return f"{newest.get('reason')}: {newest.get('message')}" if newest is not None else ""

    def delete(self, kind: Kind, name: str, *, foreground: bool = False) -> None:
        """Deletes an object, and in the background what it owns; nothing happens where it is gone.

        Args:
            foreground: it stays, marked as being deleted, until everything that it owns is gone.
        """
        cascade = CascadeType.FOREGROUND if foreground else CascadeType.BACKGROUND
        try:
            with _asking(f"delete {kind.__name__[1:]} {name}"):
                self._client.delete(kind, name, cascade=cascade)
        except NotFound:
            return

    def owner_reference(self) -> ClusterObject:
        """The reference that makes an object go with the release.

        Raises:
            Fatal: the release's ConfigMap is not there.
        """
        found = self.get(CONFIG_MAP, self._owner)
        if found is None:
            raise Fatal(
                f'there is no ConfigMap "{self._owner}" in namespace {self.namespace}',
                where="SHORTSTACK_OWNER",
                remedy="The chart makes it; install or upgrade the release.",
            )
        metadata = found["metadata"]
        return {"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"]}

    def close(self) -> None:
        """Lets go of connections."""
        self._client.close()


def _event_time(event: Mapping[str, Any]) -> str:
    """When it was last seen, in RFC 3339, whose text sorts as the times do."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def read_template(path: Path, *kinds: str) -> tuple[ClusterObject, ...]:
    """The objects of a template file, in the order of ``kinds``. Read anew each time: an upgrade changes the file.

    Raises:
        Fatal: there is no such file, or it does not hold one object of each kind.
    """
    remedy = "The chart renders it; install or upgrade the release."
    try:
        found = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
    except (OSError, yaml.YAMLError) as error:
        raise Fatal(f"cannot read the template: {error}", where=str(path), remedy=remedy) from error
    by_kind = {document.get("kind"): document for document in found if isinstance(document, dict)}
    if sorted(map(str, by_kind)) != sorted(kinds) or len(found) != len(kinds):
        held = ", ".join(str(document.get("kind")) for document in found if isinstance(document, dict)) or "nothing"
        raise Fatal(f"holds {held} and should hold {', '.join(kinds)}", where=str(path), remedy=remedy)
    return tuple(by_kind[kind] for kind in kinds)


def release_labels(found: Mapping[str, Any]) -> dict[str, str]:
    """Labels of an object that tell a release's objects from others' in the namespace; they never change.

    Two, since a parent chart may hold this chart twice: its release, and what the chart is called there.
    """
    labels = (found.get("metadata") or {}).get("labels") or {}
    return {name: str(labels[name]) for name in _RELEASE_LABELS if name in labels}


_RELEASE_LABELS: Final = ("app.kubernetes.io/name", "app.kubernetes.io/instance")
_KINDS: Final[Mapping[int, type[Poison]]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}
_CONFLICT: Final = 409
_REMEDIES: Final[Mapping[int, str]] = {
    403: "Ask for the right in the release's Role, or for room in the namespace's quota, as the words say.",
    422: "Correct the values it was rendered from, and upgrade the release.",
}


def _reason(error: httpx2.HTTPStatusError) -> str:
    return str(error.status.reason) if isinstance(error, ApiError) else ""


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turns the client's errors into the stack's; a 401 is transient, for tokens are renewed under way."""
    try:
        yield
    except httpx2.HTTPStatusError as error:  # lightkube's ApiError is one, with the server's words
        code, words = error.response.status_code, str(error)
        # A contended quota's 409 has the reason Conflict, and nothing was made.
        if code in _KINDS and (code != _CONFLICT or _reason(error) == "AlreadyExists"):
            raise _KINDS[code](words, where=f"Kubernetes, {what}", remedy=_REMEDIES.get(code, "")) from error
        raise Transient(f"HTTP {code}: {words}", where=f"Kubernetes, {what}") from error
    except httpx2.HTTPError as error:
        words = str(error) or type(error).__name__
        raise Transient(
            f"the API server does not answer: {words}",
            where=f"Kubernetes, {what}",
            remedy="It is tried again; see that the pod may reach the API server (NetworkPolicy).",
        ) from error
