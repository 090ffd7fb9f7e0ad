"""Attempts as Kubernetes Jobs, one pod each. Their truth is in the object store and the API: any launcher finds them.

An attempt was started once its order is an object, and is over once its last word is one, or its Job and pods are
gone. The name of the Job, run and attempt, is the lock.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shortstack.cluster.api import JOB, POD, Cluster, ClusterObject, read_template, release_labels
from shortstack.cluster.pods import (
    NEVER_BEGAN,
    OOM_KILLED,
    container_began,
    container_ended,
    how_it_ended,
    is_over,
    overdue,
    why_waiting,
)
from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, Fatal, ShortstackError, Transient
from shortstack.storage.blobs import BlobStore
from shortstack.training.attempt import DIED
from shortstack.training.launcher import STOPPED, AttemptOrder, AttemptPhase, AttemptStatus
from shortstack.training.pod.objects import RUNS, order_key, result_key
from shortstack.training.pod.stored import drop_stored

__all__ = ["KubernetesLauncher", "job_name"]

_RUN: Final = "shortstack/run"
_ATTEMPT: Final = "shortstack/attempt"
_TRAINER: Final = "trainer"
_AGENT: Final = "agent"
_PREPARE: Final = "prepare"
_EVICTED: Final = "Evicted"
_LOOK_S: Final = 1.0
_AGAIN_S: Final = 10.0
_NO_POD_S: Final = 15.0
_SLOW_S: Final = 30.0
"""A pod whose images are there takes seconds; one that pulls them has no warnings to tell."""
_MEMORY: Final = "Raise the memory limit of the trainer in the values, or lower micro_batch_size or sequence_len."

_Key = tuple[str, int]


def job_name(run: str, attempt: int) -> str:
    """Name of an attempt's Job."""
    return f"train-{run[:12]}-a{attempt}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the API has of one attempt."""

    job: ClusterObject | None
    pods: tuple[ClusterObject, ...]

    @property
    def alive(self) -> list[ClusterObject]:
        """Pods of which something runs, may run, or is being ended."""
        return [pod for pod in self.pods if not is_over(pod)]


