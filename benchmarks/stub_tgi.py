"""A stub of TGI's ``/generate_stream``: for the gateway's tests, which script it, and for its benchmark.

Plain asyncio streams, so that it costs little beside what is measured. Shapes: TGI 3.3.7 as recorded.

    python benchmarks/stub_tgi.py --port 8090 --tokens 128 --pause 0.002
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEEP_ALIVE", "Reply", "StubTgi", "error_event", "token_events"]

KEEP_ALIVE = b":\n\n"
"""The comment that TGI sends after 15 s of silence."""

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)

Step = bytes | float | None
"""What a reply does: send bytes, wait seconds, or (None) drop the connection."""


@dataclass(slots=True)
class Reply:
    """One scripted reply.

    Attributes:
        steps: in order.
        status: other than 200, the steps' bytes are a plain body with this status.
    """

    steps: Sequence[Step]
    status: int = 200


@dataclass(slots=True)
class StubTgi:
    """Listens, records requests, answers by script.

    Attributes:
        script: request body → reply.
        requests: the bodies so far.
        left: how many replies their client left before the end.
        connections: how many were accepted.
    """

    script: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int = 0) -> None:
        """Listens on ``port`` of the loopback, or on a free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listens no more and drops who is connected."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while (body := await _read_request(reader)) is not None:
                self.requests.append(body)
                if not await self._reply(reader, writer, self.script(body)):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        if reply.status != 200:
            text = b"".join(step for step in reply.steps if isinstance(step, bytes))
            head = f"HTTP/1.1 {reply.status} X\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\n\r\n"
            writer.write(head.encode() + text)
            await writer.drain()
            return True
        writer.write(_STREAM_HEAD)
        for step in reply.steps:
            if step is None:
                return False
            if isinstance(step, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(step), step))
                await writer.drain()
            else:
                await asyncio.sleep(step)
            if reader.at_eof():
                self.left += 1
                return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _read_request(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    body: dict[str, Any] = json.loads(await reader.readexactly(length))
    return body


def token_events(
    texts: Sequence[str],
    *,
    finish: str = "eos_token",
    prompt_tokens: int = 5,
    special: Sequence[str] = (),
    generated_text: str | None = None,
    top: bool = False,
) -> list[bytes]:
    """One event a text, the last with ``generated_text`` and ``details``. Those in ``special`` are special tokens."""
    events = []
    for index, text in enumerate(texts, 1):
        last = index == len(texts)
        whole = "".join(one for one in texts if one not in special) if generated_text is None else generated_text
        value: dict[str, Any] = {
            "index": index,
            "token": {"id": 100 + index, "text": text, "logprob": -0.25 * index, "special": text in special},
            "generated_text": whole if last else None,
            "details": None,
        }
        if top:
            value["top_tokens"] = [value["token"], {"id": 7, "text": " other", "logprob": -3.5, "special": False}]
        if last:
            value["details"] = {
                "finish_reason": finish,
                "generated_tokens": index,
                "seed": None,
                "input_length": prompt_tokens,
            }
        events.append(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")
    return events


def error_event(kind: str, message: str) -> bytes:
    """TGI's error in a stream whose status was 200."""
    return b"data: " + json.dumps({"error": message, "error_type": kind}).encode() + b"\n\n"


def _paced(events: Sequence[bytes], pause: float) -> Iterator[Step]:
    for event in events:
        if pause:
            yield pause
        yield event


async def _main(port: int, tokens: int, pause: float) -> None:
    # Tokens that differ: proxies that watch for repetition must see none.
    def script(body: dict[str, Any]) -> Reply:
        count = min(tokens, body["parameters"].get("max_new_tokens", tokens))
        events = token_events([f" w{index}" for index in range(count)], finish="length")
        return Reply(list(_paced(events, pause)))

    stub = StubTgi(script)
    await stub.start(port)
    sys.stdout.write(f"{stub.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A stub of TGI's /generate_stream")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between tokens")
    given = parser.parse_args()
    asyncio.run(_main(given.port, given.tokens, given.pause))
