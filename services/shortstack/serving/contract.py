"""The contract between training and serving: a live server must answer the export's probes as they were recorded.

Greedy equality is no test: bf16 alone against bf16 in a batch differs in some answers, by near-ties. So tokens must be
equal up to the first recorded margin under 0.5, where they may part; a difference at a larger margin refuses the model;
at least 64 positions must be confirmed; the mean distance of log probabilities must be at most 0.1. And the base model
must fail the same test, else the training changed nothing that can be measured. And where a recorded answer ended with
an end token, the server must end there, by the token or by the stop texts that chats send along.

Probes share their batches with users' chats, and one request that makes a server raise fails all that are batched with
it. So a probe that a server fails is asked again by itself before the model is refused for it.
Source of the thresholds: docs/architecture.md, "Jobs".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Any, Final

from shortstack.core.errors import Poison
from shortstack.records.message import Message
from shortstack.serving.tgi import Failed, GeneratedToken, TgiServer

__all__ = ["Probe", "Proof", "Verdict", "probes_of", "prove", "run_probes"]

MARGIN: Final = 0.5
"""Logits; below it two dtypes or batch sizes may choose differently."""
MIN_CONFIRMED: Final = 64
MAX_MEAN_DISTANCE: Final = 0.1
"""Nats, over the confirmed positions."""
_OTHER_IDS: Final = "the rendered prompt has other token ids than in training: another template or tokenizer"
_RUNS_ON: Final = "the answer goes on after its end token: the server has other end tokens than training"
_AT_ONCE: Final = 8
_AGAIN: Final = 2
"""How often a probe that a server failed is asked again."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A recorded answer.

    Attributes:
        tokens: id, log probability, margin to the second of each greedy token.
        ended: the last of them is an end token.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    tokens: tuple[tuple[int, float, float], ...]
    ended: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one server did with the probes.

    Attributes:
        passed: it may take traffic.
        why: what it failed by; empty if it passed.
        confirmed: positions with equal tokens.
        mean_distance: mean |Δ log probability| over them; NaN if there are none.
    """

    passed: bool
    why: str
    confirmed: int
    mean_distance: float


@dataclass(frozen=True, slots=True)
class Proof:
    """The model's verdict, and whether the base fails where it passes."""

    model: Verdict
    base: Verdict

    @property
    def measurable(self) -> bool:
        """Whether training changed what the probes can tell."""
        return not self.base.passed

    def as_dict(self) -> dict[str, Any]:
        """For the model's snapshot; not-a-number becomes None."""
        parts = {name: asdict(verdict) for name, verdict in (("model", self.model), ("base", self.base))}
        for part in parts.values():
            if not math.isfinite(part["mean_distance"]):
                part["mean_distance"] = None
        return {**parts, "measurable": self.measurable}


def probes_of(content: Mapping[str, Any]) -> tuple[list[Probe], int]:
    """Probes and their number of new tokens, from ``probes.json``."""
    ends = set(content.get("eos_ids") or ())
    probes = [
        Probe(
            tuple(Message(m["role"], m["content"]) for m in probe["messages"]),
            tuple(probe["prompt_ids"]),
            tuple((t["id"], t["logprob"], t["margin"]) for t in probe["tokens"]),
            ended=bool(probe["tokens"]) and probe["tokens"][-1]["id"] in ends,
        )
        for probe in content["probes"]
    ]
    return probes, int(content["new_tokens"])


@dataclass(slots=True)
class _Tally:
    confirmed: int = 0
    distance: float = 0.0
    why: str = ""
    failed: bool = False
    runs_on: bool = False


def _unheard(*_: float) -> None:
    """For those who do not want to know how far it is."""


