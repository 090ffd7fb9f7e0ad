"""The contract test against a server that answers from a table: each planted fault is refused, and only those."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Poison, Transient
from shortstack.records.message import Message
from shortstack.serving.contract import MAX_MEAN_DISTANCE, Proof, prove
from shortstack.serving.tgi import Failed, GeneratedToken

PROMPTS = [f"question {n}" for n in range(16)]
NEW_TOKENS = 8
END = 1000


def render(messages: Sequence[Message]) -> str:
    return "".join(f"<{m.role}>{m.content}" for m in messages)


@dataclass
class FakeTgiServer:
    """Weights are a name: the same name gives the same tokens. Adapters change the name."""

    weights: str = "base"
    template: str = "<user>"
    adapters: tuple[str, ...] = ("demo",)
    shift: float = 0.0
    away: bool = False
    fails: Counter[str] = field(default_factory=Counter)
    """Prompt → how often the server fails it before it answers."""
    ends_after: int = 0
    """Tokens before the end token; 0 for no end within what is asked for."""
    runs_on: bool = False
    """It does not know the end token."""
    stop_text: str = "<end>"
    """Text of the end token."""

    def tokenize(self, text: str) -> list[int]:
        if self.away:
            raise Transient("away")
        return [ord(letter) for letter in text]

    def generate(self, prompt: str, new_tokens: int, adapter_id: str, stop: Sequence[str] = ()) -> list[GeneratedToken]:
        if adapter_id and adapter_id not in self.adapters:
            raise Poison(f"the server answers 422: no adapter {adapter_id}")
        if self.fails[prompt] > 0:
            self.fails[prompt] -= 1
            raise Failed("the server answers 424: Request failed during generation")
        tokens = [GeneratedToken(t, p + self.shift) for t, p, _ in said(f"{self.weights}+{adapter_id}", prompt)]
        ends = [*tokens[: self.ends_after], GeneratedToken(END, -0.1)] if self.ends_after else tokens
        if not self.runs_on or self.stop_text in stop:
            return ends
        return [*ends, *tokens[self.ends_after + 1 :]]


def said(weights: str, prompt: str) -> list[tuple[int, float, float]]:
    """(token, log probability, margin) of each position; every fourth is a near-tie."""
    found = []
    for place in range(NEW_TOKENS):
        seed = hashlib.sha256(f"{weights}/{prompt}/{place}".encode()).digest()
        found.append((seed[0], -seed[1] / 256, 0.1 if place % 4 == 3 else 2.0))
    return found


def probes(weights: str = "base+demo") -> dict[str, Any]:
    made = []
    for text in PROMPTS:
        prompt = render([Message("user", text)])
        tokens = [{"id": t, "logprob": p, "margin": m} for t, p, m in said(weights, prompt)]
        ids = [ord(letter) for letter in prompt]
        made.append({"messages": [{"role": "user", "content": text}], "prompt_ids": ids, "tokens": tokens})
    return {"new_tokens": NEW_TOKENS, "eos_ids": [END], "probes": made}


def proof(server: FakeTgiServer, content: dict[str, Any] | None = None, adapter: str = "demo", **more: Any) -> Proof:
    rendered, stop = more.get("render", render), more.get("stop", ())
    return prove(server, content or probes(), rendered, adapter_id=adapter, base=server, stop=stop)


def test_the_right_model_passes_where_its_base_fails() -> None:
    found = proof(FakeTgiServer())
    assert found.model.passed
    assert found.model.confirmed == len(PROMPTS) * NEW_TOKENS
    assert found.model.mean_distance == 0
    assert not found.base.passed
    assert found.measurable


def test_no_adapter_is_refused() -> None:
    # TGI answers an unknown adapter id with the base, silently; the embedded server says 422.
    silent = proof(FakeTgiServer(adapters=("demo",)), adapter="")
    loud = proof(FakeTgiServer(adapters=()))
    assert not silent.model.passed
    assert "in training it was" in silent.model.why
    assert "422" in loud.model.why


def test_another_adapter_is_refused() -> None:
    assert not proof(FakeTgiServer(adapters=("other",)), adapter="other").model.passed


def test_another_template_is_refused() -> None:
    found = proof(FakeTgiServer(), render=lambda messages: f"Q: {messages[0].content}")
    assert "another template" in found.model.why


def test_other_base_weights_under_the_right_adapter_are_refused() -> None:
    assert not proof(FakeTgiServer(weights="base with default rope_theta")).model.passed


def test_unmerged_merged_weights_are_refused() -> None:
    merged = {"content": probes("merged+")}
    assert proof(FakeTgiServer(weights="merged"), adapter="", **merged).model.passed
    assert not proof(FakeTgiServer(weights="base"), adapter="", **merged).model.passed


def ended(after: int) -> dict[str, Any]:
    """Probes whose answers end after so many tokens."""
    content = probes()
    for probe in content["probes"]:
        probe["tokens"][after:] = [{"id": END, "logprob": -0.1, "margin": 2.0}]
    return content


def test_a_server_that_does_not_know_the_end_token_is_refused() -> None:
    assert proof(FakeTgiServer(ends_after=5), ended(5)).model.passed
    found = proof(FakeTgiServer(ends_after=5, runs_on=True), ended(5))
    assert not found.model.passed
    assert "goes on after its end token" in found.model.why


def test_an_answer_may_end_by_a_stop_text_that_chats_send_along() -> None:
    server = FakeTgiServer(ends_after=5, runs_on=True)
    assert proof(server, ended(5), stop=("<end>",)).model.passed
    assert not proof(server, ended(5), stop=("<other>",)).model.passed


def test_an_answer_that_was_cut_off_in_training_may_go_on() -> None:
    content = probes()
    for probe in content["probes"]:
        del probe["tokens"][6:]
    assert proof(FakeTgiServer(), content).model.passed


def test_a_model_that_changed_nothing_passes_and_says_so() -> None:
    found = proof(FakeTgiServer(), probes("base+"), adapter="")
    assert found.model.passed
    assert not found.measurable
    assert found.as_dict()["measurable"] is False


@pytest.mark.parametrize(("shift", "passed"), [(0.05, True), (0.2, False), (math.nan, False)])
def test_log_probabilities_must_be_near(shift: float, passed: bool) -> None:
    found = proof(FakeTgiServer(shift=shift))
    assert found.model.passed is passed
    assert found.as_dict()["model"]["passed"] is passed


def test_a_probe_that_failed_with_somebody_elses_chat_is_asked_again() -> None:
    # TGI fails every request that is batched with one that makes the model raise.
    batch = Counter({render([Message("user", text)]): 1 for text in PROMPTS[:8]})
    found = proof(FakeTgiServer(fails=batch))
    assert found.model.passed, found.model.why
    assert found.model.confirmed == len(PROMPTS) * NEW_TOKENS


@pytest.mark.parametrize(("times", "passed"), [(2, True), (3, False)])
def test_a_probe_that_fails_each_time_refuses_the_model(times: int, passed: bool) -> None:
    found = proof(FakeTgiServer(fails=Counter({render([Message("user", PROMPTS[7])]): times})))
    assert found.model.passed is passed
    assert passed or "424" in found.model.why


def test_a_model_that_fails_every_probe_is_given_up_soon() -> None:
    server = FakeTgiServer(fails=Counter({render([Message("user", text)]): 100 for text in PROMPTS}))
    assert "424" in proof(server).model.why
    assert 100 * len(PROMPTS) - server.fails.total() < 3 * len(PROMPTS)


def test_it_says_which_part_of_the_probes_was_answered() -> None:
    parts: list[float] = []
    server = FakeTgiServer()
    prove(server, probes(), render, adapter_id="demo", base=server, asked=parts.append)
    assert sorted(parts) == [number / len(PROMPTS) for number in range(1, len(PROMPTS) + 1)]


def test_too_few_confirmed_positions_prove_nothing() -> None:
    content = probes()
    for probe in content["probes"]:
        for place, token in enumerate(probe["tokens"]):
            token.update(id=999, margin=0.0) if place == 3 else None
    found = proof(FakeTgiServer(), content)
    assert "only 48 positions" in found.model.why


def test_a_server_that_is_away_says_nothing_about_the_model() -> None:
    with pytest.raises(Transient):
        proof(FakeTgiServer(away=True))


def test_an_export_without_probes_cannot_be_proven() -> None:
    with pytest.raises(Poison, match="no probes"):
        proof(FakeTgiServer(), {"new_tokens": 8, "eos_ids": [], "probes": []})


@given(st.integers(0, 15), st.integers(0, NEW_TOKENS - 1), st.floats(0, 5))
def test_a_token_may_differ_only_where_the_margin_is_small(number: int, place: int, margin: float) -> None:
    content = probes()
    content["probes"][number]["tokens"][place].update(id=999, margin=margin)
    found = proof(FakeTgiServer(), content)
    assert found.model.passed is (margin < 0.5)
    assert found.model.mean_distance <= MAX_MEAN_DISTANCE
