"""Whatever a stranger writes into a publication is taken or refused by name; nothing else comes out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.core.errors import Invalid, Poison
from shortstack.declarations.base_models import BaseModels
from shortstack.declarations.deploy import DeployWish
from shortstack.declarations.publication import PublicationMessage, parse_publication
from shortstack.declarations.recipe import STEPS, Recipe
from shortstack.declarations.train import TrainConfig
from shortstack.ingestion.publishing.wishes import Wish, WishChecker
from shortstack.ingestion.sources.policy import SourcePolicy
from shortstack.storage.blobs import MemoryBlobStore

CHECKER = WishChecker(["chatml", "plain"], BaseModels({"tiny": Path("absent")}), lambda uri, owner: b"")
FIELDS = sorted({field for step in STEPS.values() for field in step.model_fields})

ODD = '2001-99-99|25:00:00|2001-01-01 |0b|0o9|1_e|.nan|!!binary zz|&a |*a|[|{|}|]|: |\n|\t|\0|<<: |\'|"\\ud800"|"'
YAML = st.lists(st.sampled_from([*ODD.split("|"), "steps: ", "seed: ", "- ", "1" * 5000, "[" * 3000]), max_size=8).map(
    "".join
)
VALUE = st.sampled_from(
    [None, 0, -1, 1e308, "", [], {}, "x" * 10, "(", "(?=x)y", True, [1], ["("], [" "], {"a": 1}, 2**63, "\ud7ff", 1.5]
)


def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), VALUE, max_size=3)


STEP = st.builds(lambda name, rest: {**rest, "step": name}, st.sampled_from(sorted(STEPS)), some(FIELDS))
RECIPE = YAML | some(list(Recipe.model_fields)) | st.builds(lambda steps: {"steps": steps}, st.lists(STEP, max_size=2))
MESSAGE = st.fixed_dictionaries(
    {"dataset": st.just("faq"), "source": st.just("a.jsonl")},
    optional={
        "recipe": RECIPE,
        "train": some(list(TrainConfig.model_fields)),
        "deploy": some(list(DeployWish.model_fields)),
        "columns": VALUE,
        "data_col_dict": VALUE,
        "license": VALUE,
        "job": VALUE,
        "format": VALUE,
        "retry": VALUE,
        "upload": VALUE,
    },
)


def check(message: dict[str, Any]) -> Wish | None:
    parsed = parse_publication(orjson.dumps(message))
    return CHECKER.check(parsed, "default") if isinstance(parsed, PublicationMessage) else None


@settings(max_examples=300, deadline=None)
@given(MESSAGE)
def test_a_message_is_taken_or_refused(message: dict[str, Any]) -> None:
    with suppress(Poison):
        check(message)


@pytest.mark.parametrize(
    "recipe",
    ["seed: 2001-99-99", "a: 2001-01-01 25:00:00", "seed: " + "1" * 5000, "[" * 3000, "{a: " * 2000],
    ids=["date", "time", "number", "list", "map"],
)
def test_yaml_that_names_what_there_is_not_is_refused_with_its_place(recipe: str) -> None:
    with pytest.raises(Invalid) as refused:
        check({"dataset": "faq", "source": "a.jsonl", "recipe": recipe})
    assert (refused.value.where, refused.value.param) == ("recipe", "recipe")
    assert refused.value.remedy


@pytest.mark.parametrize("pattern", ["(", "(?=x)y", "(a)\\1", "((x{1000}){1000}){1000}"])
def test_a_pattern_that_formatting_cannot_run_is_refused_before_it_is_frozen(pattern: str) -> None:
    steps = [{"step": "empty"}, {"step": "regex", "pattern": pattern}]
    with pytest.raises(Invalid, match="not an RE2 expression") as refused:
        check({"dataset": "faq", "source": "a.jsonl", "recipe": {"steps": steps}})
    assert refused.value.param == "recipe.steps[1].pattern"


@pytest.mark.parametrize(
    ("wrong", "param", "remedy"),
    [
        ({"train": {"chat_template": "chatmll"}}, "train.chat_template", 'Did you mean "chatml"'),
        (
            {"train": {"chat_template": "plain"}, "prompt_format": "chatml"},
            "train.chat_template",
            "Leave chat_template",
        ),
        ({"train": {"lora_target_modules": ["q_prj"]}}, "train.lora_target_modules", 'Did you mean "q_proj"'),
        ({"train": {"datasets": [{"path": "other"}]}}, "train.datasets", "mix"),
        ({"train": {"output_dir": "/etc"}}, "train.output_dir", "Leave it out"),
    ],
    ids=["format", "two formats", "layer", "datasets", "folder"],
)
def test_what_would_fail_in_training_or_mean_nothing_is_refused(
    tmp_path: Path, wrong: dict[str, Any], param: str, remedy: str
) -> None:
    (tmp_path / "manifest.json").write_text('{"linear_layers": ["q_proj", "v_proj"]}')
    checker = WishChecker(["chatml", "plain"], BaseModels({"tiny": tmp_path}), lambda uri, owner: b"")

    def checked(message: dict[str, Any]) -> Wish:
        parsed = parse_publication({"dataset": "faq", "source": "a.jsonl", **message})
        assert isinstance(parsed, PublicationMessage)
        return checker.check(parsed, "default")

    with pytest.raises(Invalid) as refused:
        checked(wrong)
    assert (refused.value.where, refused.value.param) == ("dataset faq", param)
    assert remedy in refused.value.remedy
    right = {"chat_template": "chatml", "lora_target_modules": ["self_attn.q_proj"]}
    assert checked({"train": right, "prompt_format": "chatml"}).train_json


ADDRESS = st.lists(
    st.sampled_from(
        ["file://", "blob://", "**", "*", "?", "[", "]", "x", "/", "..", ".", "%00", "%5b", ":", "@", "a" * 300]
    ),
    max_size=7,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(ADDRESS)
def test_an_address_is_resolved_or_refused(tmp_path_factory: pytest.TempPathFactory, address: str) -> None:
    policy = SourcePolicy([tmp_path_factory.getbasetemp()], MemoryBlobStore())
    with suppress(Poison):
        policy.resolve(address, "default")


@pytest.mark.parametrize("uri", ["faq/**.jsonl", "file://[x"])
def test_an_address_that_is_none_says_how_to_write_it(tmp_path_factory: pytest.TempPathFactory, uri: str) -> None:
    policy = SourcePolicy([tmp_path_factory.getbasetemp()], MemoryBlobStore())
    with pytest.raises(Invalid) as refused:
        policy.resolve(uri, "default")
    assert refused.value.where == f"source {uri}"
    assert refused.value.remedy


def test_a_stack_without_a_base_model_says_so_to_a_wish_to_train() -> None:
    checker = WishChecker(["chatml"], BaseModels({}), lambda uri, owner: b"")
    message = {"dataset": "faq", "source": "a.jsonl", "train": {"lora_target_modules": ["q_proj"]}}
    parsed = parse_publication(orjson.dumps(message))
    assert isinstance(parsed, PublicationMessage)
    with pytest.raises(Invalid, match="no base model is declared"):
        checker.check(parsed, "default")
