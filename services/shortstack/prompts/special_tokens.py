"""What a prompt format must know of a tokenizer: its special tokens, and which of them begin and end a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from shortstack.core.errors import Invalid

__all__ = ["SpecialTokens", "read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a model folder; an absent file is an empty object.

    Raises:
        Invalid: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Invalid(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise Invalid(f"a {type(value).__name__} where an object belongs", where=str(path))
    return value


def _token_text(config: dict[str, Any], key: str) -> str | None:
    """``eos_token`` and the like stand as a string or as an object with ``content``."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens of one tokenizer.

    Attributes:
        tokens: texts of all special tokens, in the order of their ids.
        eos: text of the token that ends a sequence, where the model declares one.
        bos: text of the token that begins a sequence, where the model declares one.
        adds_bos: whether encoding with special tokens added puts ``bos`` in front: then no rendered text may hold it.
    """

    tokens: tuple[str, ...]
    eos: str | None = None
    bos: str | None = None
    adds_bos: bool = False

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, *, eos: str | None, bos: str | None) -> SpecialTokens:
        """The special tokens of ``tokenizer``; eos and bos come from the model's configuration."""
        added = tokenizer.get_added_tokens_decoder()
        special = tuple(added[token].content for token in sorted(added) if added[token].special)
        front = tokenizer.encode("", add_special_tokens=True).tokens
        return cls(special, eos, bos, adds_bos=bos is not None and bos in front)

    @classmethod
    def load(cls, model_dir: Path, tokenizer: tokenizers.Tokenizer | None = None) -> SpecialTokens:
        """Reads ``tokenizer.json`` and ``tokenizer_config.json`` (or the older ``special_tokens_map.json``).

        Raises:
            Invalid: the folder holds no ``tokenizer.json``.
        """
        config = read_json(model_dir / "special_tokens_map.json") | read_json(model_dir / "tokenizer_config.json")
        tokenizer = tokenizer or load_tokenizer(model_dir)
        return cls.of(tokenizer, eos=_token_text(config, "eos_token"), bos=_token_text(config, "bos_token"))


def load_tokenizer(model_dir: Path) -> tokenizers.Tokenizer:
    """The fast tokenizer of a model folder.

    Raises:
        Invalid: there is no ``tokenizer.json``, or this version of the library cannot read it.
    """
    path = model_dir / "tokenizer.json"
    if not path.exists():
        raise Invalid("the model has no tokenizer.json", where=str(model_dir), remedy="Export a fast tokenizer.")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise Invalid(f"tokenizer.json cannot be read: {error}", where=str(model_dir)) from error
