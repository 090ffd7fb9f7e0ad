"""Tokens a second of the inference engine: one request, and eight in a batch.

    python benchmarks/inference_decode.py [--model var/models/smollm2-135m-instruct]

Prints two JSON objects: ``inference_decode_tokens_per_s`` and ``inference_decode_tokens_per_s_8``. The engine runs in
bfloat16 on one thread, prompts of 40 tokens, 96 greedy tokens each; the best of three, after a run to warm up.
Baselines: the same model measured on an idle two-core machine before this engine was written, 30 and 167.
"""

from __future__ import annotations

import argparse
import queue
import time
from pathlib import Path
from typing import Final

import orjson

from shortstack.inference.composition import build_parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.engine.answer import Event, Step
from shortstack.inference.engine.engine import Engine
from shortstack.inference.validation import Job, Sampling

ROOT: Final = Path(__file__).resolve().parent.parent
BASELINES: Final = {1: ("inference_decode_tokens_per_s", 30.0), 8: ("inference_decode_tokens_per_s_8", 167.0)}
PROMPT: Final = "Tell a long story about a small town by the sea, its people, and the ships that come and go. " * 3


def tokens_per_second(engine: Engine, prompt: tuple[int, ...], requests: int, tokens: int) -> float:
    """Generated tokens a second, from the first token of the first request to the last of the last."""
    events: queue.Queue[Event] = queue.Queue()
    for _ in range(requests):
        engine.submit(Job(prompt, tokens, (), Sampling()), None, events.put)
    running, generated, began = requests, 0, 0.0
    while running:
        event = events.get(timeout=300)
        if not isinstance(event, Step):
            raise event.error
        began = began or time.perf_counter()
        generated += 1
        running -= event.answer is not None
    return (generated - 1) / (time.perf_counter() - began)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "var" / "models" / "smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    parts = build_parts(InferenceConfig(model_id=arguments.model))
    prompt = tuple(parts.codec.encode(PROMPT)[:40])
    parts.engine.start()
    try:
        tokens_per_second(parts.engine, prompt, 8, 8)
        for requests, (name, baseline) in BASELINES.items():
            value = max(tokens_per_second(parts.engine, prompt, requests, arguments.tokens) for _ in range(3))
            figure = {"name": name, "value": round(value, 1), "unit": "tokens/s", "baseline": baseline}
            print(orjson.dumps({**figure, "ratio": round(value / baseline, 2)}).decode(), flush=True)
    finally:
        parts.engine.stop()


if __name__ == "__main__":
    main()
