"""Chats in the background of a test, at a steady rate, while something breaks; every one counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Chats", "chats_of"]


@dataclass(slots=True)
class Chats:
    """What chat clients saw.

    Attributes:
        answers: in the order of their arrival.
        failures: what was said of each chat that failed.
    """

    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def chats_of(
    ask: Callable[[], str],
    *,
    failing: tuple[type[Exception], ...],
    a_second: float,
    clients: int,
    last_s: float,
) -> Iterator[Chats]:
    """Asks until the end of the block, and gives what was heard so far.

    Args:
        ask: has one chat; called by several threads at once.
        failing: what it raises when a chat fails; anything else is a fault of the test, and pytest fails it.
        a_second: chats a second, of all clients together; a client whose chat takes longer is late for its next.
        clients: threads, one chat at a time each.
        last_s: seconds that a chat which is under way at the end may still take.

    Raises:
        AssertionError: a client's last chat did not end.
    """
    chats, ended = Chats(), threading.Event()

    def chat(offset: float) -> None:
        due = time.monotonic() + offset
        while not ended.wait(max(0.0, due - time.monotonic())):
            due += clients / a_second
            try:
                chats.answers.append(ask())
            except failing as error:
                chats.failures.append(repr(error))

    threads = [threading.Thread(target=chat, args=(n / a_second,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield chats
    finally:
        ended.set()
        for thread in threads:
            thread.join(last_s)
    assert not any(thread.is_alive() for thread in threads), f"a chat still runs {last_s:.0f} s after the end"
