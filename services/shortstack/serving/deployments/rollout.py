"""Models in a cluster: a Deployment and a Service each, started, proven, routed to, drained, removed; never edited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison, Transient
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.contract import Proof, prove
from shortstack.serving.deployments.condition import Condition
from shortstack.serving.deployments.fleet import Fleet
from shortstack.serving.deployments.server import Addresses, Server, Servers, Weights
from shortstack.serving.deployments.succession import Succession
from shortstack.serving.rollout import FETCHED, LOADED, Held, NotReady, RolledOut, of_proof, unheard
from shortstack.serving.tgi import TgiClient
from shortstack.serving.tongues import Tongues
from shortstack.serving.weights import WORDS, FetchedExport, fetch_export
from shortstack.storage.blobs import BlobStore

__all__ = ["DeploymentRollout", "Terms"]

_NONE: Final = "none"
"""Stands for the server of a base model that cannot have one yet; no server is named so."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How servers follow one another.

    Attributes:
        drain_s: seconds that a server stays after nobody needs it.
        replace: there is no room for two: the old server goes before the new one starts.
        patience_s: seconds that a server may take until the old one comes back, or, with room for two, until it is
            given up and the old one stays.
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
        self._base_servers: dict[str, tuple[str, str]] = dict.fromkeys(bases, ("", ""))
        self._coming = ""
        self._succession = Succession(clock, terms.patience_s)
        self._faults: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._unneeded_since: dict[str, float] = {}

    def base(self, name: str, folder: Path, url: str) -> Endpoint:
        """See `Rollout.base`. One made from another template serves until its successor is ready."""
        before = self._addresses.server(url)
        self._base_servers[name] = (before, before or _NONE)  # one that was not imported keeps no other server waiting
        server = self._servers.of(Weights.of_base(name, folder))
        self._base_servers[name] = (before, server.hex)
        now = self._addresses.server(self._route(server, url, lambda: ""))
        self._base_urls[name] = self._addresses.url(now)
        if now == server.hex:
            self._base_servers[name] = (now, now)
        return self._endpoint(now, "base", folder)

    def roll_out(
        self,
        export: Export,
        proving: Callable[[], None],
        instead_of: Sequence[Held] = (),
        reached: Callable[[float], None] = unheard,
    ) -> RolledOut:
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
            reached(LOADED if condition.ready else FETCHED if condition.started is not None else 0.0)
            if not condition.ready:
                return self._not_ready(server, condition, export, fetched, base, alone=bool(instead_of))
            endpoint = self._endpoint(server.hex, export.prompt_format, fetched.tokenizer)
            proving()
            self._began.pop(server.hex, None)
            return RolledOut(endpoint, self._prove(endpoint.url, export, fetched, base, of_proof(reached)))
        finally:
            self._coming = ""

    def reload(self, export: Export, url: str) -> str:
        """See `Rollout.reload`. After an upgrade of the template a new server is proven before it is routed to."""
        server, before = self._servers.of(Weights.of_export(export)), self._addresses.server(url)
        in_turn = self._terms.replace or self._fleet.has_deployment(before)
        if not in_turn:
            self._succession.pass_turn(server.hex)  # it has nothing to lose, and room enough
        elif before != server.hex and (first := self._succession.take_turn(server.hex)) != server.hex:
            if not self._succession.has_given_up(before, server.hex):
                self._succession.wait(before, server.hex, f"server-{first} is started first, one after the other")
            self._require_ready(before)
            return url
        return self._route(server, url, lambda: self._fault(server.hex, export))

    def behind(self, url: str) -> str:
        """See `Rollout.behind`."""
        return self._succession.why(self._addresses.server(url))

    def remove(self, export: Export) -> None:
        """See `Rollout.remove`."""
        self._fleet.end(self._servers.of(Weights.of_export(export)).hex)

    def keep(self, held: Sequence[Held]) -> None:
        """See `Rollout.keep`. Servers are found by label, those of this release alone."""
        if not all(successor for _, successor in self._base_servers.values()):
            return  # a base has not been looked at since the start, so it is not known what nobody needs
        routes = [
            (self._addresses.server(one.url), self._servers.of(Weights.of_export(one.export)).hex) for one in held
        ]
        pairs = [*routes, *self._base_servers.values()]
        needed = {server for pair in pairs for server in self._succession.needed(*pair)}
        self._succession.keep(needed)
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

    # Upgrading.

    def _route(self, server: Server, url: str, fault: Callable[[], str]) -> str:
        """Where to route to: to a server once it is there without a fault; until then to ``url``, if that answers."""
        before = self._addresses.server(url)
        if before == server.hex:
            self._fleet.make(server)
            return self._require_ready(server.hex)
        why = self._bring(server, before, fault)
        if not why:
            return self._addresses.url(server.hex)
        old = self._fleet.condition(before)
        if not old.ready:
            stands = self._fleet.has_deployment(before)
            raise NotReady(f"{old.why.rstrip('.')}. Of its successor: {why}" if stands else why)
        return url

    def _bring(self, server: Server, before: str, fault: Callable[[], str]) -> str:
        """Takes one more step towards the successor of a server; why it has not come, empty if it has."""
        stands = self._fleet.has_deployment(before)
        if not stands:
            self._succession.forget(before)
        elif self._succession.has_given_up(before, server.hex):
            self._succession.pass_turn(server.hex)
            return self._succession.why(before)
        late = stands and self._succession.is_late(before, server.hex)
        why, sure = self._step(server, before, fault)
        if not why:
            self._succession.forget(before)
            self._succession.pass_turn(server.hex)
        elif stands and (sure or late) and not self._terms.replace:  # else there is nothing to go back to
            self._succession.give_up(before, server.hex, why)
            self._faults.pop(server.hex, None)
        elif stands:
            self._succession.wait(before, server.hex, why)
        return why

    def _step(self, server: Server, before: str, fault: Callable[[], str]) -> tuple[str, bool]:
        """What a successor lacks (empty if nothing), and whether it always will."""
        try:
            if self._terms.replace:
                self._make_way(before)
            self._fleet.make(server)
            condition = self._fleet.condition(server.hex)
            if not condition.ready:
                return condition.why, condition.hopeless
            why = fault()
        except Poison as error:
            return str(error), True
        except Transient as error:  # if the API server is away, then the old server cannot be looked at either
            return str(error), False
        return why, bool(why)

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

    def _prove(
        self, url: str, export: Export, fetched: FetchedExport, base: str, asked: Callable[[float], None] = unheard
    ) -> Proof:
        spoken = self._formats.with_base(fetched.tokenizer).get(export.prompt_format)
        server, other = self._client(url), self._client(base)
        return prove(server, fetched.probes(), spoken.prompt, adapter_id="", base=other, stop=spoken.stop, asked=asked)

    def _fault(self, server: str, export: Export) -> str:
        """Why a server fails the contract test, empty if it passes. Asks once: one that failed fails again."""
        if server not in self._faults:
            fetched = fetch_export(self._blobs, export, self._folder, WORDS)
            proof = self._prove(self._addresses.url(server), export, fetched, self._base_url(export.base_model))
            if proof.model.passed:
                return ""
            self._faults[server] = f"contract test: {proof.model.why}"
        return self._faults[server]

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
