"""What every prompt format can do, be it declared in YAML or a tokenizer's own chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.prompts.guard import Guard
from shortstack.prompts.special_tokens import SpecialTokens
from shortstack.records.message import ROLES, Message

__all__ = ["Exchange", "PromptFormat", "answer_text", "check_roles"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One answer in its place.

    Attributes:
        index: position of the assistant's message in the conversation.
        prompt: all the text that the model is given for it; byte for byte what serving sends.
        answer: the text to learn, guarded.
        close: the text that ends it, learnt too (without an end-of-sequence token that is an id only).
        train: whether the answer carries loss.
    """

    index: int
    prompt: str
    answer: str
    close: str
    train: bool


class PromptFormat(ABC):
    """How a conversation becomes text, for training and for serving alike.

    Attributes:
        name: as jobs and records name it.
        stop: strings at which serving cuts an answer.
        default_system: the system text where a conversation has none of its own.
        guard: breaks special tokens and markers inside content.
        eos: when an answer ends in the end-of-sequence token (see `declaration.Close`).
    """

    name: str
    stop: tuple[str, ...]
    default_system: str | None
    guard: Guard
    eos: Literal["every", "last", "none"]

    @abstractmethod
    def prompt(self, messages: Sequence[Message]) -> str:
        """The text to generate from; ends in the opening of an assistant's turn.

        Raises:
            Invalid: the format cannot render the messages; names the index.
        """

    @abstractmethod
    def text(self, messages: Sequence[Message]) -> str:
        """The training text. Of every assistant's turn the prompt is a byte prefix of it.

        Raises:
            Invalid: the format cannot render the messages; names the index.
        """

    @abstractmethod
    def exchanges(self, messages: Sequence[Message]) -> list[Exchange]:
        """Every assistant's turn with the prompt before it and the close after it, in order.

        Raises:
            Invalid: the format cannot render the messages; names the index.
        """

    @abstractmethod
    def chat_template(self) -> str:
        """Jinja source that renders what `prompt` and `text` do, for a model's ``tokenizer_config.json``."""

    @abstractmethod
    def bound(self, special: SpecialTokens) -> PromptFormat:
        """This format for one tokenizer: its special tokens guarded, its end-of-sequence token in the text."""

    @abstractmethod
    def roles(self) -> Mapping[str, str]:
        """What becomes of each role of `ROLES`, in words."""

    @abstractmethod
    def close_text(self) -> str:
        """The text that closes an answer, the end-of-sequence token included where the text holds it."""

    def check(self, messages: Sequence[Message]) -> None:
        """Raises Invalid, naming the index, where `text` cannot render the messages."""
        self.exchanges(messages)

    def generation_stop_ids(self, tokenizer: tokenizers.Tokenizer, *, eos_id: int | None) -> tuple[int, ...]:
        """Ids for ``generation_config.eos_token_id``: those special tokens that training put at the end of answers.

        Empty where the close is plain text: then the stop strings alone end an answer.
        """
        ids = tokenizer.encode(self.close_text(), add_special_tokens=False).ids
        added = tokenizer.get_added_tokens_decoder()
        special = [token for token in ids if token in added and added[token].special]
        if self.eos != "none" and eos_id is not None:
            special.append(eos_id)
        return tuple(dict.fromkeys(special))


def check_roles(messages: Sequence[Message], known: Sequence[str] = ROLES) -> None:
    """Raises Invalid for a conversation without a message, or with a role that is not in ``known``."""
    if not messages:
        raise Invalid("a conversation needs at least one message", param="messages")
    for index, message in enumerate(messages):
        if message.role not in known:
            raise Invalid(
                f'role is "{message.role}"',
                where=f"messages[{index}]",
                remedy=did_you_mean(message.role, known),
                param=f"messages[{index}].role",
            )


def answer_text(message: Message) -> str:
    """What an assistant says: its content and, on a line of their own, its tool calls as they stand in the record."""
    if not message.tool_calls:
        return message.content
    return f"{message.content}\n{message.tool_calls}" if message.content else message.tool_calls
