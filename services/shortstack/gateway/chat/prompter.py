"""Renders and counts prompts exactly as the model's server will see them.

The tokenizer of a model is fetched once by its digest into VAR/gateway/tokenizers and kept; the prompt format is
the one that the model was trained on. Loading takes some 100 ms, so it happens off the event loop, once.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from shortstack.core.digest import sha256_hex
from shortstack.core.errors import Invalid, Poison, ShortstackError
from shortstack.gateway.errors import ApiError, from_stack, invalid
from shortstack.gateway.routing.table import ServedModel
from shortstack.prompts.encoding import PromptEncoder
from shortstack.prompts.formats import BASE, PromptFormats
from shortstack.records.message import Message

__all__ = ["ObjectReader", "Prompt", "Prompters", "TokenizerCache"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_INLINE_CHARACTERS: Final = 16_000
"""Longer prompts (about 4 ms of encoding) are encoded in a thread, so that other streams keep flowing."""
_KEPT: Final = 16


class ObjectReader(Protocol):
    """What is needed of the object store."""

    def fetch(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copies an object to ``path``, whole or not at all; raises NotFound, or Poison for another digest."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and how many tokens the server makes of it."""

    text: str
    tokens: int


class TokenizerCache:
    """Tokenizer files on local disk, one folder per content.

    Args:
        blobs: where models' tokenizers lie.
        folder: where they are kept.
    """

    def __init__(self, blobs: ObjectReader, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder

    def folder_of(self, tokenizer: str, tokenizer_config: str) -> Path:
        """The folder with ``tokenizer.json`` and ``tokenizer_config.json`` under these object keys.

        Raises:
            Poison: an object is missing, or is not what the digest in its key says.
        """
        wanted = {"tokenizer.json": tokenizer, "tokenizer_config.json": tokenizer_config}
        folder = self._folder / sha256_hex("\n".join(wanted.values()).encode())
        for name, key in wanted.items():
            path = folder / name
            if key and not path.is_file():
                named = _SHA256.findall(key.rsplit("/", 1)[-1])
                self._blobs.fetch(key, path, named[-1] if named else None)
        return folder


class Prompters:
    """Encoders of the models in use, loaded when first asked for.

    Args:
        cache: where tokenizer files come from.
        formats: the declared prompt formats.
    """

    def __init__(self, cache: TokenizerCache, formats: PromptFormats) -> None:
        self._cache = cache
        self._formats = formats
        self._loaded: OrderedDict[tuple[str, str, str], PromptEncoder] = OrderedDict()
        self._locks: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def chat(self, model: ServedModel, messages: Sequence[Message]) -> Prompt:
        """The prompt of a conversation in the model's format.

        Raises:
            ApiError: 400, the format cannot render it; 503, the model's tokenizer cannot be had.
        """
        encoder = await self._encoder(model)
        size = sum(len(message.content) for message in messages)
        try:
            if size > _INLINE_CHARACTERS:
                return await asyncio.to_thread(_render, encoder, messages)
            return _render(encoder, messages)
        except Invalid as error:
            raise invalid(str(error), error.param or "messages", "invalid_value") from error

    async def text(self, model: ServedModel, text: str) -> Prompt:
        """A raw text as a prompt.

        Raises:
            ApiError: 503, the model's tokenizer cannot be had.
        """
        encoder = await self._encoder(model)
        if len(text) > _INLINE_CHARACTERS:
            return Prompt(text, len(await asyncio.to_thread(encoder.encode, text)))
        return Prompt(text, len(encoder.encode(text)))

    async def warm(self, model: ServedModel) -> None:
        """Loads what the first chat with ``model`` would otherwise wait for.

        Raises:
            ApiError: 503, the model's tokenizer cannot be had.
        """
        await self._encoder(model)

    async def _encoder(self, model: ServedModel) -> PromptEncoder:
        key = (model.prompt_format, model.tokenizer, model.tokenizer_config)
        encoder = self._loaded.get(key)
        if encoder is not None:
            self._loaded.move_to_end(key)
            return encoder
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._loaded:
                self._loaded[key] = await self._load(model)
                while len(self._loaded) > _KEPT:
                    self._locks.pop(self._loaded.popitem(last=False)[0], None)
            return self._loaded[key]

    async def _load(self, model: ServedModel) -> PromptEncoder:
        try:
            return await asyncio.to_thread(self._load_now, model)
        except Poison as error:
            raise ApiError(
                503,
                f"The tokenizer of the model `{model.name}` cannot be used: {error}",
                type="service_unavailable",
                code="tokenizer_unavailable",
                retry_after_s=5,
            ) from error
        except ShortstackError as error:
            raise from_stack(error) from error

    def _load_now(self, model: ServedModel) -> PromptEncoder:
        folder = self._cache.folder_of(model.tokenizer, model.tokenizer_config)
        name = model.prompt_format or BASE
        formats = self._formats.with_base(folder) if name == BASE else self._formats
        return PromptEncoder.load(formats.get(name), folder)


def _render(encoder: PromptEncoder, messages: Sequence[Message]) -> Prompt:
    text = encoder.format.prompt(messages)
    return Prompt(text, len(encoder.encode(text)))
