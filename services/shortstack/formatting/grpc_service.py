"""FormattingService: prompt formats by name, a conversation rendered, a recipe tried."""

from __future__ import annotations

from typing import Any, Final

import grpc
import orjson

from shortstack.core.errors import Invalid
from shortstack.declarations.recipe import parse_recipe
from shortstack.formatting.pipeline import Pipeline
from shortstack.formatting.v1 import formatting_pb2 as pb
from shortstack.formatting.v1.formatting_pb2_grpc import FormattingServiceServicer
from shortstack.prompts.declared import DeclaredFormat
from shortstack.prompts.formats import PromptFormats
from shortstack.prompts.prompt_format import PromptFormat
from shortstack.records.message import Message
from shortstack.records.schema import Record, records_of, table_of

__all__ = ["FormattingServicer"]

_MAX_PREVIEW: Final = 1000


class FormattingServicer(FormattingServiceServicer):
    """Answers from what is declared; stores nothing."""

    def __init__(self, formats: PromptFormats) -> None:
        self._formats = formats

    def ListPromptFormats(
        self, request: pb.ListPromptFormatsRequest, context: grpc.ServicerContext
    ) -> pb.ListPromptFormatsResponse:
        """Every declared format; ``base`` belongs to a model and is not among them."""
        return pb.ListPromptFormatsResponse(
            formats=[_described(self._formats.get(name)) for name in self._formats.names()]
        )

    def RenderConversation(
        self, request: pb.RenderConversationRequest, context: grpc.ServicerContext
    ) -> pb.RenderConversationResponse:
        """The text that a format makes of messages."""
        one = self._formats.get(request.prompt_format)
        messages = _messages(_json(request.messages_json, "messages_json"), "messages_json")
        text = one.text(messages) if request.training else one.prompt(messages)
        return pb.RenderConversationResponse(text=text, stop=one.stop)

    def PreviewRecipe(
        self, request: pb.PreviewRecipeRequest, context: grpc.ServicerContext
    ) -> pb.PreviewRecipeResponse:
        """What a recipe would do to some records."""
        recipe = parse_recipe(request.recipe_yaml)
        if len(request.records_json) > _MAX_PREVIEW:
            raise Invalid(f"{len(request.records_json)} records; at most {_MAX_PREVIEW}", param="records_json")
        records = [_record(seq, text) for seq, text in enumerate(request.records_json)]
        segment = Pipeline(recipe).run(table_of(records)).segment
        verdicts = [
            pb.RecordVerdict(
                verdict=row["verdict"],
                step=row["step"] or "",
                reason=row["reason"] or "",
                evidence=row["evidence"] or "",
                record_json=orjson.dumps(record.row()).decode(),
            )
            for row, record in zip(
                segment.select(["verdict", "step", "reason", "evidence"]).to_pylist(), records_of(segment), strict=True
            )
        ]
        return pb.PreviewRecipeResponse(verdicts=verdicts, recipe_digest=recipe.digest())


def _described(one: PromptFormat) -> pb.PromptFormat:
    declared = one.declaration if isinstance(one, DeclaredFormat) else None
    return pb.PromptFormat(
        name=one.name,
        source=declared.source if declared else "",
        roles=[f"{role}: {what}" for role, what in one.roles().items()],
        stop=one.stop,
        default_system=one.default_system or "",
        guard=", ".join(declared.guard) if declared else "",
    )


def _json(text: str, param: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Invalid(f'"{param}" is not JSON: {error}', param=param) from error


def _messages(given: Any, where: str) -> list[Message]:
    if not isinstance(given, list):
        raise Invalid(f'"{where}" is {type(given).__name__}, not a list of messages', param=where)
    return [Message.parse(message, where=f"{where}[{index}]") for index, message in enumerate(given)]


def _record(seq: int, text: str) -> Record:
    where = f"records_json[{seq}]"
    given = _json(text, where)
    if not isinstance(given, dict):
        raise Invalid(f'"{where}" is {type(given).__name__}, not an object', param=where)
    return Record(seq=seq, messages=tuple(_messages(given.get("messages"), f"{where}.messages")))
