"""What a publication wishes, checked against everything that is declared, before anything is done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shortstack.core.digest import canonical_json, identity
from shortstack.core.errors import Invalid, did_you_mean
from shortstack.declarations.base_models import BaseModels
from shortstack.declarations.deploy import DeployWish, require_servable
from shortstack.declarations.patterns import check_patterns
from shortstack.declarations.publication import PublicationMessage
from shortstack.declarations.recipe import RECIPES, Recipe, parse_recipe
from shortstack.declarations.train import TrainConfig, refuse_what_is_set_here
from shortstack.prompts.formats import BASE

__all__ = ["RecipeReader", "Wish", "WishChecker"]

_MAX_WISH = 64 * 1024


class RecipeReader(Protocol):
    """Reads the text of a recipe at an address that a publication names."""

    def __call__(self, uri: str, owner: str) -> bytes:
        """The bytes; raises `Poison` where the address may not be read."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked publication, without its records.

    Attributes:
        family, file_format: empty to detect.
        train_json, deploy_json: canonical JSON; empty where absent.
    """

    owner: str
    dataset: str
    recipe: Recipe
    family: str = ""
    file_format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt_format: str = ""
    license: str = ""
    train_json: str = ""
    deploy_json: str = ""
    job: str = ""

    def source_identity(self, sha256: str) -> str:
        """What makes a pinned source the same for a publication: its bytes, and how they are to be read.

        The same file read by another column map is another dataset, so the map is part of the identity.
        """
        reading = (self.file_format, self.family, dict(self.columns), self.prompt_format, self.license)
        return identity("source", sha256, *reading)

    @property
    def columns_json(self) -> str:
        """The column map as canonical JSON; empty where there is none."""
        return canonical_json(dict(self.columns)).decode() if self.columns else ""


class WishChecker:
    """Checks names against what is declared. Pure but for the recipe reader.

    Args:
        prompt_formats: names of declared prompt formats.
        bases: the base models that may be trained.
        read_recipe: for ``{"recipe": {"uri": …}}``.
        serves_merged: whether the servers here take whole models, not adapters alone.
    """

    def __init__(
        self,
        prompt_formats: Sequence[str],
        bases: BaseModels,
        read_recipe: RecipeReader,
        *,
        serves_merged: bool = False,
    ) -> None:
        self._formats = (*prompt_formats, BASE)
        self._bases = bases
        self._read_recipe = read_recipe
        self._serves_merged = serves_merged

    @property
    def prompt_formats(self) -> tuple[str, ...]:
        """Names that a publication, or a row of it, may give."""
        return self._formats

    def check(self, message: PublicationMessage, owner: str, *, file_format: str | None = None) -> Wish:
        """Everything a message wishes but its records.

        Raises:
            Poison: a name is unknown (with the nearest known one), or a setting is wrong.
        """
        where = f"dataset {message.dataset}"
        if message.train is not None and message.deploy is not None:
            require_servable(message.train, serves_merged=self._serves_merged, where=where)
        if message.prompt_format is not None:
            self._known("prompt format", message.prompt_format, self._formats, "prompt_format", where)
        return Wish(
            owner=owner,
            dataset=message.dataset,
            recipe=self._recipe(message.recipe, owner),
            family=message.format or "",
            file_format=file_format or "",
            columns=message.columns or {},
            prompt_format=message.prompt_format or "",
            license=message.license or "",
            train_json=self._train(message.train, message.prompt_format, where),
            deploy_json=self._deploy(message.deploy),
            job=message.job or "",
        )

    def _recipe(self, given: str | dict[str, Any] | None, owner: str) -> Recipe:
        if given is None:
            return RECIPES["default"]
        text: str | bytes | dict[str, Any] = given
        where = "recipe"
        if isinstance(given, dict) and set(given) == {"uri"}:
            uri = given["uri"]
            if not isinstance(uri, str):
                raise Invalid(f'"recipe.uri" is {type(uri).__name__}, not text', param="recipe.uri")
            text, where = self._read_recipe(uri, owner), f"recipe {uri}"
        recipe = parse_recipe(text, where=where)
        check_patterns(recipe, where=where)
        return recipe

    def _train(self, given: dict[str, Any] | None, prompt_format: str | None, where: str) -> str:
        if given is None:
            return ""
        config = TrainConfig.parse(given)
        refuse_what_is_set_here(given, where=where)
        if config.base_model is not None:
            self._known("base model", config.base_model, self._bases.known(), "train.base_model", where)
        if config.lora_target_modules:
            base = self._bases.get(config.base_model) if config.base_model else self._bases.default()
            base.require_layers(config.lora_target_modules, where=where)
        if config.chat_template is not None:
            self._template(config.chat_template, prompt_format, where)
        packed = canonical_json(given)
        if len(packed) > _MAX_WISH:
            raise Invalid(f'"train" is {len(packed)} bytes; at most {_MAX_WISH}', where=where, param="train")
        return packed.decode()

    def _template(self, given: str, prompt_format: str | None, where: str) -> None:
        """The settings' name of the prompt format; it may repeat the publication's, and not contradict it."""
        self._known("prompt format", given, self._formats, "train.chat_template", where)
        if prompt_format is not None and given != prompt_format:
            raise Invalid(
                f'"train.chat_template" is "{given}", and "prompt_format" is "{prompt_format}"',
                where=where,
                remedy="Leave chat_template out of train.",
                param="train.chat_template",
            )

    @staticmethod
    def _deploy(given: dict[str, Any] | None) -> str:
        if given is None:
            return ""
        DeployWish.parse(given)
        return canonical_json(given).decode()

    @staticmethod
    def _known(kind: str, name: str, known: Sequence[str], param: str, where: str) -> None:
        if name not in known:
            remedy = did_you_mean(name, known)
            raise Invalid(f'{kind} "{name}" is not known here', where=where, remedy=remedy, param=param)
