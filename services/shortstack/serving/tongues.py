"""How a model is spoken to: the tokenizer's files where the gateway finds them, limits, and what ends an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.core.digest import file_sha256
from shortstack.messages.v1.serving_pb2 import Endpoint
from shortstack.prompts.formats import PromptFormats
from shortstack.storage.blobs import BlobStore

__all__ = ["Tongues"]


@dataclass(frozen=True, slots=True)
class _Tongue:
    """Object keys of a tokenizer's files, and the strings that end an answer in a format."""

    tokenizer: str
    tokenizer_config: str
    stop: tuple[str, ...]


class Tongues:
    """Makes endpoints. A tokenizer is stored once: bases are asked for every second."""

    def __init__(self, blobs: BlobStore, formats: PromptFormats) -> None:
        self._blobs, self._formats = blobs, formats
        self._known: dict[tuple[str, Path], _Tongue] = {}

    def endpoint(
        self, url: str, info: Mapping[str, Any], *, adapter_id: str, prompt_format: str, tokenizer: Path
    ) -> Endpoint:
        """Where and how a model answers.

        Args:
            url: of its server.
            info: what the server says at ``/info``.
            tokenizer: folder with tokenizer.json and tokenizer_config.json.

        Raises:
            Transient: the object store is away.
        """
        tongue = self._tongue(prompt_format, tokenizer)
        return Endpoint(
            url=url,
            adapter_id=adapter_id,
            prompt_format=prompt_format,
            tokenizer=tongue.tokenizer,
            tokenizer_config=tongue.tokenizer_config,
            max_input_tokens=int(info["max_input_tokens"]),
            max_total_tokens=int(info["max_total_tokens"]),
            stop=tongue.stop,
        )

    def _tongue(self, prompt_format: str, tokenizer: Path) -> _Tongue:
        known = self._known.get((prompt_format, tokenizer))
        if known is None:
            names = ("tokenizer.json", "tokenizer_config.json")
            keys = [f"tokenizers/{name}-{file_sha256(tokenizer / name)}" for name in names]
            for name, key in zip(names, keys, strict=True):
                if not self._blobs.exists(key):
                    self._blobs.put_file(key, tokenizer / name)
            stop = self._formats.with_base(tokenizer).get(prompt_format).stop
            known = self._known[prompt_format, tokenizer] = _Tongue(keys[0], keys[1], tuple(stop))
        return known
