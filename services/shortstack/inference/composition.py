"""Builds the server's parts from its settings, in the order they stand on each other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from shortstack.core.errors import Fatal
from shortstack.inference.app import Parts
from shortstack.inference.config import InferenceConfig
from shortstack.inference.engine.adapters import Adapters
from shortstack.inference.engine.engine import Engine
from shortstack.inference.engine.model import load_model
from shortstack.inference.errors import Rejected
from shortstack.inference.generation import Generation, Permits
from shortstack.inference.health import HealthCheck
from shortstack.inference.metrics import Metrics
from shortstack.inference.text import TextCodec
from shortstack.inference.validation import Limits

__all__ = ["build_parts"]

_DEFAULT_TOTAL_TOKENS = 4096
_HEALTH_PATIENCE = 60.0


def _limits(config: InferenceConfig, max_positions: int) -> Limits:
    total = config.max_total_tokens or min(_DEFAULT_TOTAL_TOKENS, max_positions)
    longest = config.max_input_tokens or total - 1
    if total > max_positions or longest >= total:
        raise Fatal(
            f"MAX_TOTAL_TOKENS {total} and MAX_INPUT_TOKENS {longest} do not fit the model's {max_positions} positions",
            where=f"MODEL_ID {config.model_id}",
            remedy=f"Set MAX_INPUT_TOKENS < MAX_TOTAL_TOKENS <= {max_positions}.",
        )
    return Limits(longest, total, config.max_stop_sequences, config.max_best_of, config.max_top_n_tokens)


def _version() -> str:
    try:
        return version("shortstack")
    except PackageNotFoundError:
        return "unpackaged"


def build_parts(config: InferenceConfig) -> Parts:
    """Loads tokenizer, model and adapters. The engine is built, not started.

    Raises:
        Fatal: the model, a limit or an adapter named at start cannot be served.
    """
    codec = TextCodec.open(config.model_id)
    model = load_model(config.model_id, config.dtype, config.device, config.omp_num_threads)
    limits = _limits(config, model.max_positions)
    metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens)
    adapters = Adapters(model.layers, model.device)
    for adapter_id, folder in config.lora_adapters.items():
        try:
            adapters.put(adapter_id, folder)
        except Rejected as error:
            raise Fatal(str(error), where="LORA_ADAPTERS") from error
    engine = Engine(
        model, codec, metrics, max_batch=config.max_batch_size, prefill_tokens=config.max_batch_prefill_tokens
    )
    generation = Generation(engine, codec, adapters, limits, Permits(config.max_concurrent_requests), metrics)
    probe = tuple(codec.encode("liveness")[:1])
    return Parts(
        config=config,
        codec=codec,
        engine=engine,
        adapters=adapters,
        generation=generation,
        health=HealthCheck(generation, engine, probe, model.device, _HEALTH_PATIENCE),
        metrics=metrics,
        limits=limits,
        version=_version(),
        compute_type=f"{model.device.type}+optimized",
    )
