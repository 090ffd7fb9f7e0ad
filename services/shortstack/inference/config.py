"""Settings of the inference server: TGI's environment names, so that one environment starts either."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["InferenceConfig"]


class InferenceConfig(BaseSettings):
    """What the server reads at start. Every field is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, protected_namespaces=())

    model_id: Path = Field(description="Folder of the model in Hugging Face layout; nothing is fetched from a hub.")
    hostname: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 takes a free one and logs it.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="Type of the weights in memory.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes CUDA where there is one.")
    omp_num_threads: int = Field(1, ge=1, description="CPU threads of one matrix product; more only when idle cores.")
    max_concurrent_requests: int = Field(128, ge=1, description="Requests at once; beyond it 429, without a queue.")
    max_best_of: int = Field(2, ge=1, description="Largest `best_of`.")
    max_stop_sequences: int = Field(16, ge=0, description="Most `stop` entries a request may have.")
    max_top_n_tokens: int = Field(5, ge=0, description="Largest `top_n_tokens`.")
    max_input_tokens: int | None = Field(None, ge=1, description="Longest prompt; unset: MAX_TOTAL_TOKENS - 1.")
    max_total_tokens: int | None = Field(
        None, ge=2, description="Longest prompt and answer together; unset: what the model has, at most 4096."
    )
    max_batch_size: int = Field(16, ge=1, description="Requests decoded in one step; the others wait their turn.")
    max_batch_prefill_tokens: int = Field(
        256, ge=1, description="Prompt tokens read in one step, so that a long prompt does not hold up the others."
    )
    payload_limit: int = Field(2_000_000, ge=1, description="Largest request body, in bytes.")
    keep_alive_seconds: float = Field(15.0, gt=0, description="Silence on a stream before a comment is sent.")
    graceful_termination_timeout: float = Field(90.0, ge=0, description="Seconds for streams under way after SIGTERM.")
    lora_adapters: Annotated[dict[str, Path], NoDecode] = Field(
        default_factory=dict, description="Adapters at start: `id=/folder,other=/folder`."
    )
    api_key: str | None = Field(None, description="Bearer key that guards the POST routes and the adapters.")

    @field_validator("lora_adapters", mode="before")
    @classmethod
    def _split_adapters(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        bare = [name for name, sign, path in pairs if not (name and sign and path)]
        if bare:
            raise ValueError(f"{bare[0]!r} names no folder; write it as id=/path/of/adapter")
        return {name: path for name, _, path in pairs}

    @model_validator(mode="after")
    def _input_fits_total(self) -> InferenceConfig:
        if self.max_input_tokens and self.max_total_tokens and self.max_input_tokens >= self.max_total_tokens:
            raise ValueError("MAX_INPUT_TOKENS must be less than MAX_TOTAL_TOKENS, or no token can be generated")
        return self
