"""The laws of prompt formats, for every format and every answer, with generated conversations and a real tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tests.unit.prompts.conftest import noon
from tests.unit.prompts.conversations import conversations
from tokenizers import processors

from shortstack.prompts.encoding import PromptEncoder
from shortstack.prompts.formats import PromptFormat, PromptFormats
from shortstack.records.message import Message

BEGIN = "<repo_name>"  # no format writes it, as prompt_answer does <|endoftext|>
NAMES = ("base", *PromptFormats.builtin().names())
QUICK = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
every_format = pytest.mark.parametrize("name", NAMES)


def talks(fmt: PromptFormat, *, begins_asked: bool = False) -> st.SearchStrategy[list[Message]]:
    """Conversations that the format takes; with ``begins_asked``, those that a user begins."""
    places = fmt.roles()
    roles = [role for role in ("system", "context", "user", "tool") if places[role] != "refused"]
    return conversations(
        roles,
        system_anywhere="first message only" not in places["system"],
        begins_asked=begins_asked or fmt.name == "base",
    )


def as_json(messages: list[Message]) -> list[dict[str, Any]]:
    """What a chat client sends, and a template sees."""
    return [
        {"role": one.role, "content": one.content} | ({"tool_calls": one.tool_calls} if one.tool_calls else {})
        for one in messages
    ]


@functools.cache
def jinja(source: str) -> jinja2.Template:
    """A template as transformers compiles it; not the environment that the product renders with."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: noon().strftime(form)
    return environment.from_string(source)


def answers(messages: list[Message]) -> list[int]:
    return [index for index, one in enumerate(messages) if one.role == "assistant"]


@every_format
@QUICK
@given(data=st.data())
def test_each_prompt_is_a_byte_prefix_of_the_training_text(
    name: str, data: st.DataObject, encoders: dict[str, PromptEncoder]
) -> None:
    fmt = encoders[name].format
    messages = data.draw(talks(fmt))
    text = fmt.text(messages).encode()
    exchanges = fmt.exchanges(messages)
    assert [one.index for one in exchanges] == answers(messages)
    for exchange in exchanges:
        # A conversation that an assistant begins has a prompt too, though no client can ask for it.
        assert not exchange.index or exchange.prompt == fmt.prompt(messages[: exchange.index])
        assert text.startswith((exchange.prompt + exchange.answer + exchange.close).encode())


@every_format
@QUICK
@given(data=st.data())
def test_the_jinja_template_renders_the_same_bytes(
    name: str, data: st.DataObject, encoders: dict[str, PromptEncoder], smollm2_dir: object
) -> None:
    fmt = encoders[name].format
    template = jinja(fmt.chat_template())
    messages = data.draw(talks(fmt))
    variables = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    rendered = template.render(messages=as_json(messages), add_generation_prompt=False, **variables)
    assert rendered == fmt.text(messages)
    for end in (*answers(messages), len(messages)):
        if end:
            asked = template.render(messages=as_json(messages[:end]), add_generation_prompt=True, **variables)
            assert asked == fmt.prompt(messages[:end])


@every_format
@QUICK
@given(data=st.data(), train_on_inputs=st.booleans())
def test_the_ids_of_each_prompt_are_a_prefix_of_its_row(
    name: str, data: st.DataObject, train_on_inputs: bool, encoders: dict[str, PromptEncoder]
) -> None:
    encoder = encoders[name]
    messages = data.draw(talks(encoder.format))
    rows = encoder.rows(messages, train_on_inputs=train_on_inputs)
    remaining = [list(row.ids) for row in rows]
    for exchange in encoder.format.exchanges(messages):
        ids = encoder.encode(exchange.prompt)
        while remaining and remaining[0][: len(ids)] != ids:
            remaining.pop(0)
        assert remaining, f"no row begins with the ids of the prompt before message {exchange.index}"
    for row in rows:
        assert len(row.ids) == len(row.trained)
        inputs = sum(loss for loss in row.trained)
        assert inputs == len(row.ids) if train_on_inputs and all(one.train for one in messages) else True


