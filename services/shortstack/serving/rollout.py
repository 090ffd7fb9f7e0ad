"""One model from weights to proof: fetch, load, render as chats will, ask the probes. The part that takes time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shortstack.core.digest import file_sha256
from shortstack.core.errors import Poison
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.messages.v1.training_pb2 import Export
from shortstack.prompts.formats import PromptFormats
from shortstack.records.message import Message
from shortstack.serving.contract import Proof, prove
from shortstack.serving.tgi import TgiClient
from shortstack.serving.weights import FetchedExport, fetch_export
from shortstack.storage.blobs import BlobStore

__all__ = ["EmbeddedRollout", "RolledOut", "Rollout", "adapter_of"]


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A model that a server holds, with what the contract test found."""

    endpoint: Endpoint
    proof: Proof


class Rollout(Protocol):
    """Brings models onto servers. One implementation a place: here the embedded server, Deployments in a cluster."""

    def base(self, folder: Path) -> Endpoint | None:
        """The endpoint of a base model that is served as it is; None while it loads or if nobody serves it."""
        ...

    def roll_out(self, export: Export, proving: Callable[[], None]) -> RolledOut:
        """Loads the model and proves it; ``proving`` is called in between.

        Raises:
            Transient: a server is away; try again.
            Poison: the model cannot be served at all.
        """
        ...

    def reload(self, export: Export) -> str:
        """Makes sure that a proven model is still there, after a server's restart; the server's URL."""
        ...

    def remove(self, export: Export) -> None:
        """Takes a model away, if it is there; what is under way finishes."""
        ...


@dataclass(frozen=True, slots=True)
class _Tongue:
    """Object keys of a tokenizer's files, and the strings that end an answer in a format."""

    tokenizer: str
    tokenizer_config: str
    stop: tuple[str, ...]


def adapter_of(export: Export) -> str:
    """Id of the model's adapter on the embedded server: the first 12 hex digits of the export's digest."""
    return export.digest[:12]


class EmbeddedRollout:
    """Adapters on the embedded inference server, loaded while it runs."""

    def __init__(self, client: TgiClient, blobs: BlobStore, folder: Path, formats: PromptFormats) -> None:
        self._client, self._blobs, self._folder, self._formats = client, blobs, folder, formats
        self._tongues: dict[tuple[str, Path], _Tongue] = {}

    def base(self, folder: Path) -> Endpoint | None:
        """See `Rollout.base`."""
        if not self._client.healthy():
            return None
        if Path(str(self._client.info()["model_id"])).name != folder.name:
            return None
        return self._endpoint("", "base", folder)

    def roll_out(self, export: Export, proving: Callable[[], None]) -> RolledOut:
        """See `Rollout.roll_out`."""
        fetched = self._load(export)
        endpoint = self._endpoint(adapter_of(export), export.prompt_format, fetched.tokenizer)
        proving()
        fmt = self._formats.with_base(fetched.tokenizer).get(export.prompt_format)

        def render(messages: Sequence[Message]) -> str:
            return fmt.prompt(messages)

        proof = prove(self._client, fetched.probes(), render, adapter_id=endpoint.adapter_id, base=self._client)
        return RolledOut(endpoint, proof)

    def reload(self, export: Export) -> str:
        """See `Rollout.reload`."""
        if adapter_of(export) not in self._client.adapters():
            self._load(export)
        return self._client.url

    def remove(self, export: Export) -> None:
        """See `Rollout.remove`."""
        if adapter_of(export) in self._client.adapters():
            self._client.drop_adapter(adapter_of(export))

    def _load(self, export: Export) -> FetchedExport:
        fetched = fetch_export(self._blobs, export, self._folder)
        if fetched.adapter is None:
            raise Poison(
                "the model was trained in all its parameters, and the embedded server takes adapters alone",
                remedy="Train with adapter: lora, or serve it in a cluster.",
            )
        self._client.put_adapter(adapter_of(export), fetched.adapter.resolve())
        return fetched

    def _endpoint(self, adapter_id: str, prompt_format: str, tokenizer: Path) -> Endpoint:
        info, tongue = self._client.info(), self._tongue(prompt_format, tokenizer)
        return Endpoint(
            url=self._client.url,
            adapter_id=adapter_id,
            prompt_format=prompt_format,
            tokenizer=tongue.tokenizer,
            tokenizer_config=tongue.tokenizer_config,
            max_input_tokens=int(info["max_input_tokens"]),
            max_total_tokens=int(info["max_total_tokens"]),
            stop=tongue.stop,
        )

    def _tongue(self, prompt_format: str, tokenizer: Path) -> _Tongue:
        """Puts the tokenizer's files where the gateway finds them, once; bases are asked for every second."""
        known = self._tongues.get((prompt_format, tokenizer))
        if known is None:
            names = ("tokenizer.json", "tokenizer_config.json")
            keys = [f"tokenizers/{name}-{file_sha256(tokenizer / name)}" for name in names]
            for name, key in zip(names, keys, strict=True):
                if not self._blobs.exists(key):
                    self._blobs.put_file(key, tokenizer / name)
            stop = self._formats.with_base(tokenizer).get(prompt_format).stop
            known = self._tongues[prompt_format, tokenizer] = _Tongue(keys[0], keys[1], tuple(stop))
        return known
