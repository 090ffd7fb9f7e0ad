"""The body of ``POST /v1/fine_tuning/jobs``, read strictly: what is not done here is refused by name. Pure.

Fields and ranges: OpenAI's published OpenAPI document and ``openai``'s ``JobCreateParams``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shortstack.core.errors import Invalid, did_you_mean
from shortstack.declarations.deploy import DeployWish
from shortstack.gateway.chat.fields import integer, required_string
from shortstack.gateway.errors import ApiError, invalid, unsupported

__all__ = ["AUTO", "JobWish", "read_job"]

AUTO: Final = "auto"
DEFAULT_SEED: Final = 42
_METHODS: Final = ("supervised",)
_KNOWN: Final = (
    "hyperparameters",
    "integrations",
    "metadata",
    "method",
    "model",
    "seed",
    "suffix",
    "training_file",
    "validation_file",
)
_METADATA_MAX: Final = 16
_METADATA_KEY_MAX: Final = 64
_METADATA_VALUE_MAX: Final = 512
_RANGES: Final[Mapping[str, tuple[type, float, float]]] = {
    "n_epochs": (int, 1, 50),
    "batch_size": (int, 1, 256),
    "learning_rate_multiplier": (float, 1e-6, 1e4),
}


@dataclass(frozen=True, slots=True)
class JobWish:
    """A fine-tuning job as a client asks for it.

    Attributes:
        hyperparameters: of `_RANGES`' names, each ``"auto"`` or a number.
        metadata: None and {} are told apart only here; both read as none.
    """

    model: str
    training_file: str
    suffix: str | None = None
    seed: int = DEFAULT_SEED
    metadata: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, str | float] = field(default_factory=dict)


def read_job(body: Mapping[str, Any]) -> JobWish:
    """Reads the request.

    Raises:
        ApiError: 400, naming the field.
    """
    for name in body:
        if name not in _KNOWN:
            raise ApiError(
                400,
                f"Unrecognized request argument supplied: {name}. {did_you_mean(name, _KNOWN)}",
                param=name,
                code="unknown_parameter",
            )
    if body.get("validation_file") is not None:
        raise unsupported("validation_file", "Evaluation on a second file is not offered yet; leave it out.")
    if body.get("integrations"):
        raise unsupported("integrations", "Metrics are in the job's events; leave it out.")
    seed = integer(body, "seed", 0, (1 << 31) - 1)
    return JobWish(
        model=required_string(body, "model"),
        training_file=required_string(body, "training_file"),
        suffix=_suffix(body.get("suffix")),
        seed=DEFAULT_SEED if seed is None else seed,
        metadata=_metadata(body.get("metadata")),
        hyperparameters=_hyperparameters(body),
    )


def _suffix(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise invalid("Invalid type for 'suffix': expected a string.", "suffix", "invalid_type")
    try:
        return DeployWish.parse({"suffix": value}).suffix
    except Invalid as error:
        raise invalid(f"Invalid 'suffix': {error.what}.", "suffix", "invalid_value") from error


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise invalid("Invalid type for 'metadata': expected an object of strings.", "metadata", "invalid_type")
    too_long = any(len(key) > _METADATA_KEY_MAX or len(one) > _METADATA_VALUE_MAX for key, one in value.items())
    if len(value) > _METADATA_MAX or too_long:
        raise invalid(
            f"Invalid 'metadata': at most {_METADATA_MAX} pairs, keys of at most {_METADATA_KEY_MAX} and values of at "
            f"most {_METADATA_VALUE_MAX} characters.",
            "metadata",
            "invalid_value",
        )
    return dict(value)


def _hyperparameters(body: Mapping[str, Any]) -> dict[str, str | float]:
    """Of ``method.supervised``, or the older top-level field; both at once contradict each other."""
    old, method = body.get("hyperparameters"), body.get("method")
    if method is None:
        return _ranged(_object(old, "hyperparameters"), "hyperparameters")
    method = _object(method, "method")
    kind = method.get("type")
    if kind not in _METHODS:
        if kind is None:
            raise invalid("Missing required parameter: 'method.type'.", "method.type", "missing_required_parameter")
        raise unsupported("method.type", f"'{kind}' is not offered; use 'supervised'.")
    if old:
        raise invalid(
            "Send 'hyperparameters' inside 'method' or at the top, not both.",
            "hyperparameters",
            "invalid_parameter_combination",
        )
    for name in method:
        if name not in ("type", *_METHODS) and method[name] is not None:
            raise unsupported(f"method.{name}", "Use 'supervised'.")
    supervised = _object(method.get("supervised"), "method.supervised")
    where = "method.supervised.hyperparameters"
    return _ranged(_object(supervised.get("hyperparameters"), where), where)


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    return value


def _ranged(given: Mapping[str, Any], where: str) -> dict[str, str | float]:
    for name in given:
        if name not in _RANGES:
            raise unsupported(f"{where}.{name}", did_you_mean(name, _RANGES))
    return {name: _one(given.get(name), name, f"{where}.{name}") for name in _RANGES}


def _one(value: Any, name: str, where: str) -> str | float:
    kind, low, high = _RANGES[name]
    if value is None or value == AUTO:
        return AUTO
    numeric = isinstance(value, int) if kind is int else isinstance(value, int | float)
    if isinstance(value, bool) or not numeric or not low <= value <= high:
        wanted = "an integer" if kind is int else "a number"
        raise invalid(
            f"Invalid '{where}': expected 'auto' or {wanted} from {low:g} to {high:g}.", where, "invalid_value"
        )
    number: float = value
    return number
