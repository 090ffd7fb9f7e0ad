"""What a server's Deployment and pods say: whether it answers, else why not and what to do; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from shortstack.cluster.api import ClusterObject
from shortstack.cluster.pods import how_it_ended, is_over, why_waiting

__all__ = ["CRASHES", "Condition", "condition_of"]

CRASHES: Final = 5
"""Ends of a server's container after which a model is given up: with the kubelet's back-off, some 5 minutes."""
_WRONG_INPUT: Final = frozenset({65, 66, 73, 77})
"""Exit codes of the container that fetches weights which no repetition mends: the manifest or an object is another
one, is gone, or is forbidden (`shortstack.core.errors`)."""
_MEND: Final = "Make room in the quota, or mend what it names; it then starts by itself."
_EVICTED: Final = (
    "Where room was short, raise serving.server.weightsSize or resources in the values; then deploy the model again."
)
_OUT_OF_MEMORY: Final = "OOMKilled"


@dataclass(frozen=True, slots=True)
class Condition:
    """How a server is.

    Attributes:
        ready: a pod of it is.
        why: why none is, with what to do.
        remedy: what to do where it is hopeless.
        hopeless: it will not be, however long one waits.
        started: a pod whose server runs but is not ready, if there is one.
        more: name of a pod whose events may say more than its status; empty where that says enough.
    """

    ready: bool
    why: str = ""
    remedy: str = ""
    hopeless: bool = False
    started: ClusterObject | None = None
    more: str = ""


def condition_of(deployment: ClusterObject | None, pods: Sequence[ClusterObject]) -> Condition:
    """Reads the newest words of a Deployment and of those of its pods that are not being deleted."""
    if deployment is None:
        return Condition(False, "its Deployment is not there yet")
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and not is_over(pod)]
    if any(_is_ready(pod) for pod in alive):
        return Condition(True)
    ended = sorted((pod for pod in pods if is_over(pod)), key=_born)
    words = next((words for pod in reversed(ended) if (words := how_it_ended(pod))), "")
    if words and len(ended) >= CRASHES:
        return Condition(False, f"{len(ended)} pods of it ended, the last: {words}", _EVICTED, hopeless=True)
    found = _of_pod(max(alive, key=_born)) if alive else Condition(False, _no_pod(deployment))
    return replace(found, why=f"{found.why}. A pod before it ended: {words}") if words else found


def _born(pod: ClusterObject) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _of_pod(pod: ClusterObject) -> Condition:
    name = pod["metadata"]["name"]
    for container in _statuses(pod):
        ended, times = _last_end(container), int(container.get("restartCount") or 0)
        if ended is None or _fine(container, ended):
            continue
        why = f"container {container['name']} of pod {name} ended {_times(times)} ({_how(ended)})"
        wrong = container["name"] == "weights" and ended.get("exitCode") in _WRONG_INPUT
        remedy = _remedy(container["name"], ended, name, wrong)
        if wrong or (container["name"] == "server" and times >= CRASHES):
            return Condition(False, why, remedy, hopeless=True)
        return Condition(False, f"{why}. {remedy}", started=pod if _runs(pod) else None)
    if waiting := why_waiting(pod):
        return Condition(False, waiting)
    if _runs(pod):
        why = f"pod {name} loads the model; its probe is not answered yet. See: kubectl logs {name} -c server"
        return Condition(False, why, started=pod, more=name)
    return Condition(False, f"pod {name} is being started and fetches the weights", more=name)


def _is_ready(pod: ClusterObject) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _no_pod(deployment: ClusterObject) -> str:
    """A quota, an admission policy or a missing service account keep a Deployment from making pods at all."""
    for one in (deployment.get("status") or {}).get("conditions") or ():
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            words = str(one.get("message") or one.get("reason") or "no reason given").rstrip(".")
            return f"the cluster makes no pod of it: {words}. {_MEND}"
    return "its pod is not there yet"


def _statuses(pod: ClusterObject) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _last_end(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    states = [(container.get(which) or {}).get("terminated") for which in ("state", "lastState")]
    return next((ended for ended in states if ended is not None), None)


def _fine(container: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """A container of the start that has done its work, perhaps at a second try."""
    now = (container.get("state") or {}).get("terminated") or {}
    return ended.get("exitCode") == 0 or now.get("exitCode") == 0


def _runs(pod: ClusterObject) -> bool:
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(c["name"] == "server" and "running" in (c.get("state") or {}) for c in containers)


def _times(restarts: int) -> str:
    return "once" if restarts <= 1 else f"{restarts} times"


def _how(ended: Mapping[str, Any]) -> str:
    lines = str(ended.get("message") or "").strip().splitlines()
    said = f": {lines[-1].strip()}" if lines else ""
    return f"{ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}{said}"


def _remedy(container: str, ended: Mapping[str, Any], pod: str, wrong: bool) -> str:
    if ended.get("reason") == _OUT_OF_MEMORY:
        return "Raise its memory limit in the values (serving.server.resources), then deploy the model again."
    if wrong:
        return "Its objects in the store were changed, damaged or deleted: train it again."
    if container != "server":
        return "It is tried again by itself."
    return f"See: kubectl logs {pod} -c {container} --previous; then deploy the model again."
