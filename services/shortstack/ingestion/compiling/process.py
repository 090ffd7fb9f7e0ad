"""The parent's side of the compiling child: starts it, reads its frames, and turns its death into a reason."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

import orjson

from shortstack.ingestion.compiling.compile import CompileJob, Done, Opened
from shortstack.ingestion.compiling.frames import Frame, read_frames
from shortstack.ingestion.reading.items import Unreadable

__all__ = ["CompileOrder", "Compiled", "RawBatch", "SourceDone", "SourceOpened", "compiling"]

_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LANG", "TZ", "TMPDIR")
"""What the child is told of its surroundings: no credential is among it."""


@dataclass(frozen=True, slots=True)
class CompileOrder:
    """One source to compile: where it is, and where its malformed items go."""

    path: Path
    rejected: Path
    job: CompileJob


@dataclass(frozen=True, slots=True)
class SourceOpened:
    """What source ``source`` turned out to be; all sources are opened before the first batch."""

    source: int
    opened: Opened


@dataclass(frozen=True, slots=True)
class RawBatch:
    """A batch as it goes to ``records.raw``."""

    source: int
    first: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SourceDone:
    """The end of a source; ``samples`` are its first malformed items."""

    source: int
    done: Done
    samples: Sequence[str]


Compiled = SourceOpened | RawBatch | SourceDone


@contextmanager
def compiling(
    orders: Sequence[CompileOrder], *, memory_bytes: int, compile_them: bool = True
) -> Iterator[Iterator[Compiled]]:
    """A child at work on ``orders``; gives what it yields, and ends it when the block is left.

    Args:
        orders: the sources, by their ordinals.
        memory_bytes: address space the child may have.
        compile_them: False to be told only what the sources are.

    Raises, while iterating:
        Unreadable: a source cannot be read, or the child died over it.
    """
    # Its last words go to a file: a full pipe that nobody reads would stop it.
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            [sys.executable, "-m", "shortstack.ingestion.compiling.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        with child:
            try:
                yield _Child(child, words, orders).events(memory_bytes, compile_them)
            finally:
                child.kill()


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    words: IO[bytes]
    orders: Sequence[CompileOrder]

    def events(self, memory_bytes: int, compile_them: bool) -> Iterator[Compiled]:
        self._tell(memory_bytes, compile_them)
        opened = ended = 0
        try:
            for frame in read_frames(cast(BinaryIO, self.process.stdout)):
                event = _event(frame, self.orders)
                opened += isinstance(event, SourceOpened)
                ended += isinstance(event, SourceDone)
                yield event
        except ValueError as error:
            raise self._died(ended, f"it sent {error}") from error
        wanted = len(self.orders)
        if opened < wanted or (compile_them and ended < wanted):
            raise self._died(ended if opened == wanted else opened)

    def _tell(self, memory_bytes: int, compile_them: bool) -> None:
        sources = [
            {"path": str(o.path), "rejected": str(o.rejected), "job": orjson.Fragment(o.job.to_json())}
            for o in self.orders
        ]
        order = orjson.dumps({"memory_bytes": memory_bytes, "sources": sources, "compile": compile_them})
        pipe = cast(BinaryIO, self.process.stdin)
        with suppress(BrokenPipeError):  # it is dead already; what it leaves behind says why
            pipe.write(order)
            pipe.close()

    def _died(self, at: int, why: str = "") -> Unreadable:
        """The child ended without a word: killed for memory, or its reader crashed."""
        self.process.kill()
        status = self.process.wait()
        self.words.seek(0)
        words = self.words.read()[-2000:].decode(errors="replace").strip().splitlines()
        said = why or (words[-1] if words else f"it ended with status {status}")
        return Unreadable(
            f"the process that read it died: {said[:300]}",
            code="reader_died",
            where=self.orders[min(at, len(self.orders) - 1)].job.name,
            remedy="Publish the file in another format, such as JSONL, or in smaller files.",
        )


def _event(frame: Frame, orders: Sequence[CompileOrder]) -> Compiled:
    head: dict[str, Any] = dict(frame.head)
    kind, source = head.pop("kind"), head.pop("source")
    match kind:
        case "opened":
            return SourceOpened(source, Opened(**head))
        case "batch":
            return RawBatch(source, head["first"], head["count"], frame.payload)
        case "done":
            samples = head.pop("samples")
            return SourceDone(source, Done(**head), samples)
        case "error":
            name = orders[source].job.name
            raise Unreadable(head["what"], code=head["code"], where=head["where"] or name, remedy=head["remedy"])
    raise ValueError(f'a frame of kind "{kind}"')
