"""The wire, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.polling import until

from shortstack.inference.engine.answer import Event
from shortstack.inference.validation import Job, Sampling

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PARIS = "The capital of France is"


def body(inputs: str = PARIS, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


@pytest.fixture
def client(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as opened:
        yield opened


def events(raw: bytes) -> list[dict[str, Any]]:
    """Events of a stream whose frames are exactly `data: {json}` and a blank line."""
    assert raw.endswith(b"\n\n")
    frames = [frame for frame in raw.split(b"\n\n")[:-1] if frame != b":"]
    assert all(frame.startswith(b"data: {") for frame in frames)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def stream(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    reply = client.post("/generate_stream", json=body(**parameters))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream"
    return events(reply.content)


def test_the_metrics_page_is_empty_until_the_first_request(serving: Callable[..., Any]) -> None:
    with serving() as fresh, httpx.Client(base_url=fresh.url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").text == ""
        client.post("/generate", json=body(max_new_tokens=3))
        client.post("/generate", json=body(temperature=0))
        wanted = (
            "tgi_request_count 2\n",
            "tgi_request_success 1\n",
            'tgi_request_failure{err="validation"} 1\n',
            'tgi_batch_inference_count{method="decode"}',
        )
        # A request is counted once its answer has gone out.
        until(lambda: all(line in client.get("/metrics").text for line in wanted), lambda: client.get("/metrics").text)


def test_generate_has_the_recorded_shape(client: httpx.Client) -> None:
    reply = client.post("/generate", json=body(max_new_tokens=3, details=True, top_n_tokens=2, return_full_text=True))
    answer = reply.json()
    assert list(answer) == ["generated_text", "details"]
    assert answer["generated_text"].startswith(PARIS)
    details = answer["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 3, None)
    assert [list(token) for token in details["tokens"]] == [["id", "text", "logprob", "special"]] * 3
    assert [top[0] for top in details["top_tokens"]] == details["tokens"]
    assert reply.headers["x-compute-characters"] == str(len(PARIS))
    assert (reply.headers["x-prompt-tokens"], reply.headers["x-generated-tokens"]) == (str(len(PARIS)), "3")
    for name in ("type", "time", "characters"):
        assert f"x-compute-{name}" in reply.headers
    for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        assert reply.headers[f"x-{name}"].isdigit()
    assert reply.headers["access-control-allow-origin"] == "*"


def test_a_stream_has_the_recorded_frames(client: httpx.Client) -> None:
    whole = client.post("/generate", json=body(max_new_tokens=20, details=True)).json()
    seen = stream(client, max_new_tokens=20, details=True)
    assert [event["index"] for event in seen] == list(range(1, 21))
    assert [list(event) for event in seen] == [["index", "token", "generated_text", "details"]] * 20
    assert [event["token"]["id"] for event in seen] == [token["id"] for token in whole["details"]["tokens"]]
    assert all(event["generated_text"] is None and event["details"] is None for event in seen[:-1])
    assert seen[-1]["generated_text"] == whole["generated_text"]
    assert seen[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 20,
        "seed": None,
        "input_length": len(PARIS),
    }


def test_stop_text_ends_the_answer_and_stays_in_it(client: httpx.Client) -> None:
    texts = [event["token"]["text"] for event in stream(client, max_new_tokens=60)]
    stop = next(text for text in texts[5:] if text.strip())
    answer = client.post("/generate", json=body(max_new_tokens=60, stop=[stop], details=True)).json()
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["tokens"][-1]["text"] == stop
    assert answer["details"]["generated_tokens"] == texts.index(stop) + 1


def test_the_compat_route_answers_a_list_with_the_full_text(client: httpx.Client) -> None:
    listed = client.post("/", json=body(max_new_tokens=3)).json()
    plain = client.post("/generate", json=body(max_new_tokens=3)).json()
    assert listed == [{"generated_text": PARIS + plain["generated_text"]}]
    streamed = client.post("/", json={**body(max_new_tokens=3), "stream": True})
    assert events(streamed.content)[-1]["generated_text"] == listed[0]["generated_text"]


def test_best_of_gives_the_likelier_answer_first(client: httpx.Client) -> None:
    answer = client.post("/generate", json=body(max_new_tokens=4, best_of=2, do_sample=True, details=True)).json()
    (other,) = answer["details"]["best_of_sequences"]
    best = sum(token["logprob"] for token in answer["details"]["tokens"])
    assert best >= sum(token["logprob"] for token in other["tokens"])
    assert next(iter(other)) == "generated_text"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"temperature": 0}, "Input validation error: `temperature` must be strictly positive"),
        ({"top_p": 1.0}, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
    ],
)
def test_a_broken_rule_is_422_and_in_a_stream_an_event(
    client: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    refused = {"error": said, "error_type": "validation"}
    reply = client.post("/generate", json=body(**parameters))
    assert (reply.status_code, reply.json()) == (422, refused)
    assert stream(client, **parameters) == [refused]


def test_an_unknown_adapter_is_refused(client: httpx.Client) -> None:
    reply = client.post("/generate", json=body(adapter_id="nobody"))
    assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
    assert "'nobody' is not loaded" in reply.json()["error"]
    assert stream(client, adapter_id="nobody")[0]["error_type"] == "validation"


def test_bodies_and_paths_that_are_none(client: httpx.Client) -> None:
    json_type = {"content-type": "application/json"}
    assert client.post("/generate", content=b'{"inputs": "x"}').status_code == 415
    assert client.post("/generate", content=b"", headers=json_type).status_code == 400
    wrong = client.post("/generate_stream", json={"inputs": 3})
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    assert "invalid type: integer `3`, expected a string" in wrong.text
    large = client.post("/generate", json={"inputs": "a" * 2_000_001})
    assert (large.status_code, large.text) == (413, "Failed to buffer the request body: length limit exceeded")
    for method, path, status in [("GET", "/nope", 404), ("GET", "/generate", 405), ("POST", "/info", 405)]:
        reply = client.request(method, path)
        assert (reply.status_code, reply.content) == (status, b"")
    preflight = client.options("/generate", headers={"origin": "http://a", "access-control-request-method": "POST"})
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (200, "GET,POST")


def test_tokenize_and_info(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"inputs": ""}).json() == []
    assert client.post("/tokenize", json={"inputs": "é"}).json()[1] == {"id": 102, "text": "é", "start": 0, "stop": 2}
    info = client.get("/info").json()
    assert (info["max_input_tokens"], info["max_total_tokens"], info["max_stop_sequences"]) == (1024, 2048, 4)
    assert client.get("/v1/models").json()["data"][0]["id"] == info["model_id"]


def test_adapters_load_and_drop_while_others_stream(
    client: httpx.Client, served: Any, make_adapter: Callable[..., Path]
) -> None:
    folder = make_adapter(5)
    expected = client.post("/generate", json=body(max_new_tokens=400)).json()
    answers: list[dict[str, Any]] = []
    changing = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=served.url, timeout=60) as other:
            while not changing.is_set():
                answers.append(other.post("/generate", json=body(max_new_tokens=400)).json())

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        tuned = []
        for _ in range(5):
            put = client.put("/adapters/mine", json={"path": str(folder)})
            assert put.status_code == 200
            assert put.json()["rank"] == 4
            tuned.append(client.post("/generate", json=body(max_new_tokens=20, adapter_id="mine")).json())
            assert [entry["id"] for entry in client.get("/adapters").json()["adapters"]] == ["mine"]
            assert client.get("/info").json()["adapters"] == ["mine"]
            dropped = client.delete("/adapters/mine").json()
            assert dropped == {"id": "mine", "dropped": True, "requests": 0}
            assert client.post("/generate", json=body(adapter_id="mine")).status_code == 422
    finally:
        changing.set()
        for asker in askers:
            asker.join(60)
    assert all(answer == tuned[0] for answer in tuned)
    assert not expected["generated_text"].startswith(tuned[0]["generated_text"])
    assert answers
    assert all(answer == expected for answer in answers)
    assert client.delete("/adapters/mine").json()["dropped"] is False


def test_an_adapter_that_cannot_be_read_is_422(client: httpx.Client, tmp_path: Path) -> None:
    reply = client.put("/adapters/none", json={"path": str(tmp_path)})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
    assert "adapter_model.safetensors" in reply.json()["error"]
    assert client.put("/adapters/none", json={"folder": "x"}).status_code == 422


def test_an_adapter_of_nan_is_a_generation_error(client: httpx.Client, make_adapter: Callable[..., Path]) -> None:
    assert client.put("/adapters/nan", json={"path": str(make_adapter(6, fill=float("nan")))}).status_code == 200
    reply = client.post("/generate", json=body(adapter_id="nan", max_new_tokens=5))
    assert (reply.status_code, reply.json()["error_type"]) == (424, "generation")
    assert reply.json()["error"].startswith("Request failed during generation: Server error: ")
    assert stream(client, adapter_id="nan", max_new_tokens=5)[0]["error_type"] == "generation"
    assert client.post("/generate", json=body(max_new_tokens=5)).status_code == 200
    client.delete("/adapters/nan")


def test_a_full_server_refuses_and_a_client_that_leaves_makes_room(serving: Callable[..., Any]) -> None:
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    with serving(max_concurrent_requests=1) as full, httpx.Client(base_url=full.url, timeout=60) as client:
        with client.stream("POST", "/generate_stream", json=body(max_new_tokens=2000)) as running:
            chunks = running.iter_raw()  # kept: httpx closes the connection with it
            assert next(chunks).startswith(b"data: ")
            for parameters in ({"max_new_tokens": 2}, {"temperature": 0}):  # full comes before invalid
                reply = client.post("/generate", json=body(**parameters))
                assert (reply.status_code, reply.json()) == (429, overloaded)
            assert stream(client, max_new_tokens=2) == [overloaded]
            assert client.post("/tokenize", json={"inputs": "a"}).status_code == 200
        until(lambda: client.post("/generate", json=body(max_new_tokens=1)).status_code == 200)
        until(lambda: "tgi_batch_current_size 0\n" in client.get("/metrics").text)
        page = client.get("/metrics").text
        assert 'tgi_request_failure{err="dropped"} 1\n' in page
        assert client.post("/generate", json=body(best_of=2, do_sample=True)).status_code == 429


def test_a_client_that_leaves_before_a_whole_answer_makes_room(serving: Callable[..., Any]) -> None:
    with serving() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/generate", json=body(max_new_tokens=2000), timeout=0.3)
        until(lambda: 'tgi_request_failure{err="dropped"} 1\n' in client.get("/metrics").text)
        until(lambda: "tgi_batch_current_size 0\n" in client.get("/metrics").text)


def test_silence_is_filled_with_comments(serving: Callable[..., Any]) -> None:
    with serving(keep_alive_seconds=0.05) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        frozen = threading.Event()

        def freeze(_: Event) -> None:
            frozen.wait(30)

        server.parts.engine.submit(Job((1,), 1, (), Sampling()), None, freeze)
        with client.stream("POST", "/generate_stream", json=body(max_new_tokens=2)) as reply:
            chunks = reply.iter_raw()
            assert [next(chunks), next(chunks)] == [b":\n\n", b":\n\n"]
            frozen.set()
            rest = b"".join(chunks)
        assert events(rest)[-1]["index"] == 2


def test_the_key_guards_the_posts_and_the_adapters(serving: Callable[..., Any]) -> None:
    with serving(api_key="sk-Test") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        right = {"authorization": "bearer SK-test"}  # compared without letter case, as TGI does
        for method, path in [("POST", "/generate"), ("POST", "/"), ("POST", "/tokenize"), ("PUT", "/adapters/a")]:
            reply = client.request(method, path, json=body(max_new_tokens=1))
            assert (reply.status_code, reply.content) == (401, b"")
        for path in ("/info", "/health", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 200
        assert client.post("/generate", json=body(max_new_tokens=1), headers=right).status_code == 200
        assert client.post("/generate", json=body(), headers={"authorization": "sk-Test"}).status_code == 401


def test_the_real_model_gives_the_recorded_tokens(smollm2_dir: Path, serving: Callable[..., Any]) -> None:
    recorded = [(7042, " Paris", -0.277), (30, ".", -0.385), (198, "\n", -1.008)]
    real = serving(model_id=smollm2_dir, dtype="bfloat16")
    with real as server, httpx.Client(base_url=server.url, timeout=120) as client:
        tokens = client.post("/generate", json=body(max_new_tokens=3, details=True)).json()["details"]["tokens"]
        multi = client.post("/generate", json=body("日本語" * 5, max_new_tokens=3, details=True)).json()
    assert [(token["id"], token["text"]) for token in tokens] == [(token, text) for token, text, _ in recorded]
    assert [token["logprob"] for token in tokens] == pytest.approx([logprob for *_, logprob in recorded], abs=0.1)
    assert [token["text"] for token in multi["details"]["tokens"]] == ["", "日", "本"]
