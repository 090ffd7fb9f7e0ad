"""Publication messages: strict, and told apart by what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shortstack.core.errors import Invalid
from shortstack.declarations.publication import (
    FAMILIES,
    CompleteMessage,
    PartMessage,
    PointerMessage,
    RetryMessage,
    WholeMessage,
    parse_publication,
    publication_schema,
)
from shortstack.ingestion.families.registry import FAMILIES as COMPILED_FAMILIES
from shortstack.ingestion.reading.readers import READERS

VALID: dict[str, tuple[type, dict[str, Any]]] = {
    "short pointer": (PointerMessage, {"dataset": "faq", "source": "faq.jsonl"}),
    "columns by their other name": (
        PointerMessage,
        {"dataset": "faq", "source": "faq.csv", "data_col_dict": {"A": "input", "B": "output"}},
    ),
    "pointer": (
        PointerMessage,
        {
            "dataset": "faq",
            "source": {"uris": ["a/*.jsonl", "b.csv"]},
            "format": "alpaca",
            "columns": {"A": "input", "B": "output"},
            "recipe": {"steps": []},
            "train": {"learning_rate": 1e-4},
            "deploy": {"alias": "support@prod"},
            "job": "ftjob-abc",
        },
    ),
    "whole": (WholeMessage, {"dataset": "faq", "records": [{"prompt": "a", "completion": "b"}]}),
    "part": (PartMessage, {"dataset": "faq", "upload": "u1", "seq": 0, "records": [{}]}),
    "complete": (CompleteMessage, {"dataset": "faq", "upload": "u1", "complete": True, "records": 3}),
    "retry": (RetryMessage, {"dataset": "faq", "retry": "0" * 32}),
}

INVALID: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown key": ({"dataset": "faq", "source": "a", "licence": "MIT"}, 'Did you mean "license"?', "licence"),
    "unknown key of source": ({"dataset": "faq", "source": {"url": "a"}}, 'Did you mean "uri"?', "source.url"),
    "misspelt dataset": ({"datset": "faq", "source": "a"}, 'Did you mean "dataset"?', "datset"),
    "no records": ({"dataset": "faq"}, "a source, records, or an upload", "source"),
    "bad name": ({"dataset": "FAQ!", "source": "a"}, '"dataset"', "dataset"),
    "unknown family": (
        {"dataset": "faq", "source": "a", "format": "alpacca"},
        'Did you mean "alpaca"?',
        "format",
    ),
    "complete without a number": (
        {"dataset": "faq", "upload": "u", "complete": True},
        '"records" is missing',
        "records",
    ),
    "part without a place": ({"dataset": "faq", "upload": "u", "records": [{}]}, '"seq" is missing', "seq"),
    "deploy without train": ({"dataset": "faq", "source": "a", "deploy": {}}, '"deploy" needs "train"', "deploy"),
    "two kinds of address": ({"dataset": "faq", "source": {"uri": "a", "uris": ["b"]}}, "either", "source"),
    "columns twice": ({"dataset": "faq", "source": "a", "columns": {}, "data_col_dict": {}}, "give one", None),
    "columns that are none": ({"dataset": "faq", "source": "a", "data_col_dict": "A"}, '"columns"', "columns"),
    "empty": ({"dataset": "faq", "records": []}, "records", "records"),
}


@pytest.mark.parametrize("name", VALID)
def test_each_kind_is_told_by_what_it_holds_and_fits_the_published_schema(name: str) -> None:
    kind, message = VALID[name]
    assert type(parse_publication(message)) is kind
    jsonschema.validate(message, publication_schema())


@pytest.mark.parametrize("name", INVALID)
def test_a_wrong_message_is_refused_with_the_field_and_what_to_do(name: str) -> None:
    message, expected, param = INVALID[name]
    with pytest.raises(Invalid) as refused:
        parse_publication(message)
    assert expected in str(refused.value)
    assert refused.value.param == param


def test_columns_may_go_by_the_name_that_h2ogpt_has_for_them() -> None:
    wish = {"dataset": "faq", "upload": "u", "complete": True, "records": 3}
    for given in (wish, {"dataset": "faq", "records": [{}]}, {"dataset": "faq", "source": "faq.csv"}):
        columns = {"A": "input", "B": "output"}
        assert parse_publication({**given, "data_col_dict": columns}) == parse_publication(
            {**given, "columns": columns}
        )


def test_bytes_that_are_no_json_object_are_refused() -> None:
    for value in (b"", b"{", b"[]", b"\xff"):
        with pytest.raises(Invalid):
            parse_publication(value)


def test_the_committed_schema_is_the_one_the_models_say(repository: Path) -> None:
    committed = json.loads((repository / "proto" / "schemas" / "datasets.ingest.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(publication_schema()))


def test_what_may_be_named_is_what_can_be_read() -> None:
    assert set(FAMILIES) == set(COMPILED_FAMILIES)
    source = publication_schema()["$defs"]["Source"]["properties"]["file_format"]
    assert set(source["anyOf"][0]["enum"]) == set(READERS)


@pytest.mark.parametrize("name", ["Bad Name!", "-x", "x-"])
def test_what_is_no_name_is_told_the_rule_in_words(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_publication({"dataset": name, "source": "a"})
    assert f'"{name}" is not a name. Use 1 to 64 of a-z' in str(refused.value)
    assert "[a-z" not in str(refused.value)
    assert refused.value.param == "dataset"
