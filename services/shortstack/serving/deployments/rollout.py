"""Models in a cluster: a Deployment and a Service each, started, proven, routed to, drained, removed; never edited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.contract import Proof, prove
from shortstack.serving.deployments.condition import Condition
from shortstack.serving.deployments.fleet import Fleet
from shortstack.serving.deployments.server import Addresses, Server, Servers, Weights
from shortstack.serving.rollout import Held, NotReady, RolledOut
from shortstack.serving.tgi import TgiClient
from shortstack.serving.tongues import Tongues
from shortstack.serving.weights import WORDS, FetchedExport, fetch_export
from shortstack.storage.blobs import BlobStore

__all__ = ["DeploymentRollout", "Terms"]


@dataclass(frozen=True, slots=True)
class Terms:
    """How servers follow one another.

    Attributes:
        drain_s: seconds that a server stays after nobody needs it.
        replace: there is no room for two: the old server goes before the new one starts.
        patience_s: seconds that a server may then take until the old one comes back.
    """

    drain_s: float
    replace: bool = False
    patience_s: float = 1800.0


class DeploymentRollout:
    """See `Rollout`.

    Args:
        connect: a client of a server, by URL.
        folder: for exports' tokenizers and probes.
        bases: folder of each base model, fetched from the object store, with its manifest.
    """

    def __init__(
        self,
        fleet: Fleet,
        servers: Servers,
        connect: Callable[[str], TgiClient],
        blobs: BlobStore,
        folder: Path,
        formats: PromptFormats,
        bases: Mapping[str, Path],
        clock: Clock,
        terms: Terms,
        addresses: Addresses | None = None,
    ) -> None:
        self._fleet, self._servers, self._connect, self._clock = fleet, servers, connect, clock
        self._blobs, self._folder, self._formats = blobs, folder, formats
        self._terms, self._addresses = terms, addresses or Addresses()
        self._tongues = Tongues(blobs, formats)
        self._lock = threading.Lock()
        self._clients: dict[str, TgiClient] = {}
        self._infos: dict[str, Mapping[str, Any]] = {}
        self._base_urls: dict[str, str] = {}
        self._base_servers: dict[str, set[str]] = {name: set() for name in bases}
        self._coming = ""
        self._upgrading = ""
        self._failed: set[str] = set()
        self._began: dict[str, float] = {}
        self._unneeded_since: dict[str, float] = {}

    def base(self, name: str, folder: Path, url: str) -> Endpoint:
        """See `Rollout.base`. One made from another template serves until its successor is ready."""
        server, before = self._servers.of(Weights.of_base(name, folder)), self._addresses.server(url)
        self._base_servers[name] = {server.hex, before} - {""}
        if self._terms.replace and before not in ("", server.hex):
            self._make_way(before)
        self._fleet.make(server)
        condition, now = self._fleet.condition(server.hex), server.hex
        if not condition.ready:
            if before in ("", server.hex) or not self._fleet.condition(before).ready:
                raise NotReady(condition.why)
            now = before
        self._base_urls[name] = self._addresses.url(now)
        self._base_servers[name] = {server.hex, now}
        return self._endpoint(now, "base", folder)

    def roll_out(self, export: Export, proving: Callable[[], None], instead_of: Sequence[Held] = ()) -> RolledOut:
        """See `Rollout.roll_out`. It holds no thread while a server starts: it is called again."""
        fetched = fetch_export(self._blobs, export, self._folder, WORDS)
        server = self._servers.of(Weights.of_export(export))
        self._coming = server.hex
        try:
            base = self._base_url(export.base_model)
            for old in instead_of:
                self._make_way(self._servers.of(Weights.of_export(old.export)).hex, self._addresses.server(old.url))
            self._fleet.make(server)
            condition = self._fleet.condition(server.hex)
            if not condition.ready:
                return self._not_ready(server, condition, export, fetched, base, alone=bool(instead_of))
            endpoint = self._endpoint(server.hex, export.prompt_format, fetched.tokenizer)
            proving()
            self._began.pop(server.hex, None)
            return RolledOut(endpoint, self._prove(endpoint.url, export, fetched, base))
        finally:
            self._coming = ""

    def reload(self, export: Export, url: str) -> str:
        """See `Rollout.reload`. After an upgrade of the template a new server is proven before it is routed to."""
        server, before = self._servers.of(Weights.of_export(export)), self._addresses.server(url)
        if before == server.hex:
            self._fleet.make(server)
            return self._require_ready(server.hex)
        if self._upgrading not in ("", server.hex):  # one at a time, for each wants room beside its old one
            return self._require_ready(before)
        self._upgrading = server.hex
        if self._terms.replace:
            self._make_way(before)
        self._fleet.make(server)
        condition = self._fleet.condition(server.hex)
        if condition.ready and self._is_proven(server.hex, export):
            self._upgrading = ""
            return self._addresses.url(server.hex)
        if self._fleet.condition(before).ready:
            return url
        raise NotReady(condition.why or "the server of the upgraded template fails the contract test")

    def remove(self, export: Export) -> None:
        """See `Rollout.remove`."""
        self._fleet.end(self._servers.of(Weights.of_export(export)).hex)

    def keep(self, held: Sequence[Held]) -> None:
        """See `Rollout.keep`. Servers are found by label, those of this release alone."""
        if not all(self._base_servers.values()):
            return  # a base has not been looked at since the start, so it is not known what nobody needs
        needed = {self._servers.of(Weights.of_export(one.export)).hex for one in held}
        needed |= {self._addresses.server(one.url) for one in held}
        needed = needed.union(*self._base_servers.values())
        if self._upgrading not in needed:
            self._upgrading = ""
        now = self._clock.monotonic()
        for server in self._fleet.known():
            if server in needed or server == self._coming:
                self._unneeded_since.pop(server, None)
            elif self._fleet.has_deployment(server):
                if now - self._unneeded_since.setdefault(server, now) >= self._terms.drain_s:
                    self._fleet.end(server)
            elif not self._fleet.has_pods(server):
                self._fleet.clear(server)

    def close(self) -> None:
        """Lets go of connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
        self._fleet.close()

    # Waiting.

    def _not_ready(
        self, server: Server, condition: Condition, export: Export, fetched: FetchedExport, base: str, *, alone: bool
    ) -> RolledOut:
        """What follows where no pod is ready: a refusal where that is sure already, else another try later."""
        if condition.hopeless:
            raise Poison(condition.why, where=server.name, remedy=condition.remedy)
        refused = self._refusal(condition, export, fetched, base)
        if refused is not None:
            return refused
        waited = self._clock.monotonic() - self._began.setdefault(server.hex, self._clock.monotonic())
        if alone and waited > self._terms.patience_s:
            del self._began[server.hex]
            raise Poison(
                f"it is not ready after {waited:.0f} s: {condition.why}",
                where=server.name,
                remedy="The model it was to supersede comes back. Mend the cause, then deploy this one again.",
            )
        raise NotReady(condition.why, where=server.name)

    def _refusal(self, condition: Condition, export: Export, fetched: FetchedExport, base: str) -> RolledOut | None:
        """Asks a pod that has loaded its model and is not healthy: with NaN in its weights it never will be."""
        url = self._addresses.pod(condition.started) if condition.started is not None else ""
        if not url or not self._client(url).answers() or self._client(url).healthy():
            return None
        proof = self._prove(url, export, fetched, base)
        return None if proof.model.passed else RolledOut(Endpoint(), proof)

    def _require_ready(self, server: str) -> str:
        condition = self._fleet.condition(server)
        if not condition.ready:
            raise NotReady(condition.why)
        return self._addresses.url(server)

    def _make_way(self, *servers: str) -> None:
        """Ends servers whose room is needed.

        Raises:
            NotReady: their pods are still there.
        """
        for server in servers:
            self._fleet.end(server)
        left = [server for server in servers if self._fleet.has_pods(server)]
        if left:
            raise NotReady(f"server-{left[0]}, which makes room for it, finishes its answers")

    # Proving.

    def _prove(self, url: str, export: Export, fetched: FetchedExport, base: str) -> Proof:
        render = self._formats.with_base(fetched.tokenizer).get(export.prompt_format).prompt
        return prove(self._client(url), fetched.probes(), render, adapter_id="", base=self._client(base))

    def _is_proven(self, server: str, export: Export) -> bool:
        """Asks once: servers do not change, so one that failed fails again."""
        if server not in self._failed:
            fetched = fetch_export(self._blobs, export, self._folder, WORDS)
            proof = self._prove(self._addresses.url(server), export, fetched, self._base_url(export.base_model))
            if not proof.model.passed:
                self._failed.add(server)
        return server not in self._failed

    def _base_url(self, name: str) -> str:
        url = self._base_urls.get(name, "")
        if not url:
            raise NotReady(f'the server of its base "{name}" is not ready, and the contract test compares with it')
        return url

    def _endpoint(self, server: str, prompt_format: str, tokenizer: Path) -> Endpoint:
        url = self._addresses.url(server)
        if server not in self._infos:  # a server never changes
            self._infos[server] = self._client(url).info()
        return self._tongues.endpoint(
            url, self._infos[server], adapter_id="", prompt_format=prompt_format, tokenizer=tokenizer
        )

    def _client(self, url: str) -> TgiClient:
        with self._lock:
            if url not in self._clients:
                self._clients[url] = self._connect(url)
            return self._clients[url]
