"""Recipes: what is done to a dataset between its publication and its version, declared and frozen by digest.

Ingestion resolves and freezes a recipe, formatting runs its steps, assembly its order, split, mix and gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from shortstack.core.digest import canonical_json, identity
from shortstack.core.errors import Invalid, did_you_mean
from shortstack.core.identity import NAME
from shortstack.declarations.strict import invalid_from

__all__ = [
    "RECIPES",
    "STEPS",
    "EmptyStep",
    "Gates",
    "LanguageStep",
    "LengthStep",
    "MixIn",
    "NormaliseStep",
    "Recipe",
    "RefusalStep",
    "RegexStep",
    "StepSettings",
    "frozen_recipe",
    "parse_recipe",
    "recipe_object",
]

Role = Literal["system", "context", "user", "assistant", "tool"]
Phrase = Annotated[str, Field(pattern=r"\S", max_length=200)]


class StepSettings(BaseModel):
    """Settings of one step. A step whose verdicts change for equal settings raises ``VERSION``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    VERSION: ClassVar[int] = 1
    step: str
    version: int = 0

    @model_validator(mode="before")
    @classmethod
    def _version(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        version = given.get("version", cls.VERSION)
        if version != cls.VERSION:
            raise ValueError(f"step version {version} is not known here; this stack has version {cls.VERSION}")
        return {**given, "version": cls.VERSION}


class NormaliseStep(StepSettings):
    """Brings text to one form: Unicode, line ends, control characters, outer white space, end markers."""

    step: Literal["normalise"] = "normalise"
    unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    newlines: bool = True
    control: bool = True
    strip: bool = True
    end_markers: tuple[str, ...] = ("<|endoftext|>", "</s>", "<|im_end|>")
    ftfy: bool = False


class EmptyStep(StepSettings):
    """Rejects a record without a user's turn, without an answer, or with an empty one."""

    step: Literal["empty"] = "empty"


class LengthStep(StepSettings):
    """Rejects by length in characters: of all answers together, of any single turn, of the whole conversation."""

    step: Literal["length"] = "length"
    min_answer: int = Field(1, ge=0)
    max_turn: int = Field(100_000, ge=1)
    max_total: int = Field(400_000, ge=1)


class RefusalStep(StepSettings):
    """Rejects answers that decline the task (docs/filters.md, "Refusal")."""

    step: Literal["refusal"] = "refusal"
    method: Literal["opening", "ihop"] = "opening"
    phrases: tuple[Phrase, ...] = Field((), max_length=500)


class RegexStep(StepSettings):
    """Rejects a record when a pattern (RE2 syntax) is found in a turn of ``roles``; ``keep`` turns it round."""

    step: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=2000)
    roles: tuple[Role, ...] = ("user", "assistant")
    keep: bool = False
    reason: str = Field("pattern", min_length=1, max_length=64)


class LanguageStep(StepSettings):
    """Detects the language of user's and assistant's turns, writes it down, and keeps only ``keep`` if given."""

    step: Literal["language"] = "language"
    keep: tuple[str, ...] = ()
    min_score: float = Field(0.5, ge=0, le=1)
    min_characters: int = Field(20, ge=1)


STEPS: Final[dict[str, type[StepSettings]]] = {
    "normalise": NormaliseStep,
    "empty": EmptyStep,
    "length": LengthStep,
    "refusal": RefusalStep,
    "regex": RegexStep,
    "language": LanguageStep,
}
"""Every step by name. Formatting has one implementation for each (a test holds them equal)."""

AnyStep = Annotated[
    NormaliseStep | EmptyStep | LengthStep | RefusalStep | RegexStep | LanguageStep, Field(discriminator="step")
]


class MixIn(BaseModel):
    """Another dataset mixed in: ``factor`` 0.5 takes half of its records, 2 takes each twice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    factor: float = Field(1.0, gt=0, le=100)

    @field_validator("dataset")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f'"{value}" is not the name of a dataset')
        return value


class Gates(BaseModel):
    """When a balanced dataset is good enough to be ready by itself; otherwise it is held for `datasets accept`.

    Attributes:
        max_rejected: largest share of records rejected by steps, 0 to 1.
        min_kept: fewest records kept.
        max_failed: most records that a step could not judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rejected: float = Field(0.9, ge=0, le=1)
    min_kept: int = Field(1, ge=0)
    max_failed: int = Field(0, ge=0)


