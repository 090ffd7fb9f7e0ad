"""From a request to an answer under way: route, render, budget, call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shortstack.core.metrics import Metrics
from shortstack.gateway.chat.answer import Answer
from shortstack.gateway.chat.parameters import answer_budget, stop_strings, tgi_parameters
from shortstack.gateway.chat.prompter import Prompters
from shortstack.gateway.chat.requests import AnswerRequest
from shortstack.gateway.chat.upstream import Upstream
from shortstack.gateway.routing.table import RouteTable, ServedModel

__all__ = ["ChatService", "Started"]


@dataclass(frozen=True, slots=True)
class Started:
    """An answer whose first token is there, and who gives it."""

    answer: Answer
    model: ServedModel


class ChatService:
    """Starts answers.

    Args:
        routes: the routes as they stand now.
        prompters: renders and counts.
        upstream: calls model servers.
        metrics: for the time to the first token.
    """

    def __init__(
        self, routes: Callable[[], RouteTable], prompters: Prompters, upstream: Upstream, metrics: Metrics
    ) -> None:
        self._routes = routes
        self._prompters = prompters
        self._upstream = upstream
        self._metrics = metrics

    async def start(self, request: AnswerRequest, owner: str, draw: str) -> Started:
        """Begins an answer; returns when its first token is there.

        Args:
            request: what is wanted.
            owner: who asks: sees base models and their own.
            draw: chooses among an alias' models, unless the request names its user.

        Raises:
            ApiError: no such model, too long, refused, overloaded, away.
        """
        began = time.perf_counter()
        model = self._routes().resolve(request.model, owner, request.sticky or draw)
        if request.prompt is None:
            prompt = await self._prompters.chat(model, request.messages)
        else:
            prompt = await self._prompters.text(model, request.prompt)
        budget = answer_budget(prompt.tokens, request, model)
        stream = await self._upstream.generate(model.url, prompt.text, tgi_parameters(request, model, budget))
        self._metrics.first_token_seconds.labels(model.name).observe(time.perf_counter() - began)
        answer = Answer(
            stream,
            prompt_tokens=prompt.tokens,
            stops=stop_strings(request, model),
            max_tokens=budget,
            logprobs=request.logprobs,
        )
        return Started(answer, model)
