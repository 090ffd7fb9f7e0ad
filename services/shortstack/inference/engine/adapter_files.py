"""Reads an adapter folder in peft's layout, and refuses whatever would not be applied to the last tensor."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shortstack.core.errors import did_you_mean
from shortstack.inference.engine.lora import Adapter, LoraPair
from shortstack.inference.errors import Rejected

__all__ = ["adapter_digest", "read_adapter"]

_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_UNSUPPORTED: Final[Mapping[str, object]] = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "layer_replication": None,
}
"""Config fields whose effect this server does not reproduce, with the value that means "not used"."""


def _files(folder: Path) -> tuple[bytes, bytes]:
    try:
        return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()
    except OSError as error:
        raise Rejected(
            f"the adapter cannot be read: {error}",
            where=f"adapter {folder}",
            remedy="Give a folder with adapter_config.json and adapter_model.safetensors.",
            param="path",
        ) from error


def _digest(config: bytes, weights: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(config).digest() + hashlib.sha256(weights).digest()).hexdigest()


def adapter_digest(folder: Path) -> str:
    """The digest that `read_adapter` would give the folder's present content.

    Raises:
        Rejected: a file is missing.
    """
    return _digest(*_files(folder))


def read_adapter(adapter_id: str, folder: Path, layers: Mapping[str, tuple[int, int]], device: torch.device) -> Adapter:
    """Loads the adapter for a model with linear ``layers`` (name → (in, out) sizes).

    Values are not judged: an adapter with NaN loads, and its requests fail when they run.

    Raises:
        Rejected: a file is missing or broken, a feature or layer cannot be applied, or sizes differ.
    """
    where = f"adapter {folder}"
    raw_config, raw_weights = _files(folder)
    try:
        config = json.loads(raw_config)
        tensors = load_safetensors(raw_weights)
    except (ValueError, SafetensorError) as error:
        raise Rejected(f"the adapter's files are broken: {error}", where=where, param="path") from error
    _check_features(config, where)
    halves = _halves(tensors, layers, where)
    pairs: dict[str, LoraPair] = {}
    for module, (down, up) in halves.items():
        _check_sizes(module, down, up, layers[module], where)
        scale = _scale(config, module, down.shape[0], where)
        pairs[module] = LoraPair(
            down=down.to(device, torch.float32).T.contiguous(),
            up=(up.to(device, torch.float32) * scale).T.contiguous(),
        )
    rank = max(pair.down.shape[1] for pair in pairs.values())
    return Adapter(adapter_id, folder, _digest(raw_config, raw_weights), rank, pairs)


def _check_features(config: dict[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise Rejected(f"peft_type {kind!r} cannot be applied", where=where, remedy="Known: LORA.", param="path")
    for field, unused in _UNSUPPORTED.items():
        value = config.get(field, unused)
        if value != unused and value not in (None, [], {}):
            raise Rejected(
                f"{field}={value!r} cannot be applied",
                where=f"{where}, adapter_config.json",
                remedy=f"Train with {field}={unused!r}, or serve the merged weights.",
                param="path",
            )


def _halves(
    tensors: Mapping[str, Tensor], layers: Mapping[str, tuple[int, int]], where: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module → (A ``[rank, in]``, B ``[out, rank]``); every tensor of the file finds its place."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        module = match["module"] if match else name
        if match is None or module not in layers:
            last = module.rpartition(".")[2]
            known = {layer.rpartition(".")[2] for layer in layers}
            raise Rejected(
                f"the tensor {name!r} changes nothing this server can apply it to",
                where=where,
                remedy=f"Target linear layers. {did_you_mean(last, known)}",
                param="path",
            )
        found.setdefault(module, {})[match["half"]] = tensor
    torn = [module for module, pair in found.items() if len(pair) != 2]
    if torn or not found:
        what = f"{torn[0]} has only one of lora_A and lora_B" if torn else "the adapter has no tensors"
        raise Rejected(what, where=where, remedy="Export it again with peft's save_pretrained.", param="path")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _check_sizes(module: str, down: Tensor, up: Tensor, layer: tuple[int, int], where: str) -> None:
    fits = down.ndim == up.ndim == 2 and (down.shape[1], up.shape[0]) == layer and down.shape[0] == up.shape[1]
    if not fits:
        raise Rejected(
            f"{module} is {layer[0]} → {layer[1]}, but the adapter has A {tuple(down.shape)} and B {tuple(up.shape)}",
            where=where,
            remedy="Load an adapter that was trained on this base model.",
            param="path",
        )


def _scale(config: dict[str, Any], module: str, rank: int, where: str) -> float:
    """peft's scaling: alpha / r, or alpha / √r with rsLoRA; alpha may differ by a pattern on the module name."""
    alpha: Any = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise Rejected(f"lora_alpha is {alpha!r}, not a number", where=f"{where}, adapter_config.json", param="path")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