class Recipe(BaseModel):
    """A recipe, whole: every field has its value, every step its version.

    Attributes:
        steps: run in this order on each record alone.
        malformed: ``reject`` sets a malformed line aside; ``fail`` fails the dataset at the first one.
        deduplicate: ``exact`` keeps the first of records with equal content.
        order: ``shuffle`` orders by a hash of (seed, record id), ``source`` keeps the order of publication.
        validation: records (an integer) or share (below 1) that are split off for evaluation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("inline", min_length=1, max_length=64)
    steps: tuple[AnyStep, ...] = ()
    malformed: Literal["reject", "fail"] = "reject"
    deduplicate: Literal["exact", "none"] = "exact"
    order: Literal["source", "shuffle"] = "shuffle"
    seed: int = Field(42, ge=0, le=2**53)
    validation: int | float = 0
    mix: tuple[MixIn, ...] = ()
    gates: Gates = Gates()

    @field_validator("validation")
    @classmethod
    def _validation(cls, value: int | float) -> int | float:
        if isinstance(value, bool) or value < 0:
            raise ValueError("validation is a number of records, or a share from 0 to below 1")
        if isinstance(value, float) and value >= 1:
            if not value.is_integer():
                raise ValueError(f"validation {value} is neither a number of records nor a share below 1")
            return int(value)
        return value

    @model_serializer(mode="wrap")
    def _plain(self, handler: Any) -> dict[str, Any]:
        whole: dict[str, Any] = handler(self)
        # Pydantic would write a union of models by their common base; each writes itself instead.
        return whole | {"steps": [step.model_dump(mode="json") for step in self.steps]}

    def json_bytes(self) -> bytes:
        """Canonical JSON of the whole recipe with its name: what a publication carries."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Identity of everything that decides the output; the name is not part of it."""
        return identity("recipe", self.model_dump(mode="json", exclude={"name"}))


RECIPES: Final[dict[str, Recipe]] = {
    "default": Recipe(
        name="default",
        steps=(
            NormaliseStep(version=1),
            EmptyStep(version=1),
            LengthStep(version=1),
            RefusalStep(version=1),
        ),
    ),
    "verbatim": Recipe(name="verbatim", malformed="fail", deduplicate="none", order="source"),
}
"""Recipes that a publication can name. ``verbatim`` changes and drops nothing (OpenAI's files API)."""


def recipe_object(digest: str) -> str:
    """Object key of the frozen recipe."""
    return f"recipes/{digest}.json"


def frozen_recipe(recipe_json: bytes) -> bytes:
    """What is kept at `recipe_object`, of `Recipe.json_bytes`: all that the digest covers, so not the name."""
    return canonical_json({key: value for key, value in orjson.loads(recipe_json).items() if key != "name"})


def parse_recipe(given: str | bytes | Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """A recipe from its name, from YAML or JSON text, or from a mapping.

    Raises:
        Invalid: an unknown name, step or field (with the nearest known one), or a value out of range.
    """
    if isinstance(given, str) and given in RECIPES:
        return RECIPES[given]
    loaded = _load(given, where) if isinstance(given, str | bytes) else dict(given)
    if isinstance(loaded, str):
        raise Invalid(f'recipe "{loaded}" is not known', where=where, remedy=did_you_mean(loaded, RECIPES), param=where)
    if not isinstance(loaded, dict):
        raise Invalid(f"a recipe is a mapping, not {type(loaded).__name__}", where=where, param=where)
    _check_steps(loaded.get("steps", []), where)
    try:
        return Recipe.model_validate(loaded)
    except ValidationError as error:
        raise invalid_from(error, Recipe, where=where) from error


def _load(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise Invalid("nested too deep", where=where, remedy="A recipe has a few levels.", param=where) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is none of
        remedy = "Write a recipe in YAML or JSON, and text that looks like a date or number in quotes."
        raise Invalid(f"not YAML: {error}", where=where, remedy=remedy, param=where) from error


def _check_steps(steps: Any, where: str) -> None:
    """Names an unknown step or field of a step before pydantic's union does so less plainly."""
    if not isinstance(steps, list | tuple):
        raise Invalid(f"steps is a list, not {type(steps).__name__}", where=where, param=f"{where}.steps")
    for index, step in enumerate(steps):
        at = f"{where}.steps[{index}]"
        if isinstance(step, StepSettings):
            continue
        if not isinstance(step, dict) or not isinstance(step.get("step"), str):
            raise Invalid(
                'a step is a mapping with the key "step"', where=where, remedy=did_you_mean("", STEPS), param=at
            )
        name = step["step"]
        if name not in STEPS:
            raise Invalid(f'step "{name}" is not known', where=at, remedy=did_you_mean(name, STEPS), param=f"{at}.step")
        for key in step:
            if key not in STEPS[name].model_fields:
                known = [field for field in STEPS[name].model_fields if field not in ("step", "version")]
                raise Invalid(
                    f'step {name} has no field "{key}"',
                    where=at,
                    remedy=did_you_mean(str(key), known),
                    param=f"{at}.{key}",
                )
