"""A Kubernetes API server in this process: it keeps objects, makes the pods of Jobs and Deployments, and a test says
how they fare. Behind a real client: `FakeKubernetes.cluster`.

What it does like the real one: names and uids, 404, 409, label selectors, deletion in the foreground (the object stays,
marked, until its pods are gone), Jobs that fail with their pod (backoffLimit 0), and pods that go with their owner.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import httpx2
from lightkube import Client, KubeConfig
from lightkube.config import models

from shortstack.cluster.api import Cluster

__all__ = ["NAMESPACE", "FakeKubernetes"]

NAMESPACE: Final = "stack"
_PLURALS: Final = {
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "configmaps": ("v1", "ConfigMap"),
    "events": ("v1", "Event"),
    "jobs": ("batch/v1", "Job"),
    "deployments": ("apps/v1", "Deployment"),
}
_OF_PODS: Final = ("jobs", "deployments")

Object = dict[str, Any]


class FakeKubernetes:
    """The API server, and the hand that schedules, runs and ends pods.

    Attributes:
        away: the server does not answer.
        refusals: by plural, (HTTP code, words) that a create is answered with.
        unreadable, undeletable: plurals that the client may not read, or delete.
        pods_linger: a deleted pod stays, marked, until `remove_pod`.
        requests: "METHOD plural/name" of each request.
    """

    def __init__(self) -> None:
        self.away = False
        self.refusals: dict[str, tuple[int, str] | tuple[int, str, str]] = {}
        self.unreadable: set[str] = set()
        self.undeletable: set[str] = set()
        self.pods_linger = False
        self.requests: list[str] = []
        self._objects: dict[tuple[str, str], Object] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def cluster(self, owner: str = "") -> Cluster:
        """A client of it."""
        server, user = models.Cluster(server="http://kubernetes.test"), models.User(token="of a test")
        config = KubeConfig.from_one(cluster=server, user=user, namespace=NAMESPACE).get()
        return Cluster(Client(config, transport=httpx2.MockTransport(self._answer), trust_env=False), owner)

    # What a test looks at.

    def all(self, plural: str) -> list[Object]:
        """Every object of a kind, oldest first."""
        with self._lock:
            return [copy.deepcopy(found) for (kind, _), found in self._objects.items() if kind == plural]

    def get(self, plural: str, name: str) -> Object:
        """An object."""
        with self._lock:
            return copy.deepcopy(self._objects[plural, name])

    def pod_of(self, owner: str) -> str:
        """Name of the newest pod of a Job or Deployment."""
        return [p["metadata"]["name"] for p in self.all("pods") if _owner(p) == owner][-1]

    # What a test does.

    def add(self, plural: str, name: str, **more: Any) -> Object:
        """Makes an object as somebody else would."""
        return self._create(plural, {"metadata": {"name": name, **more.pop("metadata", {})}, **more})

    def warn(self, name: str, reason: str, message: str) -> None:
        """A controller or the kubelet says what it cannot do."""
        number = next(self._numbers)
        more = {"involvedObject": {"name": name}, "type": "Warning", "reason": reason, "message": message}
        self.add("events", f"{name}.{number}", lastTimestamp=f"2026-01-01T00:00:{number % 60:02}Z", **more)

    def patch(self, plural: str, name: str, patch: Mapping[str, Any]) -> None:
        """Somebody changes an object; None removes what it names."""
        with self._lock:
            _merge(self._objects[plural, name], patch)

    def unschedulable(self, pod: str, message: str) -> None:
        """The scheduler finds no node."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._status(pod, phase="Pending", conditions=[condition])

    def held_up(self, pod: str, container: str, reason: str, message: str) -> None:
        """It has a node, and a container cannot be started."""
        self._status(pod, phase="Pending", conditions=[{"type": "PodScheduled", "status": "True"}])
        self._container(pod, container, {"waiting": {"reason": reason, "message": message}})

    def run(self, pod: str, *, ready: bool = True) -> None:
        """All of its containers run, those of the start have done their work."""
        conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
        self._status(pod, phase="Running", conditions=conditions)
        spec = self.get("pods", pod)["spec"]
        for container in spec.get("initContainers", ()):
            self._container(pod, container["name"], {"terminated": {"exitCode": 0, "reason": "Completed"}})
        for container in spec["containers"]:
            self._container(pod, container["name"], {"running": {}}, ready=ready)

    def end_container(self, pod: str, container: str, exit_code: int, reason: str = "Error", message: str = "") -> None:
        """One container ends; the pod once all main ones have, or one of the start has failed."""
        self._container(pod, container, {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}})
        found = self.get("pods", pod)
        states = {c["name"]: c["state"].get("terminated") for c in found["status"]["containerStatuses"]}
        main = [states.get(c["name"]) for c in found["spec"]["containers"]]
        start = [c["name"] for c in found["spec"].get("initContainers", ())]
        if exit_code and container in start:
            self.end_pod(pod, "Failed")
        elif all(ended is not None for ended in main):
            self.end_pod(pod, "Succeeded" if all(ended["exitCode"] == 0 for ended in main) else "Failed")

    def respawn(self, deployment: str) -> None:
        """A Deployment makes another pod in the place of one that ended."""
        with self._lock:
            self._spawn(self._objects["deployments", deployment])

    def crash(
        self, pod: str, container: str, exit_code: int, *, times: int = 1, reason: str = "Error", message: str = ""
    ) -> None:
        """One container has ended and is started again after a pause (restartPolicy Always)."""
        ended = {"exitCode": exit_code, "reason": reason, "message": message}
        self._container(pod, container, {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}})
        with self._lock:
            statuses = self._objects["pods", pod]["status"]["containerStatuses"]
            next(c for c in statuses if c["name"] == container).update(
                restartCount=times, lastState={"terminated": ended}
            )

    def failed_to_make_pods(self, deployment: str, message: str) -> None:
        """A quota or an admission policy keeps a Deployment from having pods."""
        with self._lock:
            condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
            self._objects["deployments", deployment]["status"]["conditions"] = [condition]

    def end_pod(self, pod: str, phase: str, **status: Any) -> None:
        """The pod is over: "Succeeded" or "Failed"; its Job is too."""
        self._status(pod, phase=phase, **status)
        self._end_job(_owner(self.get("pods", pod)), phase)

    def remove_pod(self, pod: str) -> None:
        """The pod is gone."""
        with self._lock:
            gone = self._objects.pop(("pods", pod))
            owner = _owner(gone)
            self._end_job(owner, "Failed")
            for plural in _OF_PODS:
                found = self._objects.get((plural, owner))
                if found is not None and "deletionTimestamp" in found["metadata"] and not self._pods(owner):
                    del self._objects[plural, owner]

    def delete(self, plural: str, name: str) -> None:
        """Somebody deletes an object by hand."""
        with self._lock:
            if plural == "pods":
                self._delete_pod(name)
                return
            self._objects.pop((plural, name))
            for pod in self._pods(name):
                self._delete_pod(pod)

    # The server.

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if self.away:
            raise httpx2.ConnectError("connection refused", request=request)
        parts = unquote(request.url.path).strip("/").split("/")
        plural, name = parts[parts.index("namespaces") + 2], "/".join(parts[parts.index("namespaces") + 3 :])
        with self._lock:
            self.requests.append(f"{request.method} {plural}/{name}".rstrip("/"))
            handlers = {"POST": self._post, "GET": self._read, "DELETE": self._remove, "PATCH": self._patch}
            return handlers[request.method](plural, name, request)

    def _post(self, plural: str, _name: str, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        if plural in self.refusals:
            return _failure(*self.refusals[plural])
        name = body["metadata"]["name"]
        if (plural, name) in self._objects:
            return _failure(409, f'{plural} "{name}" already exists', "AlreadyExists")
        return httpx2.Response(201, json=self._create(plural, body))

    def _read(self, plural: str, name: str, request: httpx2.Request) -> httpx2.Response:
        if plural in self.unreadable:
            return _failure(403, f"{plural} is forbidden")
        if name:
            found = self._objects.get((plural, name))
            return _failure(404, f'{plural} "{name}" not found') if found is None else httpx2.Response(200, json=found)
        wanted, fields = (request.url.params.get(f"{what}Selector", "") for what in ("label", "field"))
        found = [o for (kind, _), o in self._objects.items() if kind == plural]
        items = [o for o in found if _matches(o["metadata"].get("labels") or {}, wanted) and _matches(_flat(o), fields)]
        return httpx2.Response(200, json={"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})

    def _remove(self, plural: str, name: str, request: httpx2.Request) -> httpx2.Response:
        if plural in self.undeletable:
            return _failure(403, f"{plural} is forbidden")
        found = self._objects.get((plural, name))
        if found is None:
            return _failure(404, f'{plural} "{name}" not found')
        foreground = request.url.params.get("propagationPolicy") == "Foreground"
        if foreground and self._pods(name):
            found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            for pod in self._pods(name):
                self._delete_pod(pod)
        else:
            self.delete(plural, name)
        return httpx2.Response(200, json={"kind": "Status", "status": "Success"})

    def _patch(self, plural: str, name: str, request: httpx2.Request) -> httpx2.Response:
        """A merge patch (RFC 7386)."""
        found = self._objects.get((plural, name))
        if found is None:
            return _failure(404, f'{plural} "{name}" not found')
        _merge(found, json.loads(request.content))
        return httpx2.Response(200, json=found)

    def _create(self, plural: str, body: Mapping[str, Any]) -> Object:
        version, kind = _PLURALS[plural]
        made = {"apiVersion": version, "kind": kind, **copy.deepcopy(dict(body))}
        made["metadata"] |= {"namespace": NAMESPACE, "uid": f"uid-{next(self._numbers)}"}
        with self._lock:
            self._objects[plural, made["metadata"]["name"]] = made
            if plural in _OF_PODS:
                made.setdefault("status", {})
                self._spawn(made)
        return made

    def _spawn(self, owner: Object) -> None:
        name, template = owner["metadata"]["name"], owner["spec"]["template"]
        labels = dict(template["metadata"].get("labels", {}))
        if owner["kind"] == "Job":
            labels["batch.kubernetes.io/job-name"] = name
        reference = {"kind": owner["kind"], "name": name, "uid": owner["metadata"]["uid"]}
        self._create(
            "pods",
            {
                "metadata": {"name": f"{name}-{next(self._numbers)}", "labels": labels, "ownerReferences": [reference]},
                "spec": template["spec"],
                "status": {"phase": "Pending", "containerStatuses": []},
            },
        )

    def _pods(self, owner: str) -> list[str]:
        return [name for (kind, name), o in self._objects.items() if kind == "pods" and _owner(o) == owner]

    def _delete_pod(self, name: str) -> None:
        self._objects["pods", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        if not self.pods_linger:
            self.remove_pod(name)

    def _end_job(self, name: str, phase: str) -> None:
        with self._lock:
            job = self._objects.get(("jobs", name))
            if job is not None and not job["status"].get("conditions"):
                kind = "Complete" if phase == "Succeeded" else "Failed"
                job["status"]["conditions"] = [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded"}]

    def _status(self, pod: str, **status: Any) -> None:
        with self._lock:
            self._objects["pods", pod]["status"] |= status

    def _container(self, pod: str, name: str, state: Object, *, ready: bool = False) -> None:
        with self._lock:
            found = self._objects["pods", pod]
            kept = [c for c in found["status"]["containerStatuses"] if c["name"] != name]
            found["status"]["containerStatuses"] = [*kept, {"name": name, "state": state, "ready": ready}]


def _owner(pod: Object) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["name"]) if pod["metadata"].get("ownerReferences") else ""


def _matches(given: Mapping[str, Any], selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        name, equals, value = term.replace("==", "=").partition("=")
        if name not in given or (equals and given[name] != value):
            return False
    return True


def _flat(found: Object) -> dict[str, Any]:
    """Fields of an object by dotted name, two levels deep."""
    inner = {f"{name}.{key}": v for name, part in found.items() if isinstance(part, dict) for key, v in part.items()}
    return {**found, **inner}


def _failure(code: int, message: str, reason: str = "") -> httpx2.Response:
    status = {"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason}
    return httpx2.Response(code, json=status)


def _merge(target: Object, patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