class KubernetesLauncher:
    """Makes Jobs from the chart's template. Used by the controller's thread alone.

    Args:
        template: file with a whole batch/v1 Job; only name, labels, owner and two variables are set here.
        storage_url: for people who ask where a run's files are.
        look_s: how long what the API said is believed.
    """

    def __init__(
        self,
        cluster: Cluster,
        blobs: BlobStore,
        template: Path,
        *,
        storage_url: str,
        clock: Clock,
        look_s: float = _LOOK_S,
    ) -> None:
        self._cluster, self._blobs, self._template = cluster, blobs, template
        self._storage_url, self._clock, self._look_s = storage_url.rstrip("/"), clock, look_s
        self._release: dict[str, str] | None = None
        self._seen: dict[_Key, _Seen] = {}
        self._looked_at: float | None = None
        self._told: dict[_Key, tuple[float, AttemptStatus]] = {}
        self._refused: dict[_Key, tuple[float, str]] = {}
        self._pending_since: dict[str, float] = {}
        self._ordered: set[_Key] = set()
        self._cancelled: set[_Key] = set()

    def start(self) -> None:
        """Nothing to get ready: what runs is found when it is asked for."""

    def stop(self, deadline_s: float) -> None:
        """Lets go of connections. Jobs go on: the controller that starts next adopts them, and they go with the
        release."""
        self._cluster.close()

    def place(self, run: str) -> str:
        """See `Launcher.place`."""
        return f"{self._storage_url}/{RUNS}/{run}"

    def forget(self, run: str) -> None:
        """See `Launcher.forget`: stored checkpoints go; orders, last words and papers stay."""
        drop_stored(self._blobs, run)

    def launch(self, order: AttemptOrder) -> None:
        """See `Launcher.launch`. The Job comes first and the order, for which its pod waits, second: so what has an
        order was started, and may be missed."""
        key = (order.run, order.attempt)
        if self._was_ordered(key) or self._clock.monotonic() < self._refused.get(key, (0.0, ""))[0]:
            return
        try:
            self._make_job(key)
            self._blobs.put(order_key(*key), order.to_json())
        except Transient:
            raise
        except ShortstackError as error:  # a quota, a template that is missing, a full volume: it may pass
            self._refused[key] = (self._clock.monotonic() + _AGAIN_S, f"attempt {key[1]} cannot be started: {error}")
            self._told.pop(key, None)
            return
        self._ordered.add(key)
        self._look_anew(key)

    def cancel(self, run: str, attempt: int) -> None:
        """See `Launcher.cancel`. Its pods are ended and have their grace period; once they are gone it has ended."""
        key = (run, attempt)
        seen = self._look(key)
        if key in self._cancelled or seen.job is None or not (seen.alive or _goes_on(seen.job)):
            return
        self._cluster.delete(JOB, job_name(run, attempt), foreground=True)
        self._cancelled.add(key)
        self._look_anew(key)

    def status(self, run: str, attempt: int) -> AttemptStatus:
        """See `Launcher.status`."""
        key, now = (run, attempt), self._clock.monotonic()
        at, told = self._told.get(key, (now, None))
        if told is not None and (_ended(told) or now - at < self._look_s):
            return told
        found = self._status(key)
        self._told[key] = (now, found)
        return found

    def _status(self, key: _Key) -> AttemptStatus:
        # Looked at before the last word is looked for: what ends in between has spoken it.
        seen = self._look(key)
        word = self._last_word(key)
        if key in self._cancelled or (seen.job is not None and "deletionTimestamp" in seen.job["metadata"]):
            if seen.job is not None or seen.alive:
                return AttemptStatus(AttemptPhase.RUNNING, waiting=self._overdue(seen))
            if key in self._cancelled:
                return word or AttemptStatus(AttemptPhase.FAILED, code=STOPPED, message="asked to stop")
        if word is not None:
            return self._explained(key, word, seen)
        if not self._was_ordered(key):
            return AttemptStatus(AttemptPhase.ABSENT, waiting=self._refused.get(key, (0.0, ""))[1])
        return self._unspoken(key, seen)

    def _unspoken(self, key: _Key, seen: _Seen) -> AttemptStatus:
        """An attempt that was started and has not said how it ended."""
        name = job_name(*key)
        if not seen.alive:
            if seen.job is None:
                return AttemptStatus(AttemptPhase.LOST, message=f"its Job {name} is gone without a word")
            if _goes_on(seen.job):
                return AttemptStatus(AttemptPhase.RUNNING, waiting=self._no_pod(key))
            how = how_it_ended(seen.pods[-1]) if seen.pods else "its pod was deleted, or never made"
            return AttemptStatus(AttemptPhase.LOST, message=f"Job {name}: {how}", began=_began(seen))
        self._pending_since.pop(job_name(*key), None)
        pod = seen.alive[-1]
        unstartable = (container_ended(pod, _TRAINER) or {}).get("reason") in NEVER_BEGAN
        if (container_ended(pod, _AGENT) or unstartable) and "deletionTimestamp" not in pod["metadata"]:
            # Nobody stores what the trainer still does, or there is nothing that the agent could wait for.
            self._cluster.delete(JOB, name)
            return AttemptStatus(AttemptPhase.LOST, message=f"Job {name}: {how_it_ended(pod)}", began=_began(seen))
        return AttemptStatus(AttemptPhase.RUNNING, waiting=why_waiting(pod) or self._overdue(seen) or self._slow(pod))

    def _explained(self, key: _Key, word: AttemptStatus, seen: _Seen) -> AttemptStatus:
        """A trainer that died without a word: the kubelet may know of what, once it has looked."""
        if word.phase is AttemptPhase.SUCCEEDED or word.code != DIED:
            return word
        if any(container_ended(pod, _TRAINER) is None for pod in seen.alive):
            return AttemptStatus(AttemptPhase.RUNNING)
        for pod in seen.pods:
            ended = container_ended(pod, _TRAINER) or {}
            word = replace(word, began=_began(seen))
            if ended.get("reason") == OOM_KILLED:
                message = f"the trainer of Job {job_name(*key)} was killed: it needed more memory than its limit"
                return replace(word, code="out_of_memory", message=message, remedy=_MEMORY)
            if how := how_it_ended(pod):
                return replace(word, message=f"{word.message}; {how}")
        return word

    def _overdue(self, seen: _Seen) -> str:
        return next(filter(None, (overdue(pod, self._clock.now()) for pod in seen.alive)), "")

    def _no_pod(self, key: _Key) -> str:
        """A quota or an admission rule refuses the pod: only an event of the Job says so."""
        name = job_name(*key)
        if not self._is_late(name, _NO_POD_S):
            return ""
        words = self._cluster.newest_warning(name) or "a quota or an admission rule may refuse it"
        return f"Job {name} has no pod: {words.rstrip('.')}. See: kubectl describe job {name}"

    def _slow(self, pod: ClusterObject) -> str:
        """A volume that cannot be mounted, for example: the pod's status says nothing, only its events do."""
        name = pod["metadata"]["name"]
        if (pod.get("status") or {}).get("phase") != "Pending":
            self._pending_since.pop(name, None)
            return ""
        if not self._is_late(name, _SLOW_S):
            return ""
        words = self._cluster.newest_warning(name)
        return f"pod {name} does not start: {words.rstrip('.')}. See: kubectl describe pod {name}" if words else ""

    def _is_late(self, name: str, limit_s: float) -> bool:
        now = self._clock.monotonic()
        return now - self._pending_since.setdefault(name, now) >= limit_s

    def _make_job(self, key: _Key) -> None:
        """Makes the Job; one that is there already is the attempt's own, and adopted.

        Raises:
            Conflict: another release's Job has that name.
            Transient: nobody knows whether it is there.
        """
        body = _job(read_template(self._template, "Job")[0], key)
        try:
            self._cluster.create(JOB, body)
        except Conflict as error:
            name = body["metadata"]["name"]
            there = self._cluster.get(JOB, name)
            if there is None:  # it went in between; the order, which says "started", must not be written
                raise Transient("its name was taken a moment ago", where=name, remedy="It is tried again.") from error
            if release_labels(there) != release_labels(body):
                raise Conflict(
                    f"a Job of that name belongs to release {_whose(there)}",
                    where=name,
                    remedy="Install releases that train the same data in namespaces of their own.",
                ) from error

    def _look(self, key: _Key) -> _Seen:
        """What the API has; all attempts are listed at once, and no more often than every ``look_s``."""
        now = self._clock.monotonic()
        if self._looked_at is None or now - self._looked_at >= self._look_s:
            labels: dict[str, str | None] = {_RUN: None, **self._release_labels()}
            jobs = {_key(job): job for job in self._cluster.list(JOB, labels)}
            pods = self._cluster.list(POD, labels)
            keys = {*jobs, *map(_key, pods)}
            self._seen = {k: _Seen(jobs.get(k), tuple(p for p in pods if _key(p) == k)) for k in keys}
            self._looked_at = now
        return self._seen.get(key, _Seen(None, ()))

    def _release_labels(self) -> Mapping[str, str]:
        """What tells this release's attempts from others'; it never changes.

        Raises:
            Transient: the template, which has it, cannot be read.
        """
        if self._release is None:
            try:
                self._release = release_labels(read_template(self._template, "Job")[0])
            except Fatal as error:
                raise Transient(error.what, where=error.where, remedy=error.remedy) from error
        return self._release

    def _look_anew(self, key: _Key) -> None:
        self._looked_at = None
        self._told.pop(key, None)

    def _was_ordered(self, key: _Key) -> bool:
        if key not in self._ordered and self._blobs.exists(order_key(*key)):
            self._ordered.add(key)
        return key in self._ordered

    def _last_word(self, key: _Key) -> AttemptStatus | None:
        name = result_key(*key)
        return AttemptStatus.told(self._blobs.get(name)) if self._blobs.exists(name) else None


