"""What a client sees when something breaks: OpenAI's error object with a kind, never a bare 500."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from benchmarks.stub_tgi import Reply, token_events
from starlette import formparsers
from tests.integration.gateway.conftest import Stack
from tests.integration.gateway.fakes import BASE
from tests.polling import until

from shortstack.core.digest import sha256_hex

QUESTION = [{"role": "user", "content": "Hi"}]


def test_a_failure_that_nobody_foresaw_is_an_error_object_too(stack: Stack) -> None:
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("drop table files")
    reply = stack.get("/v1/files")
    assert reply.status_code == 500
    error = reply.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal_error", None)
    assert "files" not in error["message"]
    # The line is written once the answer has gone out.
    until(lambda: reply.headers["x-request-id"] in stack.logs.getvalue(), "the request's line in the log")


@pytest.mark.parametrize("junk", [b"data: 5\n\n", b'data: {"token": null}\n\n', b"data: {]\n\n"])
def test_an_event_that_is_no_token_is_a_broken_answer(stack: Stack, junk: bytes) -> None:
    stack.model_server.replies.append(Reply([junk]))
    with pytest.raises(openai.InternalServerError) as caught:
        stack.client().chat.completions.create(model=BASE, messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_broken")
    stack.model_server.replies.append(Reply([*token_events(["Hello", " there"])[:1], 0.05, junk]))
    with pytest.raises(openai.APIError, match="ended the answer before it was whole"):
        list(stack.client().chat.completions.create(model=BASE, messages=QUESTION, stream=True))


def test_a_disk_that_is_full_while_an_upload_comes_in_is_503(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", FullDisk)
    with pytest.raises(openai.InternalServerError, match="cannot be stored: No space left") as caught:
        stack.client().files.create(file=("data.jsonl", b"{}\n" * 100), purpose="fine-tune")
    assert (caught.value.status_code, caught.value.code) == (503, "service_unavailable")
    assert caught.value.response.headers["retry-after"]
    monkeypatch.undo()
    assert stack.client().files.create(file=("data.jsonl", b"{}\n"), purpose="fine-tune").bytes == 3


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """What a gateway that was killed in mid-upload left; asked for before the stack, it lies there at its start."""
    path = tmp_path / "gateway" / "uploads" / "abandoned"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}\n")
    os.utime(path, times=(0, 0))
    return path


def test_an_upload_that_was_broken_off_is_gone_after_the_next_start(abandoned: Path, stack: Stack) -> None:
    assert stack.config.folder == abandoned.parents[1]
    assert not abandoned.exists()


def counted(stack: Stack, outcome: str) -> float:
    (line,) = (
        line
        for line in httpx.get(f"{stack.url}/metrics").text.splitlines()
        if line.startswith(f'shortstack_answers_total{{outcome="{outcome}"}}')
    )
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_breaks_off_is_counted_though_its_status_was_200(stack: Stack, stream: bool) -> None:
    assert counted(stack, "broken off") == counted(stack, "whole") == 0
    stack.client().chat.completions.create(model=BASE, messages=QUESTION)
    until(lambda: counted(stack, "whole") == 1, "the whole answer is counted")
    stack.model_server.replies.append(Reply([*token_events(["Hello", " there"])[:1], 0.05, None]))
    with pytest.raises(openai.APIError):
        list(stack.client().chat.completions.create(model=BASE, messages=QUESTION, stream=stream))
    until(lambda: counted(stack, "broken off") == 1, "the broken answer is counted")
    stack.model_server.replies.append(Reply([step for event in token_events(["x"] * 400) for step in (event, 0.05)]))
    with stack.client().chat.completions.create(model=BASE, messages=QUESTION, stream=True) as left:
        next(iter(left))
    until(lambda: counted(stack, "client gone") == 1, "the answer that was left is counted")


def test_a_client_that_leaves_in_its_own_request_is_no_failure(stack: Stack) -> None:
    address = httpx.URL(stack.url)
    with socket.create_connection((address.host, address.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}\r\n"
        client.sendall(f'{head}content-length: 5000\r\n\r\n{{"model"'.encode())
        until(lambda: bool(client.getsockname()), "connected")
    until(lambda: '"status":499' in stack.logs.getvalue().replace('": ', '":'), "the request is logged as left")
    assert "request failed" not in stack.logs.getvalue()


def test_a_number_of_five_thousand_digits_is_refused_as_400(stack: Stack) -> None:
    reply = stack.get(f"/v1/files?limit={'9' * 5000}")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "limit"


def test_a_limit_that_the_client_did_not_set_is_no_reason_to_refuse(stack: Stack) -> None:
    stack.serve("small", max_total_tokens=60, max_input_tokens=0)
    assert stack.post("/chat", {"model": "small", "messages": QUESTION}).status_code == 200
    assert 0 < stack.model_server.last["parameters"]["max_new_tokens"] < 60
    assert stack.post("/v1/completions", {"model": "small", "prompt": "x" * 50}).status_code == 200
    assert stack.model_server.last["parameters"]["max_new_tokens"] == 10
    asked = stack.post("/chat", {"model": "small", "messages": QUESTION, "max_tokens": 512})
    assert asked.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_that_ends_itself_with_its_last_token_says_stop(stack: Stack) -> None:
    stack.serve("chatml", stop=["<|im_end|>"])
    # TGI looks at the length first.
    stack.model_server.says(["Yes", "<|im_end|>"], special=["<|im_end|>"], finish="length")
    reply = stack.client().chat.completions.create(model="chatml", messages=QUESTION, max_tokens=2)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Yes", "stop")


def test_an_upload_that_cannot_be_stored_is_503(stack: Stack) -> None:
    folder: Path = stack.config.folder / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way, as a full disk would be")
    with pytest.raises(openai.InternalServerError) as caught:
        stack.client().files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    assert caught.value.status_code == 503
    assert "cannot be stored" in str(caught.value)


def test_a_tokenizer_that_is_none_stops_its_own_model_alone(stack: Stack) -> None:
    keys = []
    for data in (b"not JSON", b"{}"):
        keys.append(f"tokenizers/{sha256_hex(data)}")
        stack.blobs.put(keys[-1], data)
    stack.serve("broken", tokenizer=keys[0], tokenizer_config=keys[1])
    with pytest.raises(openai.InternalServerError) as caught:
        stack.client().chat.completions.create(model="broken", messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (503, "tokenizer_unavailable")
    stack.serve("later")
    assert stack.client().chat.completions.create(model="later", messages=QUESTION).choices[0].message.content


def test_a_loop_that_dies_is_told_and_the_gateway_goes_on_answering(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortstack.gateway.chat.prompter import Prompters

    async def dies(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(Prompters, "warm", dies)
    stack.serve("another")
    until(lambda: httpx.get(f"{stack.url}/readyz").status_code == 503, "the gateway is not ready")
    assert "tokenizers loop" in httpx.get(f"{stack.url}/readyz").json()["waiting"]
    assert "nobody foresaw this" in stack.logs.getvalue()
    assert stack.client().chat.completions.create(model=BASE, messages=QUESTION).choices[0].message.content
