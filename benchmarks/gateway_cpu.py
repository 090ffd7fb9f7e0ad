"""CPU of the gateway a request: the whole way (key, rendering, budget, call, repair, accounting) against a stub of TGI.

    python benchmarks/gateway_cpu.py [--requests 400] [--streams 100]

Prints ``gateway_cpu_ms_request`` (a reply of 16 tokens that does not stream) and ``gateway_cpu_ms_stream`` (a stream
of 128 tokens, one event each). The gateway is the real process, with its database; serving is a servicer that tells
one model, whose tokenizer has one token a byte. CPU is user and system time of the gateway's process alone.

The baseline is measured in the same run: a plain FastAPI + httpx proxy that passes the body on to the same stub and
the reply back, and does nothing else. ``ratio`` is value / baseline: below 1 the gateway costs less.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import orjson
import psutil
import tokenizers

from shortstack.core.digest import sha256_hex
from shortstack.messages.v1 import serving_pb2 as messages
from shortstack.serving.v1 import serving_pb2, serving_pb2_grpc
from shortstack.storage.blobs import FileBlobStore

HERE: Final = Path(__file__).resolve().parent
MODEL: Final = "stub-model"
START_S: Final = 60.0
IN_FLIGHT: Final = 16
WARM_UP: Final = 32

QUESTION: Final = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France, and why is it known for its light? " * 4},
    ],
    "temperature": 0.7,
    "top_p": 1.0,
}

PEER: Final = """
import os, sys
import httpx, uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

app, client = FastAPI(), httpx.AsyncClient(timeout=60)
upstream = sys.argv[1] + "/generate_stream"

@app.post("/v1/chat/completions")
async def chat(request: Request):
    body = await request.json()
    sent = {"inputs": body["messages"][-1]["content"], "parameters": {"max_new_tokens": body["max_tokens"]}}
    if not body.get("stream"):
        return Response((await client.post(upstream, json=sent)).content)

    async def pieces():
        async with client.stream("POST", upstream, json=sent) as reply:
            async for piece in reply.aiter_bytes():
                yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", loop="uvloop", http="httptools")
"""


class OneModel(serving_pb2_grpc.ServingServiceServicer):
    """Tells one served model."""

    def __init__(self, model: messages.ModelSnapshot) -> None:
        self._model = model

    def WatchModels(self, request: Any, context: grpc.ServicerContext) -> Iterator[serving_pb2.WatchModelsResponse]:
        """The model, then nothing for as long as the watch lasts."""
        yield serving_pb2.WatchModelsResponse(model=self._model)
        yield serving_pb2.WatchModelsResponse(synced=True)
        while context.is_active():
            time.sleep(0.2)

    def DeployModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Not asked for here."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "a benchmark's servicer only tells its model")

    ListModels = SetTraffic = WithdrawModel = DeployModel


def write_tokenizer(blobs: FileBlobStore) -> tuple[str, str]:
    """Object keys of a tokenizer with one token a byte, and of its configuration."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    config = orjson.dumps({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    keys = []
    for data in (tokenizer.to_str().encode(), config):
        keys.append(f"tokenizers/{sha256_hex(data)}")
        blobs.put(keys[-1], data)
    return keys[0], keys[1]


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent / "services"), **environment}
    started = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)
        if started.stdout is not None:
            started.stdout.close()


@contextmanager
def serving(model: messages.ModelSnapshot) -> Iterator[str]:
    """Address of a serving service with one model."""
    server = grpc.server(ThreadPoolExecutor(4))
    serving_pb2_grpc.add_ServingServiceServicer_to_server(OneModel(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(1).wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


async def ask(session: aiohttp.ClientSession, url: str, key: str, body: bytes) -> int:
    """Sends one request; the bytes of its reply."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as reply:
        read = await reply.read()
        if reply.status != 200:
            raise SystemExit(f"{url} answered {reply.status}: {read[:300]!r}")
        return len(read)


async def load(url: str, key: str, body: bytes, count: int) -> None:
    """``count`` requests, 16 in flight."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:
        await asyncio.gather(*(ask(session, url, key, body) for _ in range(count)))


async def until_ready(url: str) -> None:
    """Waits until a server answers, whatever it says but 503."""
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            try:
                async with session.get(f"{url}/readyz") as reply:
                    if reply.status != 503:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
    raise SystemExit(f"{url} was not ready within {START_S:g} s")


def cpu_ms(pid: int, url: str, key: str, body: dict[str, Any], count: int) -> float:
    """CPU milliseconds of process ``pid`` for one request: the least of three rounds, as others use the machine too."""
    asyncio.run(load(url, key, orjson.dumps(body), WARM_UP))
    watched, rounds = psutil.Process(pid), []
    for _ in range(3):
        before = watched.cpu_times()
        asyncio.run(load(url, key, orjson.dumps(body), count))
        after = watched.cpu_times()
        rounds.append((after.user + after.system - before.user - before.system) * 1000 / count)
    return min(rounds)


def report(name: str, value: float, baseline: float) -> None:
    """One figure as a line of JSON."""
    figure = {"name": name, "value": round(value, 3), "unit": "ms", "baseline": round(baseline, 3)}
    print(orjson.dumps(figure | {"ratio": round(value / baseline, 3)}).decode(), flush=True)


def main(requests: int, streams: int) -> None:
    """Measures both."""
    stub = [sys.executable, str(HERE / "stub_tgi.py"), "--tokens", "128", "--pause", "0.001"]
    with tempfile.TemporaryDirectory() as folder, process(stub) as upstream:
        assert upstream.stdout is not None
        stub_url = f"http://127.0.0.1:{int(upstream.stdout.readline())}"
        blobs = FileBlobStore(Path(folder) / "blobs")
        keys = write_tokenizer(blobs)
        endpoint = messages.Endpoint(
            url=stub_url,
            prompt_format="chatml",
            tokenizer=keys[0],
            tokenizer_config=keys[1],
            max_input_tokens=3000,
            max_total_tokens=4096,
        )
        model = messages.ModelSnapshot(name=MODEL, state=messages.MODEL_STATE_SERVED, endpoint=endpoint)
        port, peer_port = free_port(), free_port()
        peer = [sys.executable, "-c", PEER, stub_url, str(peer_port)]
        gateway = [sys.executable, "-m", "shortstack.gateway.main"]
        with (
            serving(model) as address,
            process(
                gateway,
                SHORTSTACK_VAR=folder,
                SHORTSTACK_STORAGE_URL=f"file://{folder}/blobs",
                SHORTSTACK_HTTP_PORT=str(port),
                SHORTSTACK_SERVING_ADDRESS=address,
            ) as ours,
            process(peer) as theirs,
        ):
            url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
            asyncio.run(until_ready(url))
            asyncio.run(until_ready(peer_url))
            key = (Path(folder) / "gateway" / "key").read_text().strip()
            short, long = {**QUESTION, "max_tokens": 16}, {**QUESTION, "max_tokens": 128, "stream": True}
            request = cpu_ms(ours.pid, url, key, short, requests)
            report("gateway_cpu_ms_request", request, cpu_ms(theirs.pid, peer_url, key, short, requests))
            stream = cpu_ms(ours.pid, url, key, long, streams)
            report("gateway_cpu_ms_stream", stream, cpu_ms(theirs.pid, peer_url, key, long, streams))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="CPU of the gateway a request and a stream")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--streams", type=int, default=100)
    given = parser.parse_args()
    main(given.requests, given.streams)
