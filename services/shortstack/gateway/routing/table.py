"""The routes: which models there are, where they answer, and which names lead to them. Immutable and pure."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shortstack.gateway.errors import ApiError

__all__ = ["Alias", "ModelPhase", "RouteTable", "ServedModel"]

_RETRY_LOADING_S: Final = 5
_RETRY_UNSYNCED_S: Final = 2
_FINE_TUNE: Final = "ft:"


class ModelPhase(StrEnum):
    """How far a model's rollout is."""

    LOADING = "loading"
    PROVING = "proving"
    SERVED = "served"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and where it answers.

    Attributes:
        name: its id, which never changes.
        owner: whose it is; others' fine-tunes are not seen.
        phase: only a served model takes traffic.
        message: what is waited for, or why it was refused.
        progress: 0 to 1, while it loads.
        created: seconds since 1970.
        url: base URL of its TGI-wire server.
        adapter_id: adapter to name there, or empty.
        prompt_format: name of the format it was trained on.
        tokenizer: object key of its tokenizer.json.
        tokenizer_config: object key of its tokenizer_config.json.
        max_input_tokens: most prompt tokens; 0 for no limit of its own.
        max_total_tokens: most tokens of prompt and answer together.
        stop: strings that end an answer in its format.
    """

    name: str
    owner: str = ""
    phase: ModelPhase = ModelPhase.SERVED
    message: str = ""
    progress: float = 0.0
    created: int = 0
    url: str = ""
    adapter_id: str = ""
    prompt_format: str = ""
    tokenizer: str = ""
    tokenizer_config: str = ""
    max_input_tokens: int = 0
    max_total_tokens: int = 0
    stop: tuple[str, ...] = ()

    def seen_by(self, owner: str) -> bool:
        """Base models are everyone's; a fine-tune is its owner's alone."""
        return not self.name.startswith(_FINE_TUNE) or self.owner in ("", owner)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that moves over models: (model, weight), weights above 0."""

    name: str
    owner: str
    weights: tuple[tuple[str, int], ...]
    created: int = 0

    def seen_by(self, owner: str) -> bool:
        """An alias is its owner's alone; one without an owner is everyone's."""
        return self.owner in ("", owner)

    def order(self, draw: str) -> list[str]:
        """Its models in the order to try them: the first by weight and by the hash of ``draw``, then the rest.

        The same ``draw`` gives the same model as long as the weights stand.
        """
        total = sum(weight for _, weight in self.weights)
        if not total:
            return []
        point = int.from_bytes(hashlib.sha256(f"{self.name}\0{draw}".encode()).digest()[:8]) % total
        for index, (_, weight) in enumerate(self.weights):
            point -= weight
            if point < 0:
                return [model for model, _ in (self.weights[index:] + self.weights[:index])]
        return []


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes at one moment.

    Attributes:
        models: by name.
        aliases: by name.
        fallbacks: the operator's other names of base models, used where no model has the name and no alias of that name
            leads to a served one.
        synced: whether serving has ever told all it has.
    """

    models: Mapping[str, ServedModel] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    synced: bool = False

    def visible(self, owner: str) -> list[ServedModel]:
        """Served models that ``owner`` may call, by name."""
        found = [one for one in self.models.values() if one.phase is ModelPhase.SERVED and one.seen_by(owner)]
        return sorted(found, key=lambda one: one.name)

    def names(self, owner: str) -> dict[str, ServedModel | Alias]:
        """Every name that ``owner`` may ask for now: models, aliases and fallbacks that lead to a served model."""
        named: dict[str, ServedModel | Alias] = {one.name: one for one in self.visible(owner)}
        for alias in self.aliases.values():
            if alias.seen_by(owner) and any(model in named for model, _ in alias.weights):
                named.setdefault(alias.name, alias)
        for name, target in self.fallbacks.items():
            if target in named:
                named.setdefault(name, named[target])
        return named

    def resolve(self, name: str, owner: str, draw: str) -> ServedModel:
        """The model that answers ``name`` now.

        Args:
            name: a model's or an alias' name; empty: the only or the first base model.
            owner: who asks.
            draw: chooses among an alias' models.

        Raises:
            ApiError: 404, no such model, or it was refused or withdrawn; 503, it is loading, or nothing is known yet.
        """
        candidates = [model for one in self._lead(name, owner, draw) if (model := self.models.get(one))]
        for model in candidates:
            if model.phase is ModelPhase.SERVED:
                return model
        if not candidates:
            raise self._unknown(name, owner)
        raise _not_served(candidates[0])

    def _lead(self, name: str, owner: str, draw: str) -> list[str]:
        if not name:
            bases = [one.name for one in self.visible(owner) if not one.name.startswith(_FINE_TUNE)]
            return bases[:1]
        if name in self.models:
            return [name] if self.models[name].seen_by(owner) else []
        alias = self.aliases.get(name)
        if alias is not None and alias.seen_by(owner):
            led = [one for one in alias.order(draw) if one in self.models and self.models[one].seen_by(owner)]
            # A job that wishes for an operator's name as its alias takes it once its model is served, and not before.
            if name not in self.fallbacks or any(self.models[one].phase is ModelPhase.SERVED for one in led):
                return led
        return [self.fallbacks[name]] if name in self.fallbacks else []

    def _unknown(self, name: str, owner: str) -> ApiError:
        if not self.synced:
            return ApiError(
                503,
                "The gateway has not heard from the serving service yet, so it knows no models.",
                type="service_unavailable",
                code="routes_unknown",
                retry_after_s=_RETRY_UNSYNCED_S,
            )
        near = difflib.get_close_matches(name, list(self.names(owner)), n=1, cutoff=0.3)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        return ApiError(
            404,
            f"The model `{name}` does not exist or you do not have access to it.{hint} GET /v1/models lists them.",
            param="model",
            code="model_not_found",
        )


def _not_served(model: ServedModel) -> ApiError:
    why = f" {model.message.rstrip('.')}." if model.message else ""
    if model.phase in (ModelPhase.LOADING, ModelPhase.PROVING):
        return ApiError(
            503,
            f"The model `{model.name}` is {model.phase}, {model.progress:.0%} done.{why} Try again in a moment.",
            type="service_unavailable",
            code="model_loading",
            param="model",
            retry_after_s=_RETRY_LOADING_S,
            extra={"state": str(model.phase), "progress": model.progress},
        )
    return ApiError(
        404,
        f"The model `{model.name}` was {model.phase}.{why}",
        param="model",
        code="model_not_found",
        extra={"state": str(model.phase)},
    )
