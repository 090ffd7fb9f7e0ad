"""The engine against transformers and peft themselves, and its promises about who waits for whom."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from shortstack.inference.composition import build_parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.engine.answer import Answer, Event, Failure, Step
from shortstack.inference.engine.lora import Adapter
from shortstack.inference.errors import GenerationFailed, Rejected
from shortstack.inference.validation import Job, Sampling

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPTS = [b"Once", b"The capital of France is", b"a", b"x" * 70, b"To be or not to be, that is the question", b"12345"]
DEADLINE = 60


@dataclass
class Run:
    """One request's events."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def steps(self) -> list[Step]:
        seen: list[Step] = []
        while not (seen and seen[-1].answer):
            event = self.events.get(timeout=DEADLINE)
            if isinstance(event, Failure):
                raise event.error
            seen.append(event)
        return seen

    def ids(self) -> list[int]:
        return [step.token.id for step in self.steps()]

    def answer(self) -> Answer:
        answer = self.steps()[-1].answer
        assert answer is not None
        return answer


class Bench:
    """An engine on the tiny model."""

    def __init__(self, config: InferenceConfig) -> None:
        self.parts = build_parts(config)
        self.engine = self.parts.engine
        self.metrics = self.parts.metrics

    def ask(self, prompt: bytes, tokens: int, adapter: Adapter | None = None, **sampling: Any) -> Run:
        run = Run()
        job = Job(tuple(prompt), tokens, (), Sampling(**sampling))
        self.engine.submit(job, adapter, run.events.put)
        return run


@pytest.fixture
def bench(tiny_model: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(**settings: Any) -> Bench:
        benches.append(Bench(InferenceConfig(model_id=tiny_model, dtype="float32", **settings)))
        return benches[-1]

    yield build
    for built in benches:
        built.engine.stop()


def reference(model: Any, prompt: bytes, tokens: int) -> tuple[list[int], list[float]]:
    """Greedy ids and log probabilities, one full pass a token, no cache."""
    ids, logprobs = list(prompt), []
    with torch.inference_mode():
        for _ in range(tokens):
            logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(logs.argmax()))
            logprobs.append(float(logs[ids[-1]]))
    return ids[len(prompt) :], logprobs


def test_requests_of_all_lengths_in_one_batch_answer_as_alone(bench: Callable[..., Bench], tiny_model: Path) -> None:
    engine = bench(max_batch_prefill_tokens=16)
    lengths = [40, 25, 60, 30, 12, 50]
    runs = [engine.ask(prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)]
    engine.engine.start()
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for prompt, length, run in zip(PROMPTS, lengths, runs, strict=True):
        steps = run.steps()
        ids, logprobs = reference(model, prompt, length)
        assert [step.token.id for step in steps] == ids
        assert [step.token.logprob for step in steps] == pytest.approx(logprobs, abs=1e-3)


def test_adapters_by_row_equal_peft(
    bench: Callable[..., Bench], make_adapter: Callable[..., Path], tiny_model: Path
) -> None:
    from peft import PeftModel

    folders = {
        "plain": make_adapter(1),
        "rs": make_adapter(2, use_rslora=True, target_modules=["q_proj", "down_proj"]),
        "patterns": make_adapter(3, rank_pattern={"v_proj": 8}, alpha_pattern={"v_proj": 40}),
    }
    engine = bench()
    adapters = {name: engine.parts.adapters.put(name, folder) for name, folder in folders.items()}
    order = [None, "plain", "rs", "patterns", "plain", None]
    runs = [engine.ask(p, 24, adapters[n] if n else None) for p, n in zip(PROMPTS, order, strict=True)]
    engine.engine.start()
    answers = [run.steps() for run in runs]
    base = reference(LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), PROMPTS[1], 24)[0]
    for prompt, name, steps in zip(PROMPTS, order, answers, strict=True):
        model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(model, folders[name]).eval() if name else model
        ids, logprobs = reference(tuned, prompt, 24)
        assert [step.token.id for step in steps] == ids, name
        assert [step.token.logprob for step in steps] == pytest.approx(logprobs, abs=1e-3)
    assert [step.token.id for step in answers[1]] != base


def test_a_request_that_arrives_at_token_50_has_its_first_token_before_the_other_ends(
    bench: Callable[..., Bench],
) -> None:
    engine = bench()
    order: list[str] = []
    ended = threading.Event()

    def second(event: Event) -> None:
        assert isinstance(event, Step)
        order.append("second")

    def first(event: Event) -> None:
        assert isinstance(event, Step)
        order.append("first")
        if order.count("first") == 50:
            engine.engine.submit(Job(tuple(b"late"), 5, (), Sampling()), None, second)
        if event.answer:
            ended.set()

    engine.engine.submit(Job(tuple(b"early"), 200, (), Sampling()), None, first)
    engine.engine.start()
    assert ended.wait(DEADLINE)
    assert order.index("second") <= 52
    assert order.count("second") == 5


