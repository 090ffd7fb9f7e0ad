"""One model from weights to proof: what a rollout is, and the one onto the embedded server of one machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from shortstack.core.errors import Poison, Transient
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.serving.contract import Proof, prove
from shortstack.serving.tgi import TgiClient
from shortstack.serving.tongues import Tongues
from shortstack.serving.weights import ADAPTER_AND_WORDS, FetchedExport, fetch_export
from shortstack.storage.blobs import BlobStore

__all__ = [
    "FETCHED",
    "LOADED",
    "EmbeddedRollout",
    "Held",
    "NotReady",
    "RolledOut",
    "Rollout",
    "adapter_of",
    "of_proof",
    "unheard",
]

FETCHED: Final = 0.2
"""How far a rollout is when the weights are where the server reads them."""
LOADED: Final = 0.5
"""And when the server answers; the rest is the contract test."""


def of_proof(reached: Callable[[float], None]) -> Callable[[float], None]:
    """Tells how far a rollout is by how far its contract test is."""
    return lambda asked: reached(LOADED + (1 - LOADED) * asked)


def unheard(part: float) -> None:
    """For those who do not want to know how far a rollout is."""


class NotReady(Transient):
    """A server is known not to answer yet; the words say what it waits for."""


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A model that a server holds, with what the contract test found."""

    endpoint: Endpoint
    proof: Proof


@dataclass(frozen=True, slots=True)
class Held:
    """A model that a server must hold: its export, and the URL that its route names ("" before it has one)."""

    export: Export
    url: str


class Rollout(Protocol):
    """Brings models onto servers. One implementation a place: here the embedded server, Deployments in a cluster.

    `roll_out` is called from one thread, all others from another; none of them from the controller's own.
    """

    def base(self, name: str, folder: Path, url: str) -> Endpoint:
        """The endpoint of a base model that is served as it is, which had ``url`` before ("" if never).

        Raises:
            NotReady: it loads, or nobody serves it.
            Transient: this cannot be told now.
        """
        ...

    def roll_out(
        self,
        export: Export,
        proving: Callable[[], None],
        instead_of: Sequence[Held] = (),
        reached: Callable[[float], None] = unheard,
    ) -> RolledOut:
        """Loads the model and proves it; ``proving`` is called in between.

        Args:
            instead_of: models whose servers go before this one's starts, for want of room.
            reached: told how far it is, 0 to 1, in any order and from several threads.

        Raises:
            Transient: a server is away or not ready yet; try again.
            Poison: the model cannot be served at all.
        """
        ...

    def reload(self, export: Export, url: str) -> str:
        """Makes sure that a proven model, whose route names ``url``, is still there; the URL to route to.

        Raises:
            NotReady: its server is there and does not answer yet.
        """
        ...

    def behind(self, url: str) -> str:
        """Why a route still leads to ``url``, a server of an earlier template; empty if it leads to one of now."""
        ...

    def remove(self, export: Export) -> None:
        """Takes a model away, if it is there; what is under way finishes."""
        ...

    def keep(self, held: Sequence[Held]) -> None:
        """Takes away, after their time to drain, servers that neither these models nor the bases need."""
        ...


def adapter_of(export: Export) -> str:
    """Id of the model's adapter on the embedded server: the first 12 hex digits of the export's digest."""
    return export.digest[:12]


class EmbeddedRollout:
    """Adapters on the embedded inference server, loaded while it runs."""

    def __init__(self, client: TgiClient, blobs: BlobStore, folder: Path, formats: PromptFormats) -> None:
        self._client, self._blobs, self._folder, self._formats = client, blobs, folder, formats
        self._tongues = Tongues(blobs, formats)

    def base(self, name: str, folder: Path, url: str) -> Endpoint:
        """See `Rollout.base`."""
        if not self._client.healthy():
            raise NotReady("the inference server is loading it")
        if Path(str(self._client.info()["model_id"])).name != folder.name:
            raise NotReady("the inference server runs another model")
        return self._endpoint("", "base", folder)

    def roll_out(
        self,
        export: Export,
        proving: Callable[[], None],
        instead_of: Sequence[Held] = (),
        reached: Callable[[float], None] = unheard,
    ) -> RolledOut:
        """See `Rollout.roll_out`; adapters have room beside one another, so none has to go for it."""
        fetched = self._load(export, reached)
        endpoint = self._endpoint(adapter_of(export), export.prompt_format, fetched.tokenizer)
        proving()
        spoken = self._formats.with_base(fetched.tokenizer).get(export.prompt_format)
        adapter, client = endpoint.adapter_id, self._client
        proof = prove(
            client,
            fetched.probes(),
            spoken.prompt,
            adapter_id=adapter,
            base=client,
            stop=spoken.stop,
            asked=of_proof(reached),
        )
        return RolledOut(endpoint, proof)

    def reload(self, export: Export, url: str) -> str:
        """See `Rollout.reload`."""
        if adapter_of(export) not in self._client.adapters():
            self._load(export)
        return self._client.url

    def behind(self, url: str) -> str:
        """See `Rollout.behind`; the one server has no template."""
        return ""

    def remove(self, export: Export) -> None:
        """See `Rollout.remove`."""
        if adapter_of(export) in self._client.adapters():
            self._client.drop_adapter(adapter_of(export))

    def keep(self, held: Sequence[Held]) -> None:
        """See `Rollout.keep`; an adapter that somebody loaded by hand is his, and stays."""

    def _load(self, export: Export, reached: Callable[[float], None] = unheard) -> FetchedExport:
        fetched = fetch_export(self._blobs, export, self._folder, ADAPTER_AND_WORDS)
        reached(FETCHED)
        if fetched.adapter is None:
            raise Poison(
                "the model was trained in all its parameters, and the embedded server takes adapters alone",
                remedy="Train with adapter: lora, or serve it in a cluster.",
            )
        self._client.put_adapter(adapter_of(export), fetched.adapter.resolve())
        reached(LOADED)
        return fetched

    def _endpoint(self, adapter_id: str, prompt_format: str, tokenizer: Path) -> Endpoint:
        return self._tongues.endpoint(
            self._client.url,
            self._client.info(),
            adapter_id=adapter_id,
            prompt_format=prompt_format,
            tokenizer=tokenizer,
        )
