"""From the last checkpoint to files that a server of transformers 4.51 reads as they are.

``export/adapter``: the peft adapter. ``export/merged``: the whole model in bfloat16. ``export/probes.json``:
what the model answers. ``export/export.manifest.json``: written last, so that what it names is whole.

What transformers 5 writes by itself breaks a server of 4.51: a tokenizer class it does not know, a rotary
base that falls silently back to 10000, a chat template in a file of its own that it ignores. Hence
`legacy_config` and `tokenizer_config`.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.core.errors import Fatal
from shortstack.prompts.special_tokens import read_json
from shortstack.training.trainer.failure import TrainingFailed
from shortstack.training.trainer.files import digest_of, file_digests, sync_tree, verified, write_json
from shortstack.training.trainer.formats import ServedFormat
from shortstack.training.trainer.model import load_base

__all__ = [
    "EXPORT_MANIFEST",
    "MergeReport",
    "copy_adapter",
    "legacy_config",
    "seal_export",
    "tokenizer_config",
    "whole_export",
    "write_merged",
]

EXPORT_MANIFEST: Final = "export.manifest.json"
_NOT_FOR_SERVERS: Final = ("auto_map", "backend", "is_local", "processor_class", "extra_special_tokens", "name_or_path")
_ADAPTER_KEYS: Final = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
"""What every peft since 0.5 knows; an older one refuses keys that a newer one adds, all of which are off here."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """How many weight tensors of the merged model differ from the base's, both in bfloat16."""

    tensors: int
    changed: int


def copy_adapter(checkpoint: Path, folder: Path, base_name: str) -> None:
    """The adapter of a checkpoint, naming its base by name: the path is this machine's alone."""
    folder.mkdir(parents=True)
    shutil.copyfile(checkpoint / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = _read(checkpoint / "adapter_config.json")
    kept = {key: config[key] for key in _ADAPTER_KEYS if key in config}
    # peft writes a set in whatever order; the file's digest names the model.
    kept["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", {**kept, "base_model_name_or_path": base_name})


def write_merged(base: Path, checkpoint: Path, folder: Path, served: ServedFormat, *, adapter: bool) -> MergeReport:
    """Writes the whole trained model in bfloat16.

    An adapter is merged in float32 onto the unquantised base, and rounded once.

    Raises:
        TrainingFailed: a weight is not finite, or not one differs from the base.
    """
    import torch

    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(base, dtype=torch.float32), checkpoint).merge_and_unload()
    else:
        model = load_base(checkpoint, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    report = _compare(base, model)
    model.save_pretrained(folder)
    del model
    gc.collect()
    _write_configs(base, folder, served)
    return report


def _compare(base: Path, merged: Any) -> MergeReport:
    import torch

    reference = load_base(base, dtype=torch.bfloat16)
    before = dict(reference.named_parameters())
    changed = 0
    for name, tensor in merged.named_parameters():
        if not torch.isfinite(tensor).all():
            raise TrainingFailed(
                "non_finite_weights", f"{name} holds NaN or infinite values", remedy="Lower learning_rate."
            )
        changed += not torch.equal(tensor, before[name])
    if not changed:
        raise TrainingFailed(
            "merge_unchanged",
            f"none of {len(before)} weight tensors differs from the base after merging",
            remedy="The run was too short or learning_rate too low to move a bfloat16 weight.",
        )
    return MergeReport(tensors=len(before), changed=changed)


def _write_configs(base: Path, folder: Path, served: ServedFormat) -> None:
    config = legacy_config(_read(folder / "config.json"), eos_ids=served.eos_ids)
    write_json(folder / "config.json", config)
    generation = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": served.eos_ids,
        "pad_token_id": config.get("pad_token_id"),
    }
    given = {key: value for key, value in generation.items() if value is not None}
    write_json(folder / "generation_config.json", given)
    shutil.copyfile(base / "tokenizer.json", folder / "tokenizer.json")
    declared = read_json(base / "special_tokens_map.json") | read_json(base / "tokenizer_config.json")
    tokenizer = tokenizer_config(declared, served)
    write_json(folder / "tokenizer_config.json", tokenizer)
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    write_json(folder / "special_tokens_map.json", {name: tokenizer[name] for name in names if tokenizer.get(name)})


def legacy_config(config: Mapping[str, Any], *, eos_ids: Sequence[int]) -> dict[str, Any]:
    """A model's ``config.json`` in the form of transformers 4.

    ``dtype`` becomes ``torch_dtype``; ``rope_parameters`` becomes ``rope_theta`` and ``rope_scaling`` at the top
    level, which transformers 5 reads as well. Linear interpolation, which TGI's rotary code passes over, is
    written as the ``llama3`` type with constants that give the same inverse frequencies.
    """
    legacy = {key: value for key, value in config.items() if key != "dtype" and not key.startswith("_")}
    legacy["torch_dtype"] = "bfloat16"
    legacy["use_cache"] = True
    legacy["eos_token_id"] = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:  # else it is nested by layer type, for which transformers 4 has no common form
        del legacy["rope_parameters"]
        legacy["rope_theta"] = rope.pop("rope_theta")
        legacy["rope_scaling"] = _rope_scaling(rope)
    return legacy


def _rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return {
            "rope_type": "llama3",
            "factor": rope["factor"],
            "original_max_position_embeddings": 1,
            "low_freq_factor": 1,
            "high_freq_factor": 4,
        }
    return dict(rope)


def tokenizer_config(config: Mapping[str, Any], served: ServedFormat) -> dict[str, Any]:
    """A ``tokenizer_config.json`` for 4.51: its generic class over ``tokenizer.json``, and the format's template."""
    kept = {key: value for key, value in config.items() if key not in _NOT_FOR_SERVERS}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list) and not kept.get("additional_special_tokens"):
        kept["additional_special_tokens"] = extra
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    kept["clean_up_tokenization_spaces"] = False
    kept["chat_template"] = served.chat_template
    if served.eos_token is not None:
        kept["eos_token"] = served.eos_token
    return kept


def seal_export(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Makes an export whole: everything durable, then the manifest with the digest of every file.

    Adds ``files``, ``digest`` (over them), ``name`` (its first 12 hex digits: the served model's) and
    ``weights_digest`` (over the merged weights alone). None of them depends on where or when it was trained.
    """
    sync_tree(folder)
    files = file_digests(folder, leave_out=[EXPORT_MANIFEST])
    weights = {name: sha for name, sha in files.items() if name.startswith("merged/") and name.endswith(".safetensors")}
    if not weights:
        raise Fatal("the export holds no merged weights", where=str(folder))
    digest = digest_of(files)
    whole = {
        **manifest,
        "files": {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in files.items()},
        "digest": digest,
        "name": digest[:12],
        "weights_digest": digest_of(weights),
    }
    write_json(folder / EXPORT_MANIFEST, whole)
    return whole


def whole_export(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole export, each file compared with its digest; None where it is not whole."""
    if not (folder / EXPORT_MANIFEST).is_file():
        return None
    manifest = _read(folder / EXPORT_MANIFEST)
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return manifest if verified(folder, files) else None


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value