def test_a_client_that_leaves_frees_its_slot_within_two_steps(bench: Callable[..., Bench]) -> None:
    engine = bench(max_batch_size=1)
    left_at: list[float] = []
    free_at: list[float] = []
    received_after: list[Event] = []
    done = threading.Event()

    def decoded() -> float:
        return engine.metrics.batch_inference_count.value(method="decode")

    def leaver(event: Event) -> None:
        if left_at:
            received_after.append(event)
        elif decoded() >= 10:
            left_at.append(decoded())
            engine.engine.cancel(sequence)

    def waiter(event: Event) -> None:
        if not free_at:
            free_at.append(decoded())
        if isinstance(event, Step) and event.answer:
            done.set()

    sequence = engine.engine.submit(Job(tuple(b"leaving"), 1000, (), Sampling()), None, leaver)
    engine.engine.submit(Job(tuple(b"waiting"), 3, (), Sampling()), None, waiter)
    engine.engine.start()
    assert done.wait(DEADLINE)
    assert free_at[0] - left_at[0] <= 2
    assert received_after == []


def test_a_long_prompt_does_not_hold_up_a_running_answer(bench: Callable[..., Bench]) -> None:
    engine = bench(max_batch_prefill_tokens=32)
    between: list[str] = []
    done = threading.Event()

    def long_prompt(event: Event) -> None:
        between.append("long")
        if isinstance(event, Step) and event.answer:
            done.set()

    def running(event: Event) -> None:
        between.append("running")
        if between.count("running") == 5:
            engine.engine.submit(Job(tuple(b"y" * 640), 2, (), Sampling()), None, long_prompt)

    engine.engine.submit(Job(tuple(b"run"), 200, (), Sampling()), None, running)
    engine.engine.start()
    assert done.wait(DEADLINE)
    assert 19 <= between.index("long") - 5 <= 25


def test_an_adapter_of_nan_fails_its_own_requests_only(
    bench: Callable[..., Bench], make_adapter: Callable[..., Path]
) -> None:
    engine = bench(max_batch_size=3)
    nan = engine.parts.adapters.put("nan", make_adapter(1, fill=float("nan")))
    alone = engine.ask(PROMPTS[1], 40)
    engine.engine.start()
    expected = alone.ids()
    good = [engine.ask(PROMPTS[1], 40) for _ in range(2)]
    bad = [engine.ask(PROMPTS[0], 40, nan) for _ in range(4)]
    after = engine.ask(PROMPTS[1], 40)
    for run in bad:
        with pytest.raises(GenerationFailed, match="not a number"):
            run.steps()
    assert [run.ids() for run in (*good, after)] == [expected] * 3


def test_a_dropped_adapter_serves_the_request_under_way_to_its_end(
    bench: Callable[..., Bench], make_adapter: Callable[..., Path]
) -> None:
    engine = bench()
    adapters = engine.parts.adapters
    adapter = adapters.put("mine", make_adapter(1))
    alone = engine.ask(PROMPTS[1], 60, adapter)
    engine.engine.start()
    expected = alone.ids()
    run = engine.ask(PROMPTS[1], 60, adapters.get("mine"))
    first = run.events.get(timeout=DEADLINE)
    assert isinstance(first, Step)
    assert adapters.drop("mine") is adapter
    with pytest.raises(Rejected, match="'mine' is not loaded"):
        adapters.get("mine")
    assert [first.token.id, *run.ids()] == expected


def test_the_same_seed_draws_the_same_answer_in_any_company(bench: Callable[..., Bench]) -> None:
    engine = bench()
    sampled = {"seed": 42, "temperature": 1.3, "top_k": 50}
    first = engine.ask(PROMPTS[1], 30, **sampled)
    engine.engine.start()
    expected = first.ids()
    company = [engine.ask(prompt, 50, seed=7) for prompt in PROMPTS]
    assert engine.ask(PROMPTS[1], 30, **sampled).ids() == expected
    assert len([run.ids() for run in company]) == len(PROMPTS)


def test_putting_the_same_adapter_twice_loads_it_once_and_another_replaces_it(
    bench: Callable[..., Bench], make_adapter: Callable[..., Path]
) -> None:
    adapters = bench().parts.adapters
    folder = make_adapter(1)
    first = adapters.put("a", folder)
    assert adapters.put("a", folder) is first
    second = adapters.put("a", make_adapter(2))
    assert adapters.get("a") is second
    assert second.digest != first.digest


@pytest.mark.parametrize(
    "lora",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}, {"bias": "all"}],
)
def test_an_adapter_that_cannot_be_applied_whole_is_refused(
    lora: dict[str, Any], bench: Callable[..., Bench], make_adapter: Callable[..., Path]
) -> None:
    with pytest.raises(Rejected):
        bench().parts.adapters.put("no", make_adapter(1, **lora))


def test_a_misspelt_layer_is_refused_with_the_nearest_name(bench: Callable[..., Bench], broken_adapter: Path) -> None:
    with pytest.raises(Rejected, match='Did you mean "q_proj"'):
        bench().parts.adapters.put("no", broken_adapter)


def test_an_idle_engine_gives_the_memory_of_its_cache_back(bench: Callable[..., Bench]) -> None:
    engine = bench()
    run = engine.ask(PROMPTS[0], 5)
    engine.engine.start()
    assert run.answer().tokens == 5
    assert engine.engine.responsive(60)
