"""The models that may be fine-tuned and served as they are: a table that the operator declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from shortstack.core.digest import file_sha256, identity
from shortstack.core.errors import Fatal, Invalid, NotFound, did_you_mean

__all__ = ["BaseModel", "BaseModels"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on local disk, in Hugging Face layout.

    Attributes:
        name: how requests name it.
        path: its folder.
    """

    name: str
    path: Path

    def digest(self) -> str:
        """Identity of its files: of (name, sha256) of each, from its manifest where it has one, else by reading them.

        Raises:
            NotFound: the folder is missing or empty.
        """
        manifest = self._manifest()
        if manifest:
            files = manifest["files"]
            return identity("base model", sorted((name, entry["sha256"]) for name, entry in files.items()))
        found = sorted(path for path in self.path.glob("*") if path.is_file())
        if not found:
            raise NotFound(
                f"no files in {self.path}",
                where=f"base model {self.name}",
                remedy="On a cluster it was not imported yet: see its Job base-models; ask again when that has ended. "
                "Else set SHORTSTACK_BASE_MODELS to folders that hold models in Hugging Face layout.",
            )
        return identity("base model", [(path.name, file_sha256(path)) for path in found])

    def linear_layers(self) -> frozenset[str]:
        """Last names of its linear layers (``q_proj``), from its manifest where that names them; empty without any.

        Else by the headers of its safetensors files. A header is its length as 8 bytes, little-endian, then JSON;
        source: safetensors' README.
        """
        manifest = self._manifest()
        if "linear_layers" in manifest:
            return frozenset(manifest["linear_layers"])
        names: set[str] = set()
        for path in self.path.glob("*.safetensors"):
            with path.open("rb") as file:
                header = orjson.loads(file.read(int.from_bytes(file.read(8), "little")))
            matrices = [name for name, entry in header.items() if len(entry.get("shape", ())) == 2]
            names |= {name.split(".")[-2] for name in matrices if name.endswith(".weight") and "embed" not in name}
        return frozenset(names)

    def require_layers(self, targets: Iterable[str], *, where: str) -> None:
        """Raises Invalid, with the nearest name, for a target of an adapter that is no linear layer of this model."""
        layers = self.linear_layers()
        for target in targets:
            if layers and target.rpartition(".")[2] not in layers:
                raise Invalid(
                    f'"{target}" is no linear layer of {self.name}',
                    where=where,
                    remedy=did_you_mean(target, layers),
                    param="train.lora_target_modules",
                )

    def _manifest(self) -> dict[str, Any]:
        """What its ``manifest.json`` says; empty if it has none."""
        path = self.path / _MANIFEST
        if not path.is_file():
            return {}
        content: dict[str, Any] = orjson.loads(path.read_bytes())
        return content


class BaseModels:
    """Base models by name, and aliases under which clients may ask for them (``gpt-4o-mini`` → a local base)."""

    def __init__(self, folders: Mapping[str, Path], aliases: Mapping[str, str] | None = None) -> None:
        self._models = {name: BaseModel(name, path) for name, path in folders.items()}
        self._aliases = dict(aliases or {})
        for alias, name in self._aliases.items():
            if name not in self._models:
                raise Fatal(
                    f'alias "{alias}" names "{name}", which is no base model',
                    where="SHORTSTACK_MODEL_ALIASES",
                    remedy=did_you_mean(name, self._models),
                )

    def names(self) -> tuple[str, ...]:
        """Names of the declared models, in order."""
        return tuple(self._models)

    def default(self) -> BaseModel:
        """The one that is trained where a request names none: the first declared.

        Raises:
            Invalid: none is declared.
        """
        if not self._models:
            raise Invalid(
                "no base model is declared here",
                remedy="An operator declares them by SHORTSTACK_BASE_MODELS.",
                param="train.base_model",
            )
        return next(iter(self._models.values()))

    def known(self) -> tuple[str, ...]:
        """Everything that `get` takes: names, then aliases."""
        return (*self._models, *self._aliases)

    def get(self, name: str, *, param: str = "model") -> BaseModel:
        """The model that ``name`` or an alias names.

        Raises:
            Invalid: neither; the message lists what there is, the nearest by name.
        """
        resolved = self._aliases.get(name, name)
        if resolved not in self._models:
            raise Invalid(
                f'base model "{name}" is not known here',
                remedy=f"{did_you_mean(name, self.known())} "
                "An operator adds models by SHORTSTACK_BASE_MODELS and aliases by SHORTSTACK_MODEL_ALIASES.",
                param=param,
            )
        return self._models[resolved]