def _ended(status: AttemptStatus) -> bool:
    return status.phase in (AttemptPhase.SUCCEEDED, AttemptPhase.FAILED, AttemptPhase.LOST)


def _began(seen: _Seen) -> bool:
    """Whether its trainer ran at all, or this run itself was too large to be prepared, as the next attempt would be;
    where no pod is left, nobody knows, and it counts."""
    return not seen.pods or any(container_began(pod, _TRAINER) or _too_large(pod) for pod in seen.pods)


def _too_large(pod: ClusterObject) -> bool:
    """Whether the first container needed more memory or room than there is. A node that was under pressure already
    rejects a pod as Evicted, too (kubelet, eviction manager's Admit), before any container of it has run."""
    evicted = (pod.get("status") or {}).get("reason") == _EVICTED
    killed = (container_ended(pod, _PREPARE) or {}).get("reason") == OOM_KILLED
    return killed or (evicted and container_began(pod, _PREPARE))


def _goes_on(job: ClusterObject) -> bool:
    """Whether a Job has neither succeeded nor failed."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return not any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def _key(found: ClusterObject) -> _Key:
    labels: Mapping[str, str] = found["metadata"]["labels"]
    return labels[_RUN], int(labels.get(_ATTEMPT, "0"))


def _whose(found: ClusterObject) -> str:
    """The release of an object, and what the chart is called in it."""
    return " as ".join(reversed(release_labels(found).values()))


def _job(template: ClusterObject, key: _Key) -> ClusterObject:
    """The template as the Job of one attempt."""
    job, (run, attempt) = copy.deepcopy(template), key
    # Of the release, the pod's too: attempts are found by them.
    labels = {**release_labels(job), _RUN: run, _ATTEMPT: str(attempt)}
    job["metadata"] = {**(job.get("metadata") or {}), "name": job_name(run, attempt)}
    pod = job["spec"]["template"]
    pod.setdefault("metadata", {})
    for metadata in (job["metadata"], pod["metadata"]):
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    told = {"SHORTSTACK_RUN": run, "SHORTSTACK_ATTEMPT": str(attempt)}
    for container in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]:
        others = [e for e in container.get("env") or () if e["name"] not in told]
        container["env"] = [*others, *({"name": name, "value": value} for name, value in told.items())]
    return job
