"""What may be asked, and what becomes of it on TGI's side."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from shortstack.gateway.chat.parameters import answer_budget, tgi_parameters
from shortstack.gateway.chat.requests import AnswerRequest, Sampling, read_chat, read_completion, read_ihop
from shortstack.gateway.errors import ApiError
from shortstack.gateway.routing.table import ServedModel
from shortstack.ingestion.families.conversations import MESSAGES
from shortstack.prompts.formats import PromptFormats

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = """model messages temperature top_p stop seed n stream stream_options max_tokens max_completion_tokens user
frequency_penalty logprobs top_logprobs tools prompt response_format"""
FIELDS = st.sampled_from(NAMES.split())


@given(changes=st.dictionaries(FIELDS, JSON, max_size=4))
def test_whatever_is_sent_is_read_or_refused_as_400(changes: dict[str, Any]) -> None:
    for read in (lambda body: read_chat(body, 8), read_completion, lambda body: read_ihop(body, 8)):
        status, request = 200, None
        try:
            request = read({**BODY, **changes})
        except ApiError as error:
            status = error.status
        assert status == (400 if request is None else 200)
        if request is not None:
            assert tgi_parameters(request, ServedModel("m"), 1)["max_new_tokens"] == 1


@given(
    temperature=st.none() | st.floats(0, 2) | st.sampled_from([5e-324, 1e-38, 1e-6]),
    top_p=st.none() | st.floats(0, 1) | st.sampled_from([5e-324, 1e-38, 1 - 1e-9]),
    frequency=st.none() | st.floats(-2, 2),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
)
def test_what_is_sent_to_tgi_passes_its_rules(
    temperature: float | None, top_p: float | None, frequency: float | None, seed: int | None
) -> None:
    body = {**BODY, "temperature": temperature, "top_p": top_p, "frequency_penalty": frequency, "seed": seed}
    sent = tgi_parameters(read_chat(body, 8), ServedModel("m"), 1)
    assert sent["do_sample"] == all(value is None or value >= 1e-6 for value in (temperature, top_p))
    # As it reads them: in float32, where no score may overflow either.
    warmth, mass = np.float32(sent.get("temperature", 1)), np.float32(sent.get("top_p", 0.5))
    assert np.isfinite(np.float32(1e4) / warmth)
    assert 0 < mass < 1
    assert -2 <= sent.get("frequency_penalty", 0) <= 2
    assert 0 <= sent.get("seed", 0) < 2**64
    if not sent["do_sample"]:
        assert not {"temperature", "top_p", "seed"} & sent.keys()


@given(
    prompt=st.integers(0, 100),
    total=st.integers(1, 100),
    limit=st.integers(0, 100),
    asked=st.none() | st.integers(1, 100),
)
def test_prompt_and_answer_never_exceed_the_context(prompt: int, total: int, limit: int, asked: int | None) -> None:
    model = ServedModel("m", max_total_tokens=total, max_input_tokens=limit)
    request = AnswerRequest("m", Sampling(), max_tokens=asked)
    fits = prompt + (asked or 1) <= total and (limit == 0 or prompt <= limit)
    if not fits:
        with pytest.raises(ApiError) as caught:
            answer_budget(prompt, request, model)
        assert caught.value.code == "context_length_exceeded"
        return
    assert answer_budget(prompt, request, model) == (total - prompt if asked is None else asked)


def test_tgi_gets_four_stops_and_the_gateway_cuts_the_rest() -> None:
    model = ServedModel("m", stop=("e", "a", "f"))
    request = read_chat({**BODY, "stop": ["a", "b", "c"]}, 8)
    assert tgi_parameters(request, model, 1)["stop"] == ["a", "b", "c", "e"]


def test_a_raw_completion_does_not_end_at_the_formats_stops() -> None:
    model = ServedModel("m", stop=("<human>:",))
    assert "stop" not in tgi_parameters(read_completion({"model": "m", "prompt": "x"}), model, 1)


@pytest.mark.parametrize("prompt_format", ["chatml", "human_bot", "vicuna"])
@given(order=st.permutations(["id", "type", "function"]), said=st.sampled_from([None, "", "Let me see."]))
def test_tool_calls_of_the_past_are_asked_with_as_they_were_trained(
    prompt_format: str, order: list[str], said: str | None
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    past: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": said, "tool_calls": [{key: call[key] for key in order}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]
    asked = read_chat({**BODY, "messages": past}, 8).messages
    trained = MESSAGES.compile({"messages": [*past, {"role": "assistant", "content": "Sunny."}]}).messages
    spoken = PromptFormats.builtin().get(prompt_format)
    assert spoken.text(trained).startswith(spoken.prompt(asked))


@pytest.mark.parametrize(
    ("wrong", "param"),
    [({"tool_calls": {"id": "1"}}, "tool_calls"), ({"function_call": {"name": "f"}}, "function_call")],
)
def test_calls_in_another_shape_are_refused_and_not_dropped(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_chat({**BODY, "messages": [{"role": "assistant", "content": "", **wrong}]}, 8)
    assert (refused.value.status, refused.value.param) == (400, f"messages[0].{param}")


@pytest.mark.parametrize("stop", ["", [""], ["END", ""]])
def test_an_empty_stop_is_refused_by_name(stop: Any) -> None:
    for read in (lambda body: read_chat(body, 8), lambda body: read_completion({**body, "prompt": "x"})):
        with pytest.raises(ApiError) as caught:
            read({**BODY, "stop": stop})
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, "stop", "empty_string")


@pytest.mark.parametrize("stop", [None, []])
def test_no_stop_is_no_stop(stop: Any) -> None:
    assert "stop" not in tgi_parameters(read_chat({**BODY, "stop": stop}, 8), ServedModel("m"), 1)
