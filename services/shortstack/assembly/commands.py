"""What an operator asks of a dataset: the messages of ``datasets.commands``."""

from __future__ import annotations

from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shortstack.core.errors import Invalid
from shortstack.declarations.strict import invalid_from

__all__ = ["DatasetCommand", "parse_command"]

_WHERE: Final = "datasets.commands"


class DatasetCommand(BaseModel):
    """One command; it says which attempt it is about, so that reading it again changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["accept", "delete"]
    owner: str = ""
    publication: str = Field(min_length=1)
    attempt: int = Field(ge=1)
    at: str = ""


def parse_command(value: bytes) -> DatasetCommand:
    """Reads one message.

    Raises:
        Invalid: no JSON object, an unknown key or kind, or a missing field.
    """
    try:
        given = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"not JSON: {error}", where=_WHERE, remedy="Send one UTF-8 JSON object a message.") from error
    if not isinstance(given, dict):
        raise Invalid(
            f"a command is a JSON object, not {type(given).__name__}",
            where=_WHERE,
            remedy="Use: shortstack datasets accept|delete NAME",
        )
    try:
        return DatasetCommand.model_validate(given)
    except ValidationError as error:
        raise invalid_from(error, DatasetCommand, where=_WHERE) from error
