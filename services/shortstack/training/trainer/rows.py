"""From dataset records to training rows: token ids, and which of them carry loss.

The prompt encoder makes the rows (law 2 of the prompt formats: ids are those of the inference prompt,
continued); here they are read, cut or dropped at ``sequence_len``, and counted. Nothing is dropped silently.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pyarrow.parquet as pq

from shortstack.core.errors import Invalid, Poison
from shortstack.records.message import Message

__all__ = ["Encoder", "Rejection", "RowReport", "TrainingRow", "TrainingRows", "hold_back", "read_records"]

_OPTIONAL_COLUMNS: Final = ("prompt_format", "tools")
_SHOWN: Final = 20
_READ_ROWS: Final = 1024
"""Records in memory at once as Python objects, which take many times what they take in their file."""
_Row = TypeVar("_Row")


class EncodedRow(Protocol):
    """What the prompt encoder returns: one id and one flag a token."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def trained(self) -> Sequence[bool]: ...


class Encoder(Protocol):
    """The part of ``shortstack.prompts.encoding.PromptEncoder`` that training needs."""

    def rows(self, messages: Sequence[Message], *, train_on_inputs: bool = False) -> Sequence[EncodedRow]:
        """One row, or one per assistant turn where the turns' ids do not continue each other."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the inference prompt, as the server will compute them."""
        ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """One record of the dataset: where it stands, its turns, its own format if it names one, the tools it declares."""

    place: str
    messages: tuple[Message, ...]
    prompt_format: str | None = None
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """``input_ids`` and, in the same length, ``labels``: the id itself where it is trained, else -100."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record or row that cannot be trained on, and why."""

    place: str
    reason: str
    detail: str


@dataclass(slots=True)
class RowReport:
    """Where each record went: ``rows = records + split - those of rejected records``.

    Attributes:
        records: read.
        rows: to be trained on.
        split: rows beyond the first of their record.
        truncated: rows cut at ``sequence_len``.
        tokens, trained_tokens: over all rows; one epoch.
        rejected: count by reason.
        examples: the first rejections in full.
    """

    records: int = 0
    rows: int = 0
    split: int = 0
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[Rejection] = field(default_factory=list)

    def reject(self, rejection: Rejection) -> None:
        """Counts a rejection, and keeps it if it is among the first."""
        self.rejected[rejection.reason] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(rejection)

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "rejected": dict(self.rejected)}


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows in dataset order, their report, and the distinct prompts that lead to answers.

    Attributes:
        lengths: tokens of each row; all that is left of one that is only counted.
    """

    rows: list[TrainingRow]
    report: RowReport
    prompts: list[tuple[Message, ...]]
    lengths: array[int] = field(default_factory=lambda: array("Q"))

    @classmethod
    def build(
        cls,
        records: Iterator[Conversation],
        encoders: Mapping[str | None, Encoder],
        *,
        prompt_format: str,
        sequence_len: int,
        drop_long: bool,
        train_on_inputs: bool,
        keep: bool = True,
    ) -> TrainingRows:
        """Encodes records in order.

        Args:
            encoders: by the format that a record names; ``None`` is the job's.
            prompt_format: name of the job's. Records of another are trained on, and their prompts are nobody's to ask.
            keep: False counts, and lets rows and prompts go.
        """
        built = cls([], RowReport(), [])
        for record in records:
            built.report.records += 1
            try:
                _require_renderable(record)
                encoded = encoders[record.prompt_format].rows(record.messages, train_on_inputs=train_on_inputs)
            except Poison as error:
                built.report.reject(Rejection(record.place, "not_renderable", str(error)))
                continue
            built.report.split += max(0, len(encoded) - 1)
            kept = [built._take(record.place, row, sequence_len, drop_long, keep) for row in encoded]
            if not encoded:
                built.report.reject(Rejection(record.place, "no_trained_token", "no assistant turn carries loss"))
            if keep and any(kept) and record.prompt_format in (None, prompt_format):
                built.prompts.append(_prompt(record.messages))
        return built

    def _take(self, place: str, row: EncodedRow, sequence_len: int, drop_long: bool, keep: bool) -> bool:
        report = self.report
        ids, trained = list(row.ids), list(row.trained)
        if len(ids) > sequence_len:
            if drop_long:
                report.reject(Rejection(place, "too_long", f"{len(ids)} tokens, sequence_len {sequence_len}"))
                return False
            report.truncated += 1
            ids, trained = ids[:sequence_len], trained[:sequence_len]
        # The loss predicts token i from those before it, so a first token can never be trained.
        if not any(trained[1:]):
            report.reject(Rejection(place, "no_trained_token", f"none of {len(ids)} tokens carries loss"))
            return False
        if keep:
            labels = [token if flag else -100 for token, flag in zip(ids, trained, strict=True)]
            self.rows.append(TrainingRow(ids, labels))
        self.lengths.append(len(ids))
        report.rows += 1
        report.tokens += len(ids)
        report.trained_tokens += sum(trained)
        report.longest = max(report.longest, len(ids))
        return True


def _require_renderable(record: Conversation) -> None:
    """Raises Invalid for a record that declares tools: they belong to what is asked, and no format renders them."""
    if record.tools:
        raise Invalid(
            "declares tools, which no prompt format renders",
            where=record.place,
            remedy="Leave tools out.",
            param="tools",
        )


def _prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    first = next(index for index, message in enumerate(messages) if message.role == "assistant")
    return messages[:first]


def read_records(paths: Sequence[Path]) -> Iterator[Conversation]:
    """Records of Parquet files, file by file, in order.

    Raises:
        Invalid: a file that is no Parquet, or without a ``messages`` column.
    """
    for path in paths:
        try:
            table = pq.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise Invalid(f"not a readable Parquet file: {error}", where=str(path)) from error
        names = table.schema_arrow.names
        if "messages" not in names:
            raise Invalid("there is no messages column", where=str(path), remedy=f"Columns: {', '.join(names)}.")
        columns = ["messages", *(name for name in _OPTIONAL_COLUMNS if name in names)]
        index = 0
        for batch in table.iter_batches(batch_size=_READ_ROWS, columns=columns):
            for row in batch.to_pylist():
                place = f"{path.name} row {index}"
                messages = tuple(Message.parse(_clean(value), where=place) for value in row["messages"])
                yield Conversation(place, messages, row.get("prompt_format"), row.get("tools"))
                index += 1


def _clean(value: Any) -> Any:
    # Arrow gives a null for every field that a struct lacks; to Message an absent field is the default.
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def hold_back(rows: Sequence[_Row], size: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Splits rows into (train, validation) by a seeded draw; both keep the rows' order.

    Args:
        size: a share below 1, else a number of rows.

    Raises:
        Invalid: nothing would be left to train on.
    """
    count = round(size * len(rows)) if size < 1 else int(size)
    if count >= len(rows):
        raise Invalid(
            f"val_set_size {size:g} takes all {len(rows)} rows",
            where="config",
            remedy="Make it smaller.",
            param="val_set_size",
        )
    held = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [row for index, row in enumerate(rows) if index in held]
