"""A causal language model of transformers, run on rows of one batch with an adapter for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from shortstack.core.errors import Fatal
from shortstack.inference.engine.kv_rows import KeyValueRows, KeyValueShape
from shortstack.inference.engine.lora import Adapter, make_adaptable

__all__ = ["CausalModel", "load_model"]


class CausalModel:
    """The model with its cache. Used by one thread only."""

    def __init__(self, module: Any, device: torch.device) -> None:
        config = module.config
        self._module = module.eval().requires_grad_(False)
        self.device = device
        self.dtype: torch.dtype = module.dtype
        self.max_positions = int(config.max_position_embeddings)
        self._adapter_rows, self.layers = make_adaptable(module)
        heads = config.num_attention_heads
        self.rows = KeyValueRows(
            KeyValueShape(
                layers=config.num_hidden_layers,
                heads=getattr(config, "num_key_value_heads", None) or heads,
                width=getattr(config, "head_dim", None) or config.hidden_size // heads,
                dtype=self.dtype,
                device=device,
            )
        )

    def read_prompt(self, row: int, start: int, ids: Sequence[int], adapter: Adapter | None) -> Tensor:
        """Reads a piece of a prompt into ``row``, from position ``start``; logits ``[1, vocab]`` after it."""
        positions, mask = self.rows.aim_at_prompt(row, start, len(ids))
        return self._forward(torch.tensor([list(ids)], device=self.device), positions, mask, [adapter])

    def next_tokens(self, last: Sequence[int], lengths: Sequence[int], adapters: Sequence[Adapter | None]) -> Tensor:
        """One step of rows 0 … n-1: each row's last token stands at ``lengths[row]``; logits ``[n, vocab]``."""
        positions, mask = self.rows.aim_at_batch(lengths)
        return self._forward(torch.tensor(last, device=self.device)[:, None], positions, mask, adapters)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        self._adapter_rows.aim(adapters, self.device)
        try:
            output = self._module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.rows,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            self._adapter_rows.release()
        logits: Tensor = output.logits[:, -1]
        return logits


def load_model(folder: Path, dtype: str, device: str, threads: int) -> CausalModel:
    """Loads ``folder`` (Hugging Face layout); nothing is fetched.

    Raises:
        Fatal: the folder is no model, or one whose attention this server's cache does not serve.
    """
    torch.set_num_threads(threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    where = f"MODEL_ID {folder}"
    if not (folder / "config.json").is_file():
        raise Fatal("there is no config.json", where=where, remedy="Give a folder in Hugging Face layout.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
            raise Fatal(f"attention of kind {sorted(kinds)} cannot be served", where=where, remedy="Use TGI for it.")
        if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
            # Its frequencies change with the longest row of a batch, so answers would depend on the company.
            raise Fatal("rope_type longrope cannot be served in a batch", where=where, remedy="Use TGI for it.")
        module: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Fatal(f"the model cannot be loaded: {error}", where=where, remedy="Export it again.") from error
    return CausalModel(module.to(name), torch.device(name))
