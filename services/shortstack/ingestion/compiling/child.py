"""The process that reads untrusted files: bounded memory, no network, no secrets, nothing but files and a pipe.

Reads one JSON object from standard input, {"memory_bytes", "sources": [{"path", "rejected", "job"}], "limit"}, and
writes frames to standard output: first what every source turned out to be, then batches, then what each came to.
Run as ``python -m shortstack.ingestion.compiling.child``.
"""

from __future__ import annotations

import csv
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
import zstandard

from shortstack.ingestion.compiling.compile import CompileJob, Cut, Done, Opened, compile_source, inspect_source
from shortstack.ingestion.compiling.frames import write_frame
from shortstack.ingestion.reading.items import Malformed, Unreadable
from shortstack.records.schema import write_table

__all__ = ["main"]

_SAMPLES: Final = 20
_SAMPLE_CHARACTERS: Final = 500


def main() -> int:
    """Does the work that standard input asks for."""
    order = orjson.loads(sys.stdin.buffer.read())
    limit = order["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    csv.field_size_limit(max((s["job"]["limits"]["item_bytes"] for s in order["sources"]), default=0))
    out = sys.stdout.buffer
    sources = [
        (Path(s["path"]), Path(s["rejected"]), CompileJob.from_json(orjson.dumps(s["job"]))) for s in order["sources"]
    ]
    at = 0
    try:
        opened = []
        for at, (path, _, job) in enumerate(sources):
            opened.append(inspect_source(path, job))
            write_frame(out, {"kind": "opened", "source": at, **asdict(opened[at])})
        out.flush()
        if order["compile"]:
            for at, (path, rejected, job) in enumerate(sources):
                _compile(out, at, path, rejected, job.settled(opened[at]))
    except Unreadable as error:
        _fail(out, at, error.code, error)
    except MemoryError:
        # Nothing big is held any more once the frames above are unwound.
        _fail(out, at, "source_too_large", Unreadable(
            f"reading it takes more than {limit // 1024**2} MiB of memory",
            remedy="Publish it as JSONL or in smaller files.",
        ))  # fmt: skip
    out.flush()
    return 0


def _fail(out: BinaryIO, source: int, code: str, error: Unreadable) -> None:
    head = {"kind": "error", "source": source, "code": code}
    write_frame(out, head | {"what": error.what, "where": error.where, "remedy": error.remedy})


def _compile(out: BinaryIO, source: int, path: Path, rejected: Path, job: CompileJob) -> None:
    """One source: its batches as frames, its malformed items into a file, then its sums."""
    samples: list[str] = []
    done: Done | None = None
    with rejected.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as bin_:
        for event in compile_source(path, job):
            match event:
                case Cut(first, count, table):
                    # A preview ends this process after a batch, and shows what stands in the file by then.
                    bin_.flush()
                    raw.flush()
                    head = {"kind": "batch", "source": source, "first": first, "count": count}
                    write_frame(out, head, write_table(table))
                    out.flush()
                case Malformed():
                    bin_.write(_line(job, event))
                    if len(samples) < _SAMPLES:
                        samples.append(f"{job.name} {event.place}: {event.reason}"[:_SAMPLE_CHARACTERS])
                case Opened():
                    pass
                case Done():
                    done = event
    assert done is not None, "compile_source ends with Done or raises"
    write_frame(out, {"kind": "done", "source": source, "samples": samples, **asdict(done)})
    out.flush()


def _line(job: CompileJob, malformed: Malformed) -> bytes:
    entry: dict[str, Any] = {"file": job.name, **asdict(malformed)}
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    sys.exit(main())
