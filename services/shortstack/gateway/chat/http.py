"""``/v1/chat/completions``, ``/v1/completions``, and IHOP's ``/chat``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from shortstack.gateway.chat.answer import Answer
from shortstack.gateway.chat.reply import AnswerStream, collect
from shortstack.gateway.chat.requests import AnswerRequest, json_object, read_chat, read_completion, read_ihop
from shortstack.gateway.chat.service import ChatService, Started
from shortstack.gateway.chat.shapes import ChatShape, CompletionShape, Shape
from shortstack.gateway.disconnect import ClientGone, WhileConnected
from shortstack.gateway.errors import CLIENT_GONE
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.keys.secret import Principal
from shortstack.gateway.middleware import request_id
from shortstack.gateway.usage import UsageLedger

__all__ = ["chat_router"]


class _Chat:
    def __init__(self, service: ChatService, auth: Authenticator, usage: UsageLedger, messages_max: int) -> None:
        self._service = service
        self._auth = auth
        self._usage = usage
        self._messages_max = messages_max

    async def chat_completions(self, request: Request) -> Response:
        principal = await self._auth.principal(request, "chat")
        wanted = read_chat(json_object(await request.body()), self._messages_max)
        return await self._answer(request, principal, wanted, ChatShape)

    async def completions(self, request: Request) -> Response:
        principal = await self._auth.principal(request, "chat")
        wanted = read_completion(json_object(await request.body()))
        return await self._answer(request, principal, wanted, CompletionShape)

    async def ihop(self, request: Request) -> Response:
        principal = await self._auth.principal(request, "chat")
        wanted = read_ihop(json_object(await request.body()), self._messages_max)
        try:
            async with WhileConnected(request.receive):
                started = await self._start(request, principal, wanted)
                text, _ = await self._whole(principal, started)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        return Response(text, media_type="text/plain; charset=utf-8")

    async def _answer(
        self, request: Request, principal: Principal, wanted: AnswerRequest, shape: type[ChatShape | CompletionShape]
    ) -> Response:
        try:
            async with WhileConnected(request.receive):
                started = await self._start(request, principal, wanted)
                written: Shape = shape(started.model.name, int(time.time()), include_usage=wanted.include_usage)
                if not wanted.stream:
                    text, logprobs = await self._whole(principal, started)
                    answer = started.answer
                    body = written.whole(text, logprobs, answer.finish_reason, answer.usage)
                    return Response(body, media_type="application/json")
        except ClientGone:
            return Response(status_code=CLIENT_GONE)

        def count(answer: Answer) -> None:
            self._usage.add(principal, started.model.name, answer.usage)

        return AnswerStream(started.answer, written, wanted.include_usage, count)

    async def _start(self, request: Request, principal: Principal, wanted: AnswerRequest) -> Started:
        started = await self._service.start(wanted, principal.owner, request_id(request.scope))
        request.scope["shortstack.model"] = started.model.name
        return started

    async def _whole(self, principal: Principal, started: Started) -> tuple[str, list[dict[str, object]] | None]:
        try:
            return await collect(started.answer)
        finally:
            self._usage.add(principal, started.model.name, started.answer.usage)


def chat_router(service: ChatService, auth: Authenticator, usage: UsageLedger, messages_max: int) -> APIRouter:
    """The routes that answer chats."""
    chat = _Chat(service, auth, usage, messages_max)
    router = APIRouter()
    router.add_api_route("/v1/chat/completions", chat.chat_completions, methods=["POST"])
    router.add_api_route("/v1/completions", chat.completions, methods=["POST"])
    router.add_api_route("/chat", chat.ihop, methods=["POST"])
    return router