@every_format
@QUICK
@given(data=st.data())
def test_loss_covers_each_answer_and_its_close_once_and_nothing_else(
    name: str, data: st.DataObject, encoders: dict[str, PromptEncoder]
) -> None:
    encoder = encoders[name]
    messages = data.draw(talks(encoder.format))
    rows = encoder.rows(messages)
    learnt = b""
    for row in rows:
        tokens = [token for token, loss in zip(row.ids, row.trained, strict=True) if loss]
        learnt += encoder.tokenizer.decode(tokens, skip_special_tokens=False).encode()
    eos = encoder.tokenizer.id_to_token(encoder.eos_id)
    expected = ""
    exchanges = encoder.format.exchanges(messages)
    for exchange in exchanges:
        # The tokenizer knows no token for some control characters, and leaves them out.
        ids = encoder.tokenizer.encode(exchange.answer + exchange.close, add_special_tokens=False).ids
        expected += encoder.tokenizer.decode(ids, skip_special_tokens=False) if exchange.train else ""
    assert learnt.decode().replace(eos, "") == expected.replace(eos, "")
    if encoder.format.eos == "every":
        assert learnt.decode().count(eos) == sum(one.train for one in exchanges)
    if encoder.format.eos == "last":
        assert all(row.ids[-1] == encoder.eos_id for row in rows)
        assert rows[-1].trained[-1] == exchanges[-1].train


@every_format
@QUICK
@given(data=st.data())
def test_special_ids_are_those_that_the_format_put_there(
    name: str, data: st.DataObject, encoders: dict[str, PromptEncoder]
) -> None:
    encoder = encoders[name]
    special = {number for number, token in encoder.tokenizer.get_added_tokens_decoder().items() if token.special}
    messages = data.draw(talks(encoder.format))
    # The same conversation without anything that could be a token: blank where blank, and one letter elsewhere.
    plain = [
        Message(one.role, "x" if one.content.strip() else one.content, train=one.train, tool_calls=one.tool_calls)
        for one in messages
    ]
    for render in (encoder.format.prompt, encoder.format.text):
        found = [token for token in encoder.encode(render(messages)) if token in special]
        assert found == [token for token in encoder.encode(render(plain)) if token in special]
        for marker in encoder.format.guard:
            assert render(messages).count(marker) == render(plain).count(marker)


@pytest.fixture(scope="module")
def adding(with_base: PromptFormats, tokenizer: tokenizers.Tokenizer) -> dict[str, PromptEncoder]:
    """Every format bound to the real tokenizer, as if it were of a model that begins each text with a token."""
    begins = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    bos, eos = begins.token_to_id(BEGIN), begins.token_to_id("<|im_end|>")
    begins.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [(BEGIN, bos)])
    return {name: PromptEncoder(with_base.get(name), begins, eos_id=eos, bos_id=bos) for name in with_base.names()}


@every_format
@QUICK
@given(data=st.data())
def test_a_row_and_a_prompt_hold_the_token_that_the_server_adds_once(
    name: str, data: st.DataObject, adding: dict[str, PromptEncoder]
) -> None:
    encoder = adding[name]
    bos = encoder.tokenizer.token_to_id(BEGIN)
    messages = data.draw(talks(encoder.format))
    assert BEGIN not in encoder.format.text(messages)
    asked = [encoder.encode(exchange.prompt) for exchange in encoder.format.exchanges(messages)]
    for ids in [*(row.ids for row in encoder.rows(messages)), *asked]:
        assert [place for place, token in enumerate(ids) if token == bos] == [0]


@every_format
@QUICK
@given(data=st.data())
def test_later_turns_never_change_how_a_conversation_begins(
    name: str, data: st.DataObject, encoders: dict[str, PromptEncoder]
) -> None:
    """Which covers the preamble: it stands before the first answer, and is chosen by the first turn alone."""
    fmt = encoders[name].format
    messages, other = data.draw(talks(fmt, begins_asked=True)), data.draw(talks(fmt))
    first = messages[: answers(messages)[0]]
    later = other[answers(other)[0] :]
    assert fmt.text([*first, *later]).startswith(fmt.prompt(first))
    assert fmt.prompt([*first, *later, Message("user", "Go on.")]).startswith(fmt.prompt(first))
