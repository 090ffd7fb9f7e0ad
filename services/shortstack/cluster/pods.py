"""What a pod's status means, in words that say what to do: why it does not start, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

__all__ = [
    "NEVER_BEGAN",
    "OOM_KILLED",
    "container_began",
    "container_ended",
    "how_it_ended",
    "is_over",
    "overdue",
    "why_waiting",
]

OOM_KILLED: Final = "OOMKilled"
NEVER_BEGAN: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of a container that has ended without having run; source: containerd's CRI plugin, and dockershim's."""
_MEMORY: Final = ": it needed more memory than its limit in the values"
_OVERDUE_S: Final = 60.0

_IMAGE: Final = "Check the image's name and tag in the values, the registry, and the pull secret."
_DESCRIBE: Final = "See: kubectl describe pod {pod}"
_WAITING: Final[Mapping[str, str]] = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "InvalidImageName": _IMAGE,
    "ImageInspectError": _IMAGE,
    "RegistryUnavailable": _IMAGE,
    "CreateContainerConfigError": "Make the secret or config map that it names; the pod then starts by itself.",
    "CreateContainerError": _DESCRIBE,
    "RunContainerError": _DESCRIBE,
    "CrashLoopBackOff": "See: kubectl logs {pod} -c {container} --previous",
}
"""Reasons of a waiting container that do not pass by themselves; source: the kubelet's (pkg/kubelet/images/types.go,
pkg/kubelet/container/sync_result.go, kuberuntime). ContainerCreating and PodInitializing are not among them."""
_UNSCHEDULABLE: Final = (
    "Make room or add such a node, or change resources, node selector and tolerations in the values; it then starts by "
    "itself."
)


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(group) or ()


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether none of its containers will run again (restartPolicy Never)."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def why_waiting(pod: Mapping[str, Any]) -> str:
    """What keeps a pod from starting and does not pass by itself, with what to do; "" where nothing does."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if is_over(pod):
        return ""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            words = condition.get("message") or condition.get("reason") or "no reason given"
            return f"pod {name} cannot be scheduled: {words.rstrip('.')}. {_UNSCHEDULABLE}"
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _WAITING:
            words = waiting.get("message") or reason
            remedy = _WAITING[reason].format(pod=name, container=container["name"])
            return f"container {container['name']} of pod {name}: {reason}: {words.rstrip('.')}. {remedy}"
    return ""


def overdue(pod: Mapping[str, Any], now: datetime) -> str:
    """What to do about a pod that should have ended, its grace period included, a minute ago; "" for any other."""
    metadata = pod["metadata"]
    due = metadata.get("deletionTimestamp")
    if due is None or (now - datetime.fromisoformat(due)).total_seconds() < _OVERDUE_S:
        return ""
    name, node = metadata["name"], (pod.get("spec") or {}).get("nodeName", "its node")
    return (
        f"pod {name} was told to end and has not: {node} does not answer. If that node is gone for good: "
        f"kubectl delete pod {name} --force"
    )


def container_ended(pod: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """``{"exitCode", "reason", "message"?}`` of a container that has ended; None where it has not."""
    for container in _containers(pod):
        if container["name"] == name:
            ended: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated")
            return ended
    return None


def container_began(pod: Mapping[str, Any], name: str) -> bool:
    """Whether a container has run at all: one of a pod that the kubelet rejected has no status, one that waited for
    another never left its waiting, and one whose program could not be started has a reason of its own."""
    for container in _containers(pod):
        if container["name"] == name:
            ended = container_ended(pod, name)
            running = "running" in (container.get("state") or {})
            return running or (ended is not None and ended.get("reason") not in NEVER_BEGAN)
    return False


def how_it_ended(pod: Mapping[str, Any]) -> str:
    """Why a pod, or one of its containers, ended badly; "" where none did."""
    status = pod.get("status") or {}
    if status.get("reason"):  # Evicted, NodeLost, DeadlineExceeded
        return f"{status['reason']}: {status.get('message') or 'no further words'}"
    for container in _containers(pod):
        ended = container_ended(pod, container["name"])
        if ended is not None and (ended.get("exitCode") or ended.get("reason") == OOM_KILLED):
            lines = str(ended.get("message") or "").strip().splitlines()
            said = f": {lines[-1]}" if lines else ""
            how = f"{ended.get('reason', 'Error')}, exit code {ended.get('exitCode')}"
            more = _MEMORY if ended.get("reason") == OOM_KILLED else said
            return f"its container {container['name']} ended ({how}){more}"
    return ""
