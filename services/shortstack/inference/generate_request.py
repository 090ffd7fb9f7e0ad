"""The bodies of `/generate`, `/generate_stream`, `/` and `/tokenize`, read as TGI's router reads them.

Types are strict and unknown fields are ignored. A body of the wrong shape is refused in plain text in
serde's words, without its line and column (`tgi-wire/05`); rules on values are checked later (validation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from shortstack.inference.errors import BodyRefused

__all__ = ["Grammar", "Parameters", "TextRequest", "parse_body"]

_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1

U32 = Annotated[StrictInt, Field(ge=0, le=_U32)]
I32 = Annotated[StrictInt, Field(ge=-(2**31), le=2**31 - 1)]
U64 = Annotated[StrictInt, Field(ge=0, le=_U64)]
Real = StrictFloat | StrictInt


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Grammar(_Body):
    """A constraint on the answer; named so that it can be refused by name (grammars are not supported)."""

    type: Literal["json", "json_object", "regex", "json_schema"]
    value: Any


class Parameters(_Body):
    """TGI's `GenerateParameters`; every default is TGI's for a `parameters` object that is present."""

    adapter_id: StrictStr | None = None
    best_of: U64 | None = None
    temperature: Real | None = None
    repetition_penalty: Real | None = None
    frequency_penalty: Real | None = None
    top_k: I32 | None = None
    top_p: Real | None = None
    typical_p: Real | None = None
    do_sample: StrictBool = False
    max_new_tokens: U32 | None = None
    return_full_text: StrictBool | None = None
    stop: list[StrictStr] = []
    truncate: U64 | None = None
    watermark: StrictBool = False
    details: StrictBool = False
    decoder_input_details: StrictBool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: Grammar | None = None


class TextRequest(_Body):
    """A prompt with its parameters. Without a `parameters` object TGI samples; with an empty one it does not."""

    inputs: StrictStr
    parameters: Parameters = Parameters(do_sample=True)
    stream: StrictBool = False


_EXPECTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("max_new_tokens", "top_n_tokens"), "u32"),
    **dict.fromkeys(("best_of", "truncate"), "usize"),
    **dict.fromkeys(("temperature", "repetition_penalty", "frequency_penalty", "top_p", "typical_p"), "f32"),
    **dict.fromkeys(("do_sample", "return_full_text", "watermark", "details", "stream"), "a boolean"),
    "decoder_input_details": "a boolean",
    "top_k": "i32",
    "seed": "u64",
    "stop": "a sequence",
    "parameters": "struct GenerateParameters",
    "grammar": "a grammar object",
}
_OUT_OF_RANGE: Final = frozenset({"greater_than_equal", "less_than_equal"})


_NAMED: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda _: "null",
    bool: lambda value: f"boolean `{str(value).lower()}`",
    int: lambda value: f"integer `{value}`",
    float: lambda value: f"floating point `{value}`",
    str: lambda value: f'string "{value[:80]}"',
    list: lambda _: "sequence",
    dict: lambda _: "map",
}
"""How serde names an unexpected value."""


def _serde_words(error: ErrorDetails) -> str:
    """One pydantic error as serde would word it: path, what was found, what was expected."""
    path = [part for part in error["loc"] if not (isinstance(part, str) and part in _UNION_ARMS)]
    if error["type"] == "missing":
        inner = ".".join(str(part) for part in path[:-1])
        return f"{inner + ': ' if inner else ''}missing field `{path[-1]}`"
    if error["type"] == "literal_error":
        known = "`, `".join(get_args(Grammar.model_fields["type"].annotation))
        return f"{'.'.join(map(str, path))}: unknown variant `{error['input']}`, expected one of `{known}`"
    names = [part for part in path if isinstance(part, str)]
    nested = bool(path) and isinstance(path[-1], int)
    expected = "a string" if nested or not names else _EXPECTED.get(names[-1], "a string")
    if not path:
        expected = "a generate request object"
    where = ".".join(str(part) for part in path)
    fault = "value" if error["type"] in _OUT_OF_RANGE else "type"
    found = _NAMED[type(error["input"])](error["input"])
    return f"{where + ': ' if where else ''}invalid {fault}: {found}, expected {expected}"


_UNION_ARMS: Final = frozenset({"float", "int", "constrained-int", "constrained-str"})


def parse_body(raw: bytes, content_type: str) -> TextRequest:
    """Reads one request body.

    Raises:
        BodyRefused: 415 for another content type, 400 for malformed JSON, 422 for a wrong shape.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BodyRefused(400, f"Failed to parse the request body as JSON: {error}") from error
    try:
        return TextRequest.model_validate(data)
    except ValidationError as error:
        words = _serde_words(error.errors(include_url=False)[0])
        raise BodyRefused(422, f"Failed to deserialize the JSON body into the target type: {words}") from error
