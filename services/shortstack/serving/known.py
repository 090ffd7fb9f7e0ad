"""Models and aliases at one moment, and what may be asked of them: at the API's edge, and when a request is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Conflict, Invalid, NotFound, did_you_mean
from shortstack.declarations.deploy import DeployWish
from shortstack.messages.v1 import serving_pb2 as sv

__all__ = ["OVER", "Known", "in_order"]

OVER: Final = frozenset({sv.MODEL_STATE_REFUSED, sv.MODEL_STATE_WITHDRAWN})
"""States in which a model takes no traffic until it is opened anew."""


def in_order(records: Mapping[str, sv.ModelRecord]) -> dict[str, sv.ModelRecord]:
    """Records in the order to tell them, so that a reader who takes one after the other never finds a way lost.

    Models first, so that no alias names one that is not known as served; then aliases; then models that are over, which
    an alias may have named until then.
    """

    def rank(key: str) -> tuple[int, str]:
        record = records[key]
        if record.WhichOneof("record") == "alias":
            return 1, key
        return 2 if record.model.state in OVER else 0, key

    return {key: records[key] for key in sorted(records, key=rank)}


@dataclass(frozen=True, slots=True)
class Known:
    """Models and aliases by name."""

    models: Mapping[str, sv.ModelSnapshot]
    aliases: Mapping[str, sv.AliasSnapshot]

    @classmethod
    def of(cls, records: Iterable[sv.ModelRecord]) -> Known:
        """What snapshots of the state topic tell."""
        models: dict[str, sv.ModelSnapshot] = {}
        aliases: dict[str, sv.AliasSnapshot] = {}
        for record in records:
            if record.WhichOneof("record") == "model":
                models[record.model.name] = record.model
            else:
                aliases[record.alias.alias] = record.alias
        return cls(models, aliases)

    def require(self, owner: str, name: str) -> sv.ModelSnapshot:
        """The owner's model of that name, or a base.

        Raises:
            NotFound: there is none; names the nearest.
        """
        model = self.models.get(name)
        if model is None or (model.owner and model.owner != owner):
            mine = [m.name for m in self.models.values() if m.owner in ("", owner)]
            raise NotFound(f'no model "{name}"', remedy=did_you_mean(name, mine), param="model")
        return model

    def check_weights(self, owner: str, alias: str, weights: Sequence[sv.Weight]) -> None:
        """Raises Invalid, NotFound or Conflict unless the alias may be set so."""
        DeployWish.parse({"alias": alias}, where="alias")
        if not weights or sum(weight.weight for weight in weights) != 100:
            raise Invalid("weights must add up to 100", where=f"alias {alias}", param="weights")
        known = self.aliases.get(alias)
        if known is not None and known.owner != owner:
            raise Conflict(f'alias "{alias}" belongs to another owner', param="alias")
        for weight in weights:
            model = self.require(owner, weight.model)
            if model.state != sv.MODEL_STATE_SERVED:
                raise Conflict(
                    f'model "{weight.model}" is not served',
                    where=f"alias {alias}",
                    remedy="See where it is with: shortstack models list",
                )

    def check_unused(self, name: str) -> None:
        """Raises Conflict if an alias sends traffic to the model."""
        using = [a.alias for a in self.aliases.values() if any(w.model == name for w in a.weights)]
        if using:
            raise Conflict(
                f'alias {", ".join(sorted(using))} sends traffic to "{name}"',
                remedy="Move it to another model first: shortstack models traffic ALIAS MODEL=100",
            )
