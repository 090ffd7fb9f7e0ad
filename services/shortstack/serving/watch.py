"""A look at the servers, in a thread of its own: which bases answer, where models answer now, what nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from shortstack.core.errors import Poison, Transient
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1.training_pb2 import Export
from shortstack.serving.rollout import Held, NotReady, Rollout

__all__ = ["Finding", "Look", "Watch"]


@dataclass(frozen=True, slots=True)
class Look:
    """What to look at; copies, so that the controller may go on.

    Attributes:
        bases: name, folder and last URL of each base model.
        served: name and holding of each fine-tuned model that takes traffic.
        idle: name and export of each model that no server needs to hold.
        coming: models that a rollout is bringing, so that their servers stay.
    """

    bases: Sequence[tuple[str, Path, str]]
    served: Sequence[tuple[str, Held]]
    idle: Sequence[tuple[str, Export]]
    coming: Sequence[Held]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one model.

    Attributes:
        endpoint: of a base that answers.
        url: where a fine-tuned model answers.
        trouble: why it does not; a base loses its route if that is found again and again.
        behind: why it is still a server of an earlier template that answers.
    """

    name: str
    endpoint: sv.Endpoint | None = None
    url: str = ""
    trouble: str = ""
    behind: str = ""


class Watch:
    """Looks, one look at a time. Used from one thread; the looking itself is done in another.

    Args:
        busy: names models that are being rolled out at this moment, which are left alone.
    """

    def __init__(self, rollout: Rollout, log: structlog.stdlib.BoundLogger, busy: Callable[[], str]) -> None:
        self._rollout, self._log, self._busy = rollout, log, busy
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="watch")
        self._future: Future[list[Finding]] | None = None
        self._logged: dict[str, str] = {}

    def start(self, look: Look) -> None:
        """Begins a look, unless one is under way."""
        if self._future is None:
            self._future = self._pool.submit(self._look, look)

    def found(self) -> list[Finding]:
        """What a look found that has ended since the last call; empty if none has.

        Raises:
            Fatal: the servers cannot be looked after here at all.
        """
        if self._future is None or not self._future.done():
            return []
        ended, self._future = self._future, None
        return ended.result()

    def close(self) -> None:
        """Begins no other look; the one under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, look: Look) -> list[Finding]:
        findings = [*self._bases(look.bases), *self._served(look.served)]
        for name, export in look.idle:
            if self._busy() != name:
                self._quietly(name, partial(self._rollout.remove, export))
        held = [*(one for _, one in look.served), *look.coming]
        self._quietly("servers", partial(self._rollout.keep, held))
        return findings

    def _bases(self, bases: Iterable[tuple[str, Path, str]]) -> Iterable[Finding]:
        for name, folder, url in bases:
            try:
                endpoint = self._rollout.base(name, folder, url)
                yield Finding(name, endpoint=endpoint, behind=self._behind(name, endpoint.url))
            except (NotReady, Poison) as error:
                yield Finding(name, trouble=str(error))
            except Transient as error:  # nothing is known, so its route stays as it is
                self._say(name, str(error))

    def _served(self, served: Iterable[tuple[str, Held]]) -> Iterable[Finding]:
        for name, held in served:
            try:
                url = self._rollout.reload(held.export, held.url)
                yield Finding(name, url=url, behind=self._behind(name, url))
            except (Transient, Poison) as error:
                self._say(name, str(error))
                yield Finding(name, trouble=str(error))

    def _behind(self, name: str, url: str) -> str:
        """Why a model that answers is behind; logged when it changes."""
        behind = self._rollout.behind(url)
        if behind:
            self._say(name, behind)
        else:
            self._logged.pop(name, None)
        return behind

    def _quietly(self, name: str, act: Callable[[], None]) -> None:
        """Does what the next look tries again if it fails."""
        try:
            act()
        except (Transient, Poison) as error:
            self._say(name, str(error))

    def _say(self, name: str, words: str) -> None:
        if self._logged.get(name) != words:
            self._logged[name] = words
            self._log.warning("server and models differ", model=name, error=words)
