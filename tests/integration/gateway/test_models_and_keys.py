"""Routes, keys, errors and probes, as a client meets them."""

from __future__ import annotations

import stat
from collections import Counter

import httpx
import openai
import pytest
from tests.integration.gateway.conftest import Stack
from tests.integration.gateway.fakes import BASE, FINE_TUNE
from tests.polling import until

from shortstack.messages.v1 import serving_pb2 as sv

QUESTION = [{"role": "user", "content": "Hi"}]


def ask(stack: Stack, model: str, **options: object) -> str:
    """The name of the model that answers."""
    return stack.client().chat.completions.create(model=model, messages=QUESTION, **options).model  # type: ignore[call-overload,no-any-return]


def test_models_are_listed_and_found_by_id(stack: Stack) -> None:
    listed = {one.id: one for one in stack.client().models.list()}
    assert set(listed) == {BASE, FINE_TUNE, "gpt-4o-mini"}
    assert listed[FINE_TUNE].owned_by == "default"
    assert stack.client().models.retrieve(FINE_TUNE).id == FINE_TUNE
    assert stack.client().models.retrieve(FINE_TUNE).created == 1_700_000_000


def test_an_unknown_model_is_404_and_names_the_nearest(stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(stack, "smollm2-135-instruct")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert f'Did you mean "{BASE}"?' in str(caught.value)
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        stack.client().models.retrieve("smollm2-135-instruct")


def test_a_loading_model_is_503_with_state_progress_and_retry_after(stack: Stack) -> None:
    stack.serving.put(stack.model("new", state=sv.MODEL_STATE_LOADING, progress=0.4, message="Fetching weights."))
    until(lambda: "new" not in stack.names() and knows(stack, "new"), "the model is known")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(stack, "new")
    error = caught.value
    assert error.status_code == 503
    assert error.code == "model_loading"
    assert error.response.headers["retry-after"] == "5"
    assert error.response.json()["error"]["state"] == "loading"
    assert error.response.json()["error"]["progress"] == 0.4
    assert "40% done. Fetching weights." in str(error)
    stack.serve("new")
    assert ask(stack, "new") == "new"


def knows(stack: Stack, model: str) -> bool:
    return stack.get(f"/v1/models/{model}").status_code != 404


def test_a_refused_model_takes_no_traffic_and_says_why(stack: Stack) -> None:
    stack.serving.put(stack.model("bad", state=sv.MODEL_STATE_REFUSED, message="It answers as the base does."))
    until(lambda: "refused" in stack.get("/v1/models/bad").text, "the model is refused")
    with pytest.raises(openai.NotFoundError, match=r"was refused\. It answers as the base does"):
        ask(stack, "bad")


def test_an_alias_moves_over_models_by_weight(stack: Stack) -> None:
    weights = [sv.Weight(model=BASE, weight=9), sv.Weight(model=FINE_TUNE, weight=1)]
    stack.serving.put(sv.AliasSnapshot(alias="support@prod", owner="default", weights=weights))
    until(lambda: "support@prod" in stack.names(), "the alias is listed")
    answered = Counter(ask(stack, "support@prod", user=f"user-{number}") for number in range(60))
    assert answered[BASE] > answered[FINE_TUNE] > 0
    assert len({ask(stack, "support@prod", user="the-same") for _ in range(5)}) == 1
    moved = [sv.Weight(model=FINE_TUNE, weight=1)]
    stack.serving.put(sv.AliasSnapshot(alias="support@prod", owner="default", weights=moved))
    until(lambda: ask(stack, "support@prod", user="the-same") == FINE_TUNE, "the alias moved")


def test_an_operators_alias_of_a_base_answers_too(stack: Stack) -> None:
    assert ask(stack, "gpt-4o-mini") == BASE


def test_routes_last_known_stay_while_serving_is_away(stack: Stack) -> None:
    stack.peers.stop(5)
    stack.serving.close_watches()
    assert ask(stack, FINE_TUNE) == FINE_TUNE
    assert stack.get("/readyz").status_code == 200


def test_a_new_watch_replaces_the_routes_once_it_is_whole(stack: Stack) -> None:
    stack.serving.forget(f"model/{FINE_TUNE}")
    stack.serving.close_watches()
    until(lambda: FINE_TUNE not in stack.names(), "the dropped model is gone")
    assert ask(stack, BASE) == BASE


def test_without_a_key_nothing_is_answered(stack: Stack) -> None:
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json={"model": BASE, "messages": QUESTION})
    assert reply.status_code == 401
    assert reply.json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError) as caught:
        stack.client("sk-ss-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    wrong = stack.key[:-1] + ("A" if stack.key[-1] != "A" else "B")
    with pytest.raises(openai.AuthenticationError):
        stack.client(wrong).models.list()


def test_keys_are_made_listed_and_revoked(stack: Stack) -> None:
    made = stack.post("/v1/admin/keys", {"name": "ci", "owner": "team-a", "scopes": ["chat"]}).json()
    assert made["key"].startswith("sk-ss-")
    assert len(made["key"]) >= 6 + 12 + 43
    client = stack.client(made["key"])
    assert client.chat.completions.create(model=BASE, messages=QUESTION).model == BASE  # type: ignore[call-overload]
    listed = stack.get("/v1/admin/keys").json()["data"]
    assert {one["name"] for one in listed} == {"local", "ci"}
    assert made["key"] not in str(listed)
    revoked = httpx.delete(f"{stack.url}/v1/admin/keys/{made['id']}", headers={"authorization": f"Bearer {stack.key}"})
    assert revoked.json() == {"id": made["id"], "object": "api_key", "deleted": True}
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_scope_that_a_key_lacks_is_403(stack: Stack) -> None:
    made = stack.post("/v1/admin/keys", {"name": "chat", "scopes": ["chat"]}).json()
    with pytest.raises(openai.PermissionDeniedError, match="Missing scopes: datasets"):
        stack.client(made["key"]).files.list()
    reply = stack.post("/v1/admin/keys", {}, headers={"authorization": f"Bearer {made['key']}"})
    assert reply.status_code == 403
    unknown = stack.post("/v1/admin/keys", {"scopes": ["chatt"]})
    assert unknown.status_code == 400
    assert 'Did you mean "chat"?' in unknown.json()["error"]["message"]


def test_a_fine_tune_is_its_owners_alone(stack: Stack) -> None:
    made = stack.post("/v1/admin/keys", {"owner": "team-b"}).json()
    other = stack.client(made["key"])
    assert FINE_TUNE not in [one.id for one in other.models.list()]
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(model=FINE_TUNE, messages=QUESTION)  # type: ignore[call-overload]


def test_the_first_key_is_the_owners_file_alone_and_no_key_is_stored(stack: Stack) -> None:
    file = stack.config.folder / "key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with stack.engine.connect() as connection:
        stored = str(connection.exec_driver_sql("select * from api_keys").all())
    assert stack.key not in stored
    assert stack.key[18:] not in stored


def test_neither_keys_nor_words_are_logged(stack: Stack) -> None:
    secret = "a sentence that nobody else may read"
    stack.model_server.says(["An answer that is secret too"])
    ask_body = {"model": BASE, "messages": [{"role": "user", "content": secret}]}
    assert stack.post("/v1/chat/completions", ask_body).status_code == 200
    assert stack.post("/v1/chat/completions", {**ask_body, "temperature": secret}).status_code == 400
    logged = stack.logs.getvalue()
    assert '"route":"/v1/chat/completions"' in logged.replace(": ", ":")
    assert stack.key not in logged
    assert secret not in logged
    assert "secret too" not in logged


def test_every_reply_has_a_request_id(stack: Stack) -> None:
    assert stack.get("/v1/models").headers["x-request-id"].startswith("req_")
    given = stack.post("/v1/chat/completions", {}, headers={"x-request-id": "mine-1"})
    assert given.status_code == 400
    assert given.headers["x-request-id"] == "mine-1"


def test_a_body_above_the_cap_is_413(stack: Stack) -> None:
    huge = {"model": BASE, "messages": [{"role": "user", "content": "x" * 300_000}]}
    with pytest.raises(openai.APIStatusError) as caught:
        stack.client().chat.completions.create(**huge)  # type: ignore[call-overload]
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"

    def pieces():  # type: ignore[no-untyped-def]
        for _ in range(30):
            yield b" " * 10_000

    headers = {"authorization": f"Bearer {stack.key}", "content-type": "application/json"}
    unannounced = httpx.post(f"{stack.url}/v1/chat/completions", content=pieces(), headers=headers)
    assert unannounced.status_code == 413


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"messages": QUESTION}, "model", "Missing required parameter: 'model'"),
        ({"model": BASE}, "messages", "Missing required parameter: 'messages'"),
        ({"model": BASE, "messages": []}, "messages", "empty"),
        ({"model": BASE, "messages": [{"role": "usr", "content": "x"}]}, "messages[0].role", 'Did you mean "user"?'),
        ({"model": BASE, "messages": [{"role": "user"}]}, "messages[0].content", "expected a string"),
        ({"model": BASE, "messages": QUESTION, "temperature": 3}, "temperature", "between 0 and 2"),
        ({"model": BASE, "messages": QUESTION, "max_tokens": 0}, "max_tokens", "between 1"),
        ({"model": BASE, "messages": QUESTION, "stop": ["a"] * 5}, "stop", "at most 4"),
        ({"model": BASE, "messages": QUESTION, "stream": "yes"}, "stream", "expected a boolean"),
        ({"model": BASE, "messages": QUESTION, "n": 2}, "n", "Unsupported parameter"),
        ({"model": BASE, "messages": QUESTION, "presence_penalty": 1}, "presence_penalty", "frequency_penalty"),
        ({"model": BASE, "messages": QUESTION, "tools": [{"type": "function"}]}, "tools", "Unsupported parameter"),
        (
            {"model": BASE, "messages": QUESTION, "response_format": {"type": "json_object"}},
            "response_format",
            "Unsupported parameter",
        ),
        (
            {"model": BASE, "messages": QUESTION, "max_tokens": 1, "max_completion_tokens": 1},
            "max_tokens",
            "at the same time",
        ),
        (
            {"model": BASE, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "only parts of type 'text'",
        ),
    ],
)
def test_a_bad_request_names_its_field(stack: Stack, body: dict[str, object], param: str, part: str) -> None:
    reply = stack.post("/v1/chat/completions", body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert part in error["message"]
    assert not stack.model_server.stub.requests


def test_unknown_fields_and_harmless_values_are_tolerated(stack: Stack) -> None:
    body = {"model": BASE, "messages": QUESTION, "store": True, "made_up": 1, "n": 1, "tools": [], "logit_bias": {}}
    text_parts = [{"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " kind"}]}]
    reply = stack.post("/v1/chat/completions", {**body, "messages": [*text_parts, *QUESTION]})
    assert reply.status_code == 200
    assert "<|im_start|>system\nBe kind<|im_end|>" in stack.model_server.last["inputs"]


def test_errors_of_the_server_itself_have_openais_shape(stack: Stack) -> None:
    assert stack.get("/v1/nowhere").json()["error"]["code"] == "unknown_url"
    assert stack.get("/v1/chat/completions").status_code == 405
    headers = {"authorization": f"Bearer {stack.key}", "content-type": "application/json"}
    broken = httpx.post(f"{stack.url}/v1/chat/completions", content=b'{"model"', headers=headers)
    assert broken.status_code == 400
    assert broken.json()["error"]["code"] == "invalid_json"


def test_probes_and_metrics_need_no_key(stack: Stack) -> None:
    ask(stack, BASE)
    assert httpx.get(f"{stack.url}/livez").json()["alive"] is True
    assert httpx.get(f"{stack.url}/readyz").json() == {"ready": True, "waiting": {}}
    text = httpx.get(f"{stack.url}/metrics").text
    assert f'shortstack_chat_tokens_total{{direction="completion",model="{BASE}"}} 3.0' in text
    assert 'shortstack_http_seconds_count{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'shortstack_routes{state="served"} 2.0' in text
