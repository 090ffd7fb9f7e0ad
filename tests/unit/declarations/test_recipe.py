"""Recipes: strict, whole, and the same digest for the same meaning."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.declarations.recipe import RECIPES, STEPS, parse_recipe
from shortstack.formatting.steps.registry import STEP_BUILDERS, build_step

NUMBERS = st.integers(min_value=1, max_value=100_000)
STEP = st.one_of(
    st.builds(lambda n: {"step": "length", "min_answer": n}, NUMBERS),
    st.builds(lambda m: {"step": "refusal", "method": m}, st.sampled_from(["opening", "ihop"])),
    st.just({"step": "normalise"}),
    st.builds(lambda p: {"step": "regex", "pattern": p}, st.text("abc", min_size=1, max_size=5)),
)
RECIPE = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text("abc", min_size=1, max_size=8),
        "steps": st.lists(STEP, max_size=4),
        "seed": NUMBERS,
        "order": st.sampled_from(["source", "shuffle"]),
        "deduplicate": st.sampled_from(["exact", "none"]),
        "validation": st.one_of(NUMBERS, st.floats(0, 0.99)),
    },
)


@given(RECIPE)
def test_a_frozen_recipe_reads_back_as_itself(given_recipe: dict[str, Any]) -> None:
    recipe = parse_recipe(given_recipe)
    assert parse_recipe(recipe.json_bytes()) == recipe
    assert parse_recipe(yaml.safe_dump(given_recipe)).digest() == recipe.digest()


def test_the_name_is_no_part_of_what_a_recipe_means() -> None:
    inline = {**RECIPES["default"].model_dump(mode="json"), "name": "mine"}
    assert parse_recipe(inline).digest() == RECIPES["default"].digest()


def test_every_setting_changes_the_digest() -> None:
    digests = {
        parse_recipe(recipe).digest()
        for recipe in (
            {},
            {"seed": 43},
            {"order": "source"},
            {"deduplicate": "none"},
            {"validation": 0.1},
            {"malformed": "fail"},
            {"gates": {"min_kept": 2}},
            {"mix": [{"dataset": "faq", "factor": 0.5}]},
            {"steps": [{"step": "empty"}]},
            {"steps": [{"step": "length"}]},
            {"steps": [{"step": "length", "min_answer": 5}]},
        )
    }
    assert len(digests) == 11


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("defalt", 'Did you mean "default"?'),
        ({"stepz": []}, 'Did you mean "steps"?'),
        ({"steps": [{"step": "lenght"}]}, 'Did you mean "length"?'),
        ({"steps": [{"step": "length", "min_anser": 3}]}, 'Did you mean "min_answer"?'),
        ({"steps": [{"step": "length", "min_answer": -1}]}, "greater than or equal to 0"),
        ({"steps": ["length"]}, 'a mapping with the key "step"'),
        ({"steps": [{"step": "empty", "version": 99}]}, "version 99 is not known"),
        ({"validation": 1.5}, "neither a number of records nor a share"),
        ({"validation": -1}, "validation"),
        ({"gates": {"max_reject": 1}}, 'Did you mean "max_rejected"?'),
        ({"mix": [{"dataset": "No Name"}]}, "is not the name of a dataset"),
        ("steps: [", "not YAML"),
        ({"steps": [{"step": "refusal", "phrases": [" "]}]}, "phrases"),
        ("- a\n- b", "a recipe is a mapping"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_nearest_right_one(recipe: Any, expected: str) -> None:
    with pytest.raises(Invalid, match=r".") as refused:
        parse_recipe(recipe)
    assert expected in str(refused.value)


def test_every_declared_step_can_be_built() -> None:
    assert set(STEP_BUILDERS) == set(STEPS)
    for name in STEPS:
        settings = {"step": name, "pattern": "x"} if name == "regex" else {"step": name}
        (step,) = parse_recipe({"steps": [settings]}).steps
        assert callable(build_step(step))


def test_verbatim_changes_and_drops_nothing() -> None:
    verbatim = RECIPES["verbatim"]
    assert (verbatim.steps, verbatim.deduplicate, verbatim.order, verbatim.malformed) == ((), "none", "source", "fail")
