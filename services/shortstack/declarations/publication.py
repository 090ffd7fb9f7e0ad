"""The messages of ``datasets.ingest``: a pointer to files, a whole dataset, numbered parts, or a wish to retry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shortstack.core.errors import Invalid
from shortstack.core.identity import NAME
from shortstack.declarations.strict import invalid_from

__all__ = [
    "FAMILIES",
    "FILE_FORMATS",
    "REFUSED",
    "AnyMessage",
    "CompleteMessage",
    "PartMessage",
    "PointerMessage",
    "PublicationMessage",
    "RetryMessage",
    "Source",
    "WholeMessage",
    "parse_publication",
    "publication_schema",
]

FAMILIES: Final = ("alpaca", "h2ogpt", "messages", "prompt_completion", "sharegpt")
"""Shapes of a record in a file; detected from the first records unless ``format`` names one."""

FILE_FORMATS: Final = ("csv", "json", "jsonl", "parquet", "tsv")
"""What a file is; detected by its first bytes and its name unless ``source.file_format`` names one."""

REFUSED: Final = "publication_refused"
"""Code of the failure of a request that was set aside: what else there is of its dataset stands as before."""

COLUMNS_ALIAS: Final = "data_col_dict"
"""Another name of ``columns``: that of h2oGPT's fine-tuning."""

_NAME_PATTERN: Final = f"^{NAME.pattern}$"

Name = Annotated[str, Field(pattern=_NAME_PATTERN, max_length=64)]
Record = dict[str, Any]


class Source(BaseModel):
    """Where the records are: one address or several, each may hold ``*`` and ``?``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(None, min_length=1, max_length=2048)
    uris: tuple[Annotated[str, Field(min_length=1, max_length=2048)], ...] | None = Field(
        None, min_length=1, max_length=1000
    )
    file_format: Literal["csv", "json", "jsonl", "parquet", "tsv"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.uri is None) == (self.uris is None):
            raise ValueError('a source has either "uri" or "uris"')
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses, in order."""
        return (self.uri,) if self.uri is not None else self.uris or ()


class PublicationMessage(BaseModel):
    """What every kind but a part carries: how to read the records, and what is wished of them.

    Attributes:
        dataset: name of the dataset.
        format: one of `FAMILIES`; None to detect.
        columns: column given → column meant, for example ``{"A": "input", "B": "output"}``. Keys "0", "1", … name
            the columns of a CSV or TSV without a header by their place. ``data_col_dict`` (h2oGPT's name) is the same.
        prompt_format: name of a declared prompt format; None for the base model's own.
        recipe: name, inline recipe, or ``{"uri": …}``.
        train: training settings in axolotl's names; present: train on the dataset when it is ready.
        deploy: what to serve the model as; see `declarations.deploy`.
        job: id of the fine-tuning job that this publication belongs to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Name
    format: Literal["alpaca", "h2ogpt", "messages", "prompt_completion", "sharegpt"] | None = None
    columns: dict[str, str] | None = Field(None, max_length=200)
    prompt_format: str | None = Field(None, max_length=64)
    recipe: str | dict[str, Any] | None = None
    license: str | None = Field(None, max_length=200)
    train: dict[str, Any] | None = None
    deploy: dict[str, Any] | None = None
    job: str | None = Field(None, pattern=r"^ftjob-[A-Za-z0-9_-]{1,64}$")

    @model_validator(mode="before")
    @classmethod
    def _columns(cls, given: Any) -> Any:
        if not isinstance(given, dict) or COLUMNS_ALIAS not in given:
            return given
        if "columns" in given:
            raise ValueError(f'"columns" and "{COLUMNS_ALIAS}" say the same: give one of them')
        return {("columns" if key == COLUMNS_ALIAS else key): value for key, value in given.items()}

    @field_validator("deploy")
    @classmethod
    def _deploy(cls, value: dict[str, Any] | None, info: Any) -> dict[str, Any] | None:
        if value is not None and info.data.get("train") is None:
            raise ValueError('"deploy" needs "train": there is no model to serve without one')
        return value


class PointerMessage(PublicationMessage):
    """Points at files."""

    source: Source

    @field_validator("source", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"uri": value} if isinstance(value, str) else value


class WholeMessage(PublicationMessage):
    """Carries a small dataset in one message."""

    records: tuple[Any, ...] = Field(min_length=1)


class PartMessage(BaseModel):
    """Records ``seq`` to ``seq + len(records) - 1`` of an upload; its writer numbers them from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Name
    upload: Name
    seq: int = Field(ge=0)
    records: tuple[Any, ...] = Field(min_length=1)


class CompleteMessage(PublicationMessage):
    """Closes an upload of ``records`` records and says what to do with them."""

    upload: Name
    complete: Literal[True]
    records: int = Field(ge=1)


class RetryMessage(BaseModel):
    """Asks for a publication's pinned sources to be read again: what `datasets retry` sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Name
    retry: str = Field(pattern="^[0-9a-f]{32}$")


AnyMessage = PointerMessage | WholeMessage | PartMessage | CompleteMessage | RetryMessage
"""Any message of the topic."""

_KINDS: Final[dict[str, type[BaseModel]]] = {
    "retry": RetryMessage,
    "source": PointerMessage,
    "complete": CompleteMessage,
    "upload": PartMessage,
    "records": WholeMessage,
}
"""The key that tells the kind, in order of precedence."""


def parse_publication(value: bytes | Mapping[str, Any]) -> AnyMessage:
    """Reads one message.

    Raises:
        Invalid: no JSON object, an unknown key (with the nearest known one), or a bad value.
    """
    given = _object(value)
    name = given.get("dataset")
    where = f"dataset {name}" if isinstance(name, str) else "publication"
    kind = next((model for key, model in _KINDS.items() if key in given), None)
    if kind is None:
        kind = PointerMessage
        if not set(given) - {*PublicationMessage.model_fields, COLUMNS_ALIAS}:
            raise Invalid(
                "no records: a publication has a source, records, or an upload",
                where=where,
                remedy='Add "source": {"uri": …} for files, or "records": […].',
                param="source",
            )
    try:
        message = kind.model_validate(given)
    except ValidationError as error:
        raise invalid_from(error, kind, where=where) from error
    assert isinstance(message, AnyMessage)
    return message


def _object(value: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    try:
        loaded = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Invalid(
            f"not JSON: {error}", where="publication", remedy="Send one UTF-8 JSON object a message."
        ) from error
    if not isinstance(loaded, dict):
        raise Invalid(
            f"a publication is a JSON object, not {type(loaded).__name__}",
            where="publication",
            remedy='Send one UTF-8 JSON object a message, with its records under "records".',
        )
    return loaded


def publication_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``datasets.ingest``; committed as proto/schemas/datasets.ingest.json."""
    definitions: dict[str, Any] = {}
    kinds = []
    for model in (PointerMessage, WholeMessage, PartMessage, CompleteMessage, RetryMessage):
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        if columns := schema["properties"].get("columns"):
            schema["properties"][COLUMNS_ALIAS] = {**columns, "title": "Data Col Dict"}
        definitions[model.__name__] = schema
        kinds.append({"$ref": f"#/$defs/{model.__name__}"})
    source = definitions["PointerMessage"]["properties"]["source"]
    definitions["PointerMessage"]["properties"]["source"] = {"anyOf": [source, {"type": "string", "minLength": 1}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "datasets.ingest.json",
        "title": "datasets.ingest",
        "description": "A message of datasets.ingest or datasets.ingest.OWNER; key: the dataset's name.",
        "oneOf": kinds,
        "$defs": dict(sorted(definitions.items())),
    }
