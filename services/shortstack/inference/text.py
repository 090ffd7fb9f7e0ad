"""Text to token ids and back, with the rules of TGI's tokenization and incremental decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shortstack.core.errors import Fatal

__all__ = ["IncrementalDecoder", "TextCodec", "TokenSpan"]


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token of a prompt: its id, its text, and the bytes [start, stop) of the prompt that it covers."""

    id: int
    text: str
    start: int
    stop: int


class TextCodec:
    """A model folder's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos = eos
        self.special = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def open(cls, folder: Path) -> TextCodec:
        """Reads ``tokenizer.json`` and the end tokens.

        Ends are `eos_token_id` of generation_config.json (else config.json) and the tokenizer's `eos_token`.

        Raises:
            Fatal: the folder has no readable tokenizer.json.
        """
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust binding raises a bare Exception
            raise Fatal(
                f"the tokenizer cannot be read: {error}",
                where=str(path),
                remedy="Give MODEL_ID a folder in Hugging Face layout with a fast tokenizer.",
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, frozenset(_eos_ids(folder, tokenizer)))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens in its text recognised, the tokenizer's own prefix added."""
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def spans(self, text: str) -> list[TokenSpan]:
        """Tokens of ``text`` with byte offsets; pieces of one character overlap, as they do in TGI."""
        encoding = self._tokenizer.encode(text, add_special_tokens=True)
        byte_at = [0, *accumulate(len(char.encode("utf-8", "surrogatepass")) for char in text)]
        return [
            TokenSpan(token_id, text[first:last], byte_at[first], byte_at[last])
            for token_id, (first, last) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of ``ids``; bytes that make no character become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> set[int]:
    """End-of-sequence ids from the generation config, else the model config, and the tokenizer config."""
    declared = _read_json(folder / "generation_config.json").get("eos_token_id")
    if declared is None:
        declared = _read_json(folder / "config.json").get("eos_token_id")
    ids = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    named = _read_json(folder / "tokenizer_config.json").get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    token_id = tokenizer.token_to_id(text) if text else None
    return ids if token_id is None else ids | {token_id}


class IncrementalDecoder:
    """The text each new token adds, after TGI's `decode_token`.

    A token whose bytes do not finish a character adds '' and its bytes come with the one that does. Some tokens
    before the new ones are decoded with them, because a tokenizer may treat the first token of a text differently.
    """

    _CONTEXT = 5

    def __init__(self, codec: TextCodec, prompt: Sequence[int]) -> None:
        self._codec = codec
        self._ids = list(prompt)
        self._prefix = max(len(self._ids) - self._CONTEXT, 0)
        self._read = len(self._ids)
        self._prompt_tokens = len(self._ids)

    def push(self, token_id: int) -> str:
        """Adds one token; returns the text it makes whole."""
        self._ids.append(token_id)
        text = self._added(self._prefix, self._read, skip_special=False)
        if text:
            self._prefix, self._read = self._read, len(self._ids)
        return text

    def full_text(self) -> str:
        """The answer without special tokens; '' if it ends inside a character, as TGI has it."""
        return self._added(max(self._prompt_tokens - 1, 0), self._prompt_tokens, skip_special=True)

    def _added(self, prefix: int, read: int, *, skip_special: bool) -> str:
        before = self._codec.decode(self._ids[prefix:read], skip_special=skip_special)
        after = self._codec.decode(self._ids[prefix:], skip_special=skip_special)
        if len(after) > len(before) and not after.endswith("\ufffd"):
            return after[len(before) :]
        return ""
