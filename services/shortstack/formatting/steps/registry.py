"""Every step by name: settings → the step that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shortstack.declarations.recipe import StepSettings
from shortstack.formatting.steps.language import Language
from shortstack.formatting.steps.normalise import Normalise
from shortstack.formatting.steps.pattern import Regex
from shortstack.formatting.steps.refusal import Refusal
from shortstack.formatting.steps.shape import Empty, Length
from shortstack.formatting.steps.step import Step

__all__ = ["STEP_BUILDERS", "build_step"]

# Each builder takes the settings that `declarations.recipe.STEPS` has under the same name.
STEP_BUILDERS: Final[dict[str, Callable[[Any], Step]]] = {
    "normalise": Normalise,
    "empty": Empty,
    "length": Length,
    "refusal": Refusal,
    "regex": Regex,
    "language": Language,
}


def build_step(settings: StepSettings) -> Step:
    """The step that ``settings`` describe.

    Raises:
        Invalid: a setting cannot work (a pattern that is no RE2 expression).
    """
    return STEP_BUILDERS[settings.step](settings)
