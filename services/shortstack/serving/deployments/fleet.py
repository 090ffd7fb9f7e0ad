"""The servers of a release as the cluster has them: found by label, made where missing, deleted. From any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from shortstack.cluster.api import DEPLOYMENT, POD, SERVICE, Cluster, ClusterObject, Kind
from shortstack.core.clock import Clock
from shortstack.core.errors import Conflict, Forbidden, Invalid, Transient
from shortstack.serving.deployments.condition import Condition, condition_of
from shortstack.serving.deployments.server import SERVER_LABEL, Server
from shortstack.serving.rollout import NotReady

__all__ = ["Fleet"]

_FRESH_S: Final = 0.5
"""For this long one listing answers all that is asked of it: every model is asked for in every look."""

_EVENTS_S: Final = 5.0
"""Seconds between two looks at the events of one pod."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """Objects by the hex digits of their server."""

    at: float
    deployments: Mapping[str, ClusterObject]
    services: frozenset[str]
    pods: Mapping[str, list[ClusterObject]]


class Fleet:
    """All servers of one release; a server is named by its hex digits.

    Args:
        selector: labels that all of them carry.
    """

    def __init__(self, cluster: Cluster, selector: Callable[[], Mapping[str, str | None]], clock: Clock) -> None:
        self._cluster, self._selector, self._clock = cluster, selector, clock
        self._lock = threading.RLock()
        self._listing: _Listing | None = None
        self._warnings: dict[str, tuple[float, str]] = {}

    def known(self) -> set[str]:
        """Servers of which a Deployment or a Service stands."""
        listing = self._list()
        return {*listing.deployments, *listing.services}

    def has_deployment(self, server: str) -> bool:
        """Whether its Deployment stands and is not being deleted."""
        return server in self._list().deployments

    def has_pods(self, server: str) -> bool:
        """Whether a pod of it is there, though it be ending."""
        return bool(self._list().pods.get(server))

    def condition(self, server: str) -> Condition:
        """How it is, with what events say of a pod that does not start."""
        listing = self._list()
        found = condition_of(listing.deployments.get(server), listing.pods.get(server, []))
        words = self._warning(found.more) if found.more else ""
        return replace(found, why=f"{found.why} ({words})") if words else found

    def _warning(self, pod: str) -> str:
        now = self._clock.monotonic()
        at, words = self._warnings.get(pod, (now - _EVENTS_S, ""))
        if now - at >= _EVENTS_S:
            words = self._cluster.newest_warning(pod)
            self._warnings = {pod: (now, words), **{p: w for p, w in self._warnings.items() if now - w[0] < _EVENTS_S}}
        return words

    def make(self, server: Server) -> None:
        """Makes what is missing of it. What stands under its name is it: a name says all that a server is.

        Raises:
            NotReady: the cluster refuses it, by quota, rights or values.
            Transient: the API server does not answer.
        """
        listing = self._list()
        if server.hex not in listing.services:
            self._create(SERVICE, server.service)
        if server.hex not in listing.deployments:
            self._create(DEPLOYMENT, server.deployment)

    def end(self, server: str) -> None:
        """Deletes its Deployment; its pods finish the answers under way, and its Service stays for these."""
        if self.has_deployment(server):
            self._delete(DEPLOYMENT, server)

    def clear(self, server: str) -> None:
        """Deletes what is left of a server without Deployment and pods."""
        if server in self._list().services:
            self._delete(SERVICE, server)

    def close(self) -> None:
        """Lets go of connections."""
        self._cluster.close()

    def _create(self, kind: Kind, body: ClusterObject) -> None:
        self._forget()
        try:
            self._cluster.create(kind, body)
        except Conflict:
            return  # made by this service before it was started again, or being deleted: seen at the next look
        except (Forbidden, Invalid) as error:  # somebody will make room, grant the right or mend the values
            raise NotReady(error.what, where=error.where, remedy=error.remedy) from error

    def _delete(self, kind: Kind, server: str) -> None:
        self._forget()
        with _rights():
            self._cluster.delete(kind, f"server-{server}")

    def _forget(self) -> None:
        with self._lock:
            self._listing = None

    def _list(self) -> _Listing:
        with self._lock:
            now = self._clock.monotonic()
            if self._listing is None or not 0 <= now - self._listing.at < _FRESH_S:
                labels = self._selector()
                with _rights():
                    found = [self._cluster.list(kind, labels) for kind in (DEPLOYMENT, SERVICE, POD)]
                deployments, services, listed = found
                pods: dict[str, list[ClusterObject]] = {}
                for pod in listed:
                    pods.setdefault(_server(pod), []).append(pod)
                self._listing = _Listing(
                    now,
                    {_server(one): one for one in deployments if "deletionTimestamp" not in one["metadata"]},
                    frozenset(_server(one) for one in services if "deletionTimestamp" not in one["metadata"]),
                    pods,
                )
            return self._listing


@contextmanager
def _rights() -> Iterator[None]:
    """A right that is missing says nothing about a model: somebody grants it, and it is tried again."""
    try:
        yield
    except Forbidden as error:
        raise Transient(error.what, where=error.where, remedy=error.remedy) from error


def _server(one: ClusterObject) -> str:
    return str(one["metadata"]["labels"][SERVER_LABEL])
