"""The rules of the router: our own cases, and every recorded refusal of the real one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.inference.errors import BodyRefused, Rejected, wire_error
from shortstack.inference.generate_request import Parameters, TextRequest, parse_body
from shortstack.inference.validation import Limits, check_best_of, check_stream, validate

PARIS = "The capital of France is"
RECORDED = Limits(max_input_tokens=1024, max_total_tokens=2048, max_stop_sequences=4, max_best_of=2, max_top_n_tokens=5)
SMALL = Limits(max_input_tokens=16, max_total_tokens=24, max_stop_sequences=4, max_best_of=2, max_top_n_tokens=5)


def words(text: str) -> list[int]:
    return list(range(len(text.split())))


def request(inputs: str = PARIS, **parameters: object) -> TextRequest:
    return TextRequest(inputs=inputs, parameters=Parameters.model_validate(parameters))


def refusal(limits: Limits, inputs: str = PARIS, **parameters: object) -> str:
    with pytest.raises(Rejected) as raised:
        validate(request(inputs, **parameters), limits, words)
    return wire_error(raised.value).error.removeprefix("Input validation error: ")


@pytest.mark.parametrize(
    ("parameters", "words_of_refusal"),
    [
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": -2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 1024. Given: 0"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"grammar": {"type": "regex", "value": "a+"}}, "grammar is not supported"),
        ({"temperature": 0, "top_p": 2.0, "max_new_tokens": 0}, "`temperature` must be strictly positive"),
    ],
)
def test_a_broken_rule_is_named_in_the_routers_words(parameters: dict[str, object], words_of_refusal: str) -> None:
    assert refusal(RECORDED, **parameters) == words_of_refusal


def test_empty_inputs_are_refused() -> None:
    assert refusal(RECORDED, inputs="") == "`inputs` cannot be empty"


def test_lengths_are_checked_as_the_router_does() -> None:
    assert refusal(SMALL, max_new_tokens=20) == (
        "`inputs` tokens + `max_new_tokens` must be <= 24. Given: 5 `inputs` tokens and 20 `max_new_tokens`"
    )
    assert refusal(SMALL, inputs="w " * 17, max_new_tokens=1) == ("`inputs` must have less than 16 tokens. Given: 17")
    assert refusal(SMALL, inputs="w " * 31) == (
        "`inputs` tokens + `max_new_tokens` must be <= 24. Given: 31 `inputs` tokens and 0 `max_new_tokens`"
    )


def test_more_new_tokens_than_fit_are_allowed_above_1024_and_end_at_the_limit() -> None:
    assert validate(request(max_new_tokens=5000), RECORDED, words).max_new_tokens == 2048 - 5
    assert validate(request(), SMALL, words).max_new_tokens == 19


def test_truncate_keeps_the_last_tokens() -> None:
    assert validate(request(inputs="a b c d", truncate=3), RECORDED, words).prompt == (1, 2, 3)


@pytest.mark.parametrize("knob", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}])
def test_any_sampling_knob_switches_sampling_on(knob: dict[str, float]) -> None:
    assert validate(request(**knob), RECORDED, words).sampling.seed is not None


def test_sampling_is_on_without_parameters_and_off_with_empty_ones() -> None:
    absent = parse_body(b'{"inputs": "x"}', "application/json")
    empty = parse_body(b'{"inputs": "x", "parameters": {}}', "application/json")
    assert validate(absent, RECORDED, words).sampling.seed is not None
    assert validate(empty, RECORDED, words).sampling.seed is None


def test_a_greedy_request_has_no_seed_even_if_it_sent_one() -> None:
    assert validate(request(seed=7), RECORDED, words).sampling.seed is None
    assert validate(request(seed=2**64 - 1, do_sample=True), RECORDED, words).sampling.seed == 2**64 - 1


def test_streams_refuse_what_they_cannot_carry() -> None:
    with pytest.raises(Rejected, match="best_of"):
        check_stream(Parameters(best_of=2, do_sample=True))
    with pytest.raises(Rejected, match="decoder_input_details"):
        check_stream(Parameters(decoder_input_details=True))
    check_stream(Parameters(best_of=0))


def test_best_of_zero_is_one_and_three_is_too_many() -> None:
    assert check_best_of(Parameters(best_of=0), RECORDED) == 1
    with pytest.raises(Rejected, match=re.escape("`best_of` must be > 0 and <= 2. Given: 3")):
        check_best_of(Parameters(best_of=3), RECORDED)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"inputs": "x"}', "", 415),
        (b'{"inputs": "x"}', "text/plain", 415),
        (b'{"inputs": "x",', "application/json", 400),
        (b"", "application/json", 400),
        (b'{"inputs": "\xff"}', "application/json", 400),
        (b'{"inputs": 3}', "application/json", 422),
        (b'{"inputs": "x", "parameters": null}', "application/json", 422),
        (b'{"inputs": "x", "parameters": {"stop": "a"}}', "application/json", 422),
        (b'{"inputs": "x", "parameters": {"seed": -1}}', "application/json", 422),
        (b"[1]", "application/json", 422),
    ],
)
def test_a_body_that_is_no_request_is_refused_by_status(body: bytes, content_type: str, status: int) -> None:
    with pytest.raises(BodyRefused) as raised:
        parse_body(body, content_type)
    assert raised.value.status == status


def test_unknown_fields_and_charsets_are_ignored() -> None:
    body = b'{"inputs": "x", "foo": 1, "parameters": {"max_new_tokens": 2, "bar": 2}}'
    assert parse_body(body, "application/json; charset=utf-8").parameters.max_new_tokens == 2


@given(
    tokens=st.integers(1, 40),
    new=st.none() | st.integers(1, 3000),
    total=st.integers(2, 40),
)
def test_an_accepted_request_always_fits(tokens: int, new: int | None, total: int) -> None:
    limits = Limits(total - 1, total, 4, 2, 5)
    try:
        job = validate(request("w " * tokens, max_new_tokens=new), limits, words)
    except Rejected:
        assert tokens >= total or (new is not None and tokens + min(new, 1024) > total)
    else:
        assert job.max_new_tokens >= 1
        assert len(job.prompt) + job.max_new_tokens <= total


def accept(body: str, media: str) -> None:
    text = parse_body(body.encode(), media)
    check_best_of(text.parameters, RECORDED)
    validate(text, RECORDED, words)


def exchanges(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """(title, content type, request body, status line, reply body) of a capture file."""
    for section in re.split(r"\n(?====== )", path.read_text("utf-8")):
        if ">>> request" not in section or "<<< response" not in section:
            continue
        title = section.partition("\n")[0].strip("= ")
        sent, _, answered = section.partition("<<< response")
        head, _, body = sent.partition(">>> request\n")[2].partition("\n\n")
        media = re.search(r"^content-type: (.*)$", head, re.MULTILINE)
        reply_head, _, reply = answered.partition("\n\n")
        yield title, media[1] if media else "", body.strip(), reply_head.splitlines()[1], reply.strip()


def test_every_recorded_refusal_of_the_real_router_is_ours_too(shared_dir: Path) -> None:
    capture = shared_dir / "spec" / "tgi-wire" / "05-generate-errors.txt"
    compared = 0
    for title, media, body, status, reply in exchanges(capture):
        if "(shortened)" in body or status.startswith("HTTP/1.1 424"):
            continue
        if title in {"empty body", "invalid utf-8", "grammar json not a schema"}:
            continue  # bytes that the capture cannot show, and grammars, which this server refuses altogether
        if status.startswith("HTTP/1.1 200"):
            accept(body, media)
        elif reply.startswith("{"):
            with pytest.raises(Rejected) as rejected:
                accept(body, media)
            assert wire_error(rejected.value).body == orjson.loads(reply), title
        else:
            with pytest.raises(BodyRefused) as refused:
                parse_body(body.encode(), media)
            assert str(refused.value.status) in status, title
            said = refused.value.what
            if refused.value.status == 422 and title != "a json array":
                assert said == re.sub(r" at line \d+ column \d+$", "", reply), title
        compared += 1
    assert compared > 30
