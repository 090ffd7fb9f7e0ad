"""The job's prompt format, as the trainer uses it and the export carries it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tokenizers import Tokenizer

from shortstack.prompts.encoding import PromptEncoder
from shortstack.prompts.formats import BASE, PromptFormats
from shortstack.prompts.prompt_format import PromptFormat
from shortstack.records.message import Message
from shortstack.training.trainer.rows import Encoder

__all__ = ["FormatsOfRows", "ServedFormat"]


@dataclass(frozen=True, slots=True)
class ServedFormat:
    """What a server needs of a format, and what training and probes ask it.

    Attributes:
        eos_ids: what ends an answer: the special tokens that training put there, else the base's own.
        eos_token: the text of the first of them; None where the base declares none either.
    """

    format: PromptFormat
    encoder: Encoder
    tokenizer: Tokenizer
    eos_ids: list[int]
    eos_token: str | None

    @classmethod
    def load(cls, name: str, model_dir: Path, created: datetime) -> ServedFormat:
        """The format ``name``, bound to the tokenizer of a model folder.

        Args:
            created: what a format with a date in its preamble takes for now, so that every attempt sees equal rows.

        Raises:
            Invalid: an unknown format, or a tokenizer that it cannot be used with.
        """
        formats = PromptFormats.builtin(lambda: created)
        if name == BASE:
            formats = formats.with_base(model_dir)
        encoder = PromptEncoder.load(formats.get(name), model_dir)
        ids = list(encoder.generation_stop_ids())
        if not ids and encoder.eos_id is not None:
            ids = [encoder.eos_id]
        token = encoder.tokenizer.id_to_token(ids[0]) if ids else None
        return cls(encoder.format, encoder, encoder.tokenizer, ids, token)

    @property
    def chat_template(self) -> str:
        """Jinja source for ``tokenizer_config.json``."""
        return self.format.chat_template()

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """The inference prompt as text, without a begin-of-sequence token."""
        return self.format.prompt(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class FormatsOfRows(Mapping[str | None, Encoder]):
    """Encoders by the format that a record names, loaded when first met; ``None`` is the job's."""

    def __init__(self, job: ServedFormat, model_dir: Path, created: datetime) -> None:
        self._encoders: dict[str | None, Encoder] = {None: job.encoder, job.format.name: job.encoder}
        self._model_dir = model_dir
        self._created = created

    def __getitem__(self, name: str | None) -> Encoder:
        if name not in self._encoders:
            self._encoders[name] = ServedFormat.load(str(name), self._model_dir, self._created).encoder
        return self._encoders[name]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._encoders)

    def __len__(self) -> int:
        return len(self._encoders)
