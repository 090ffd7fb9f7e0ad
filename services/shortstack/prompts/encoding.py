"""Token ids of conversations: what a model is trained on, and what it is asked with.

The contract between the two: the ids of every prompt that serving sends are a prefix of the ids of the training row.
That is not so for the ids of the whole text, for tokens span the border between prompt and answer; so a row is never
encoded as a whole. It is the ids of the prompt, then the answer and its close encoded as a continuation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from shortstack.core.errors import Invalid
from shortstack.prompts.prompt_format import Exchange, PromptFormat
from shortstack.prompts.special_tokens import SpecialTokens, load_tokenizer
from shortstack.records.message import Message

__all__ = ["PromptEncoder", "Row", "continuation_tokenizer"]


@dataclass(frozen=True, slots=True)
class Row:
    """A training row.

    Attributes:
        ids: token ids, special tokens included.
        trained: per token, whether it carries loss; as long as ``ids``.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(self.trained)


def continuation_tokenizer(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """``tokenizer`` without the dummy space that it may put before a text: for text that goes on after other text.

    Llama's tokenizers put one by a ``Prepend`` normalizer or a ``Metaspace`` pre-tokenizer, GPT-2's by
    ``add_prefix_space``. (Facts of the ``tokenizers`` library's JSON.)
    """
    if not _begins_with_dummy(tokenizer):
        return tokenizer
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    config["normalizer"] = _without_prepend(config.get("normalizer"))
    config["pre_tokenizer"] = _without_prefix_space(config.get("pre_tokenizer"))
    config["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(config))


def _begins_with_dummy(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a text is changed at its front before it is cut into tokens."""
    text = tokenizer.normalizer.normalize_str("a") if tokenizer.normalizer else "a"
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text) if tokenizer.pre_tokenizer else [(text, (0, 1))]
    return "".join(piece for piece, _ in pieces) != "a"


def _without_prepend(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return None
    if node.get("type") == "Sequence":
        kept = [one for one in map(_without_prepend, node["normalizers"]) if one is not None]
        return {**node, "normalizers": kept} if kept else None
    return node


def _without_prefix_space(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Sequence":
        return {**node, "pretokenizers": [_without_prefix_space(one) for one in node["pretokenizers"]]}
    if node.get("type") == "Metaspace":
        return {**node, "prepend_scheme": "never"}
    if node.get("type") == "ByteLevel":
        return {**node, "add_prefix_space": False}
    return node


class PromptEncoder:
    """A prompt format and a tokenizer.

    Args:
        fmt: the format; bound to the tokenizer here.
        tokenizer: as serving uses it.
        eos_id: the end-of-sequence token.
        bos_id: the begin-of-sequence token.

    Attributes:
        format: the bound format: what renders for this tokenizer, in training and in serving.

    Raises:
        Invalid: the tokenizer adds a token after the text, so that no prompt could be continued; or it finds a special
            token in text that the guard has broken; or the format closes answers with an end-of-sequence token, and
            there is none.
    """

    def __init__(
        self,
        fmt: PromptFormat,
        tokenizer: tokenizers.Tokenizer,
        *,
        eos_id: int | None,
        bos_id: int | None = None,
    ) -> None:
        if fmt.eos != "none" and eos_id is None:
            raise Invalid(
                f"{fmt.name} closes an answer with the end-of-sequence token, and the tokenizer declares none",
                remedy="Name eos_token in tokenizer_config.json.",
            )
        texts = {number: None if number is None else tokenizer.id_to_token(number) for number in (eos_id, bos_id)}
        special = SpecialTokens.of(tokenizer, eos=texts[eos_id], bos=texts[bos_id])
        self.format = fmt.bound(special)
        self.tokenizer = tokenizer
        self.eos_id = eos_id
        self.bos_id = bos_id
        self._continuation = continuation_tokenizer(tokenizer)
        self._refuse_suffix()
        self._refuse_unbreakable(special)

    @classmethod
    def load(cls, fmt: PromptFormat, model_dir: Path) -> PromptEncoder:
        """The encoder of ``fmt`` for the tokenizer in ``model_dir``.

        Raises:
            Invalid: the folder holds no tokenizer that can be used.
        """
        tokenizer = load_tokenizer(model_dir)
        special = SpecialTokens.load(model_dir, tokenizer)
        ids = [None if token is None else tokenizer.token_to_id(token) for token in (special.eos, special.bos)]
        return cls(fmt, tokenizer, eos_id=ids[0], bos_id=ids[1])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt, as the inference server gets them: special tokens added, the text's own recognised."""
        return list(self.encode(self.format.prompt(messages)))

    def guard(self, text: str) -> str:
        """``text`` with special tokens and the format's markers broken, as it stands in a rendering."""
        return self.format.guard(text)

    def generation_stop_ids(self) -> tuple[int, ...]:
        """Ids for ``generation_config.eos_token_id``."""
        return self.format.generation_stop_ids(self.tokenizer, eos_id=self.eos_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text as a server encodes it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=True).ids
        return ids

    def rows(self, messages: Sequence[Message], *, train_on_inputs: bool = False) -> list[Row]:
        """Training rows of a conversation; none where no assistant speaks. What follows the last answer is left out.

        One row holds the conversation as long as the ids of each prompt begin with the ids so far; where they do not,
        a new row begins with that prompt. Each answer carries loss in one row exactly.

        Args:
            messages: the conversation.
            train_on_inputs: whether the tokens of prompts carry loss too.

        Raises:
            Invalid: the format cannot render the messages.
        """
        exchanges = self.format.exchanges(messages)
        prompts = self.tokenizer.encode_batch([one.prompt for one in exchanges], add_special_tokens=True)
        rows: list[Row] = []
        ids: list[int] = []
        trained: list[bool] = []
        learnt = False
        for exchange, prompt in zip(exchanges, (encoding.ids for encoding in prompts), strict=True):
            if prompt[: len(ids)] != ids:
                rows.append(self._row(ids, trained, learnt))
                ids, trained = [], []
            trained += [train_on_inputs] * (len(prompt) - len(ids))
            answer = self._answer_ids(exchange)
            ids = prompt + answer
            trained += [exchange.train] * len(answer)
            learnt = exchange.train
        return [*rows, self._row(ids, trained, learnt)] if exchanges else []

    def _answer_ids(self, exchange: Exchange) -> list[int]:
        ids: list[int] = self._continuation.encode(exchange.answer + exchange.close, add_special_tokens=False).ids
        if self.format.eos == "every" and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _row(self, ids: list[int], trained: list[bool], learnt: bool) -> Row:
        """A finished row; the token that ends it carries loss if its last answer does."""
        if self.format.eos == "last" and self.eos_id is not None:
            return Row((*ids, self.eos_id), (*trained, learnt))
        return Row(tuple(ids), tuple(trained))

    def _refuse_suffix(self) -> None:
        plain = self.tokenizer.encode("a", add_special_tokens=False).ids
        added = self.tokenizer.encode("a", add_special_tokens=True).ids
        if added[len(added) - len(plain) :] != plain:
            after = self.tokenizer.decode(added[-1:], skip_special_tokens=False)
            raise Invalid(
                f"the tokenizer adds {after!r} after every text, so that no prompt could be continued",
                remedy="Remove it from the post_processor in tokenizer.json.",
            )

    def _refuse_unbreakable(self, special: SpecialTokens) -> None:
        # Characters that the vocabulary lacks come out as the unknown token: that one cannot be forged.
        known = set(special.tokens) - {getattr(self.tokenizer.model, "unk_token", None)}
        for token in special.tokens:
            found = known.intersection(self._continuation.encode(self.guard(token), add_special_tokens=False).tokens)
            if found:
                raise Invalid(
                    f"the tokenizer reads the special token {token!r} even where the guard has broken it",
                    remedy="Use a base model whose special tokens are matched exactly.",
                )