def run_probes(
    server: TgiServer,
    probes: Sequence[Probe],
    render: Callable[[Sequence[Message]], str],
    *,
    new_tokens: int,
    adapter_id: str,
    stop: Sequence[str] = (),
    answered: Callable[[], None] = _unheard,
) -> Verdict:
    """Asks a server every probe.

    Args:
        render: the prompt as it will be rendered for chats with this model.
        adapter_id: empty for the server's own weights.
        stop: texts that chats with this model send along to end answers.
        answered: called after each probe, from several threads.

    Raises:
        Transient: the server is away; nothing is said about the model.
    """

    def ask(probe: Probe) -> _Tally:
        prompt = render(probe.messages)
        try:
            if tuple(server.tokenize(prompt)) != probe.prompt_ids:
                return _Tally(why=_OTHER_IDS)
            tally = _compare(probe, server.generate(prompt, new_tokens, adapter_id))
            if tally.runs_on and len(server.generate(prompt, new_tokens, adapter_id, stop)) > len(probe.tokens):
                tally.why = _RUNS_ON
        except (Failed, Poison) as error:
            return _Tally(why=str(error), failed=isinstance(error, Failed))
        answered()
        return tally

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tallies = _once_more(ask, probes, list(pool.map(ask, probes)))
    confirmed = sum(tally.confirmed for tally in tallies)
    mean = sum(tally.distance for tally in tallies) / confirmed if confirmed else math.nan
    why = next((tally.why for tally in tallies if tally.why), "")
    if not why and confirmed < min(MIN_CONFIRMED, sum(len(probe.tokens) for probe in probes)):
        why = f"only {confirmed} positions could be confirmed, {MIN_CONFIRMED} are needed"
    if not why and not mean <= MAX_MEAN_DISTANCE:
        why = f"log probabilities are off by {mean:.3f} in the mean, {MAX_MEAN_DISTANCE} is allowed"
    return Verdict(not why, why, confirmed, mean)


def _once_more(ask: Callable[[Probe], _Tally], probes: Sequence[Probe], tallies: list[_Tally]) -> list[_Tally]:
    """Asks probes that the server failed again, one after the other, until one has failed each time."""
    for place, probe in enumerate(probes):
        for _ in range(_AGAIN):
            if tallies[place].failed:
                tallies[place] = ask(probe)
        if tallies[place].failed:
            break
    return tallies


def _compare(probe: Probe, answer: Sequence[GeneratedToken]) -> _Tally:
    tally = _Tally()
    for place, (token, logprob, margin) in enumerate(probe.tokens):
        given = answer[place] if place < len(answer) else None
        if given is None or given.id != token:
            if not margin < MARGIN:
                said = "nothing" if given is None else str(given.id)
                tally.why = f"token {place + 1} is {said}, in training it was {token} with a margin of {margin:.2f}"
            return tally
        if not math.isfinite(given.logprob):
            tally.why = f"token {place + 1} has a log probability of {given.logprob}"
            return tally
        tally.confirmed += 1
        tally.distance += abs(given.logprob - logprob)
    tally.runs_on = probe.ended and len(answer) > len(probe.tokens)
    return tally


def prove(
    server: TgiServer,
    content: Mapping[str, Any],
    render: Callable[[Sequence[Message]], str],
    *,
    adapter_id: str,
    base: TgiServer,
    stop: Sequence[str] = (),
    asked: Callable[[float], None] = _unheard,
) -> Proof:
    """The whole contract test: the model must pass, and the base should fail.

    Args:
        render: see `run_probes`, as for the others.
        asked: told which part of the model's probes has been answered, from several threads.

    Raises:
        Transient: a server is away.
    """
    probes, new_tokens = probes_of(content)
    if not probes:
        raise Poison("the export has no probes", remedy="Train again; a model without probes cannot be proven.")
    number = count(1)

    def answered() -> None:
        asked(min(1.0, next(number) / len(probes)))

    ask = partial(run_probes, probes=probes, render=render, new_tokens=new_tokens, stop=stop)
    model = ask(server, adapter_id=adapter_id, answered=answered)
    return Proof(model, ask(base, adapter_id=""))
