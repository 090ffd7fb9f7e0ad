"""What a publication or a job may ask of the rollout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shortstack.core.errors import Invalid, did_you_mean

__all__ = ["DeployWish", "require_servable"]

_SUFFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIAS: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(@[a-z0-9][a-z0-9-]{0,31})?")


class DeployWish(BaseModel):
    """``{"suffix": "demo", "alias": "support@prod"}``; both may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suffix: str | None = None
    """Part of the model's name, ``ft:BASE:OWNER:SUFFIX:12HEX``; 1 to 64 of letters, digits, ``._-``.
    Without it the dataset's name."""
    alias: str | None = None
    """A name that moves to the new model once it is proven; NAME or NAME@STAGE."""

    @field_validator("suffix")
    @classmethod
    def _suffix(cls, value: str | None) -> str | None:
        if value is not None and not _SUFFIX.fullmatch(value):
            raise ValueError("use 1 to 64 letters, digits, dots, underscores and hyphens, no slash or colon")
        return value

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str | None) -> str | None:
        if value is not None and not _ALIAS.fullmatch(value):
            raise ValueError("use NAME or NAME@STAGE in lower case, for example support@prod")
        return value

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, where: str = "deploy") -> DeployWish:
        """Reads a wish strictly.

        Raises:
            Invalid: an unknown key or a bad value, with the nearest key.
        """
        unknown = sorted(set(value) - set(cls.model_fields))
        if unknown:
            raise Invalid(
                f'"{unknown[0]}" is not a key of deploy',
                where=where,
                remedy=did_you_mean(unknown[0], cls.model_fields),
                param=f"deploy.{unknown[0]}",
            )
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise Invalid(f"{field}: {first['msg']}", where=where, param=f"deploy.{field}") from error


def require_servable(train: Mapping[str, Any], *, serves_merged: bool, where: str) -> None:
    """Refuses, before anything is trained, what the servers of this installation could not serve.

    Args:
        train: the settings of a job that wishes to be deployed.
        serves_merged: whether the servers take whole models, not adapters alone.

    Raises:
        Invalid: every parameter is to be trained, and servers take adapters alone.
    """
    if not serves_merged and train.get("adapter", "lora") is None:
        raise Invalid(
            'a model trained in all its parameters ("adapter": null) cannot be served here: '
            "the server of this installation takes adapters alone",
            where=where,
            remedy='Train with "adapter": "lora", or leave "deploy" out and take the merged weights from the export.',
            param="train.adapter",
        )
