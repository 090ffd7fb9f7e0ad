"""The first records of a source as they would be read; nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import orjson
import zstandard

from shortstack.core.errors import Invalid
from shortstack.declarations.publication import PointerMessage, WholeMessage, parse_publication
from shortstack.ingestion.compiling.compile import CompileJob
from shortstack.ingestion.compiling.process import CompileOrder, RawBatch, SourceDone, SourceOpened, compiling
from shortstack.ingestion.publishing.wishes import WishChecker
from shortstack.ingestion.reading.items import Limits
from shortstack.ingestion.sources.pinning import Pins
from shortstack.ingestion.sources.policy import SourcePolicy, source_name
from shortstack.ingestion.sources.uploads import json_lines
from shortstack.records.schema import read_table, records_of

__all__ = ["Preview", "Previewer"]


@dataclass(slots=True)
class Preview:
    """What the first of a publication's sources looks like.

    Attributes:
        records: rows of record/1, as JSON.
        malformed: file, place and reason of items that would be rejected.
    """

    file_format: str = ""
    family: str = ""
    records: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


class Previewer:
    """Reads the beginning of sources, in a child of their own like every reading."""

    def __init__(
        self, checker: WishChecker, policy: SourcePolicy, pins: Pins, limits: Limits, *, memory_bytes: int
    ) -> None:
        self._checker, self._policy, self._pins = checker, policy, pins
        self._limits, self._memory_bytes = limits, memory_bytes

    def preview(self, value: bytes, owner: str, limit: int) -> Preview:
        """The first ``limit`` records of the first source of a publication message.

        Raises:
            Poison: the message is wrong, names what it may not, or its source cannot be read.
        """
        message = parse_publication(value)
        if not isinstance(message, PointerMessage | WholeMessage):
            raise Invalid("only a source or records can be previewed", remedy='Send "source" or "records".')
        file_format = message.source.file_format if isinstance(message, PointerMessage) else "jsonl"
        wish = self._checker.check(message, owner, file_format=file_format)
        with self._pins.scratch() as scratch:
            path = scratch / "source"
            if isinstance(message, WholeMessage):
                path.write_bytes(json_lines(message.records))
                name = "records.jsonl"
            else:
                address = self._policy.resolve(message.source.addresses[0], owner)[0]
                self._pins.copy(address, path)
                name = source_name(address.uri)
            job = CompileJob(
                name=name,
                file_format=wish.file_format,
                family=wish.family,
                columns=wish.columns,
                prompt_format=wish.prompt_format,
                prompt_formats=self._checker.prompt_formats,
                license=wish.license,
                limits=self._limits,
            )
            return self._read(CompileOrder(path, scratch / "rejected", job), limit)

    def _read(self, order: CompileOrder, limit: int) -> Preview:
        preview = Preview()
        with compiling([order], memory_bytes=self._memory_bytes) as events:
            for event in events:
                match event:
                    case SourceOpened(_, opened):
                        preview.file_format, preview.family = opened.file_format, opened.family
                    case RawBatch():
                        for record in records_of(read_table(event.data)):
                            preview.records.append(orjson.dumps(record.row()).decode())
                        if len(preview.records) >= limit:
                            break
                    case SourceDone():
                        preview.malformed = list(event.samples)
        preview.malformed = preview.malformed or _malformed_so_far(order.rejected, limit)
        del preview.records[limit:], preview.malformed[limit:]
        return preview


def _malformed_so_far(path: Path, limit: int) -> list[str]:
    """What stands in the child's file of malformed items; it may break off where the child was stopped."""
    if not path.exists():
        return []
    lines: list[str] = []
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as reader:
        text = reader.read(1 << 20).decode("utf-8", "replace")
    for line in text.split("\n")[:-1][:limit]:
        entry = orjson.loads(line)
        lines.append(f"{entry['file']} {entry['place']}: {entry['reason']}")
    return lines
