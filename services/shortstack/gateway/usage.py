"""Tokens used, by day, key and model: counted in memory at once, written to the database every few seconds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import Connection, Engine, and_, insert, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from shortstack.core.metrics import Metrics
from shortstack.gateway.chat.answer import Usage
from shortstack.gateway.database import USAGE
from shortstack.gateway.keys.secret import Principal

__all__ = ["UsageLedger"]


@dataclass(slots=True)
class _Sum:
    owner: str
    requests: int = 0
    prompt: int = 0
    completion: int = 0


class UsageLedger:
    """Adds up what answers cost, those too that their client left.

    Args:
        engine: the database.
        metrics: counts the same, by model.
        now: wall time.
        log: for a database that is away; the sums wait in memory meanwhile.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, now: Callable[[], datetime], log: structlog.stdlib.BoundLogger
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._now = now
        self._log = log
        self._sums: dict[tuple[str, str, str], _Sum] = {}
        self._writing = threading.Lock()

    def add(self, principal: Principal, model: str, usage: Usage) -> None:
        """Counts one answer. Called in the event loop alone."""
        key = (self._now().date().isoformat(), principal.key_id, model)
        total = self._sums.get(key)
        if total is None:
            total = self._sums[key] = _Sum(principal.owner)
        total.requests += 1
        total.prompt += usage.prompt
        total.completion += usage.completion
        self._metrics.chat_tokens.labels(model, "prompt").inc(usage.prompt)
        self._metrics.chat_tokens.labels(model, "completion").inc(usage.completion)

    async def run(self, every_s: float) -> None:
        """Writes every ``every_s`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.flush()

    async def flush(self) -> None:
        """Writes what is not written yet; what cannot be written is kept for the next time."""
        taken, self._sums = self._sums, {}
        if not taken:
            return
        try:
            await asyncio.to_thread(self._write, taken)
        except SQLAlchemyError as error:
            self._log.warning("usage not written; it is kept and tried again", error=type(error).__name__)
            for key, total in taken.items():
                kept = self._sums.setdefault(key, _Sum(total.owner))
                kept.requests += total.requests
                kept.prompt += total.prompt
                kept.completion += total.completion

    def _write(self, sums: dict[tuple[str, str, str], _Sum]) -> None:
        with self._writing, self._engine.begin() as connection:
            for key, total in sums.items():
                if not _add_to(connection, key, total):
                    _insert_or_add(connection, key, total)


def _add_to(connection: Connection, key: tuple[str, str, str], total: _Sum) -> bool:
    columns = USAGE.c
    changed = connection.execute(
        update(USAGE)
        .where(and_(columns.day == key[0], columns.key_id == key[1], columns.model == key[2]))
        .values(
            requests=columns.requests + total.requests,
            prompt_tokens=columns.prompt_tokens + total.prompt,
            completion_tokens=columns.completion_tokens + total.completion,
        )
    )
    return changed.rowcount > 0


def _insert_or_add(connection: Connection, key: tuple[str, str, str], total: _Sum) -> None:
    row = {
        "day": key[0],
        "key_id": key[1],
        "model": key[2],
        "owner": total.owner,
        "requests": total.requests,
        "prompt_tokens": total.prompt,
        "completion_tokens": total.completion,
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(USAGE).values(row))
    except IntegrityError:
        # Another replica was first with this row.
        _add_to(connection, key, total)
