"""Families: what each shape of item becomes, and what is wrong with the others."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shortstack.core.errors import Invalid
from shortstack.ingestion.families.registry import FAMILIES, UNKNOWN_FAMILY, detect_family, rename
from shortstack.ingestion.reading.items import Unreadable


def compiled(family: str, item: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, content) of each turn."""
    return [(message.role, message.content) for message in FAMILIES[family].compile(item).messages]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, [("user", "i"), ("assistant", "o")]),
        (
            {"instruction": "i", "input": "c", "output": "o"},
            [("user", "i"), ("context", "c"), ("assistant", "o")],
        ),
        ({"instruction": "", "input": "c", "output": "o"}, [("user", "c"), ("assistant", "o")]),
        ({"instruction": "i", "response": "o"}, [("user", "i"), ("assistant", "o")]),
        ({"output": "o", "input": None}, [("user", ""), ("assistant", "o")]),
        ({"system": "s", "instruction": "i", "output": "o"}, [("system", "s"), ("user", "i"), ("assistant", "o")]),
    ],
)
def test_three_parts_become_user_context_assistant(item: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert compiled("alpaca", item) == compiled("h2ogpt", item) == expected


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "answer": 42}, [("user", "q"), ("assistant", "42")]),
        ({"prompt": "q", "response": "a", "context": "c"}, [("user", "q"), ("context", "c"), ("assistant", "a")]),
    ],
)
def test_pairs_become_a_turn_each(item: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert compiled("prompt_completion", item) == expected


def test_every_speaker_of_sharegpt_has_a_role() -> None:
    speakers = ["system", "human", "gpt", "chatgpt", "bing", "bard", "tool", "observation"]
    item = {"conversations": [{"from": speaker, "value": speaker} for speaker in speakers]}
    assert [role for role, _ in compiled("sharegpt", item)] == [
        "system",
        "user",
        "assistant",
        "assistant",
        "assistant",
        "assistant",
        "tool",
        "tool",
    ]


def test_a_function_call_of_sharegpt_becomes_openais() -> None:
    call = {"name": "search", "arguments": {"q": "rice"}}
    turns = [{"from": "human", "value": "?"}, {"from": "function_call", "value": orjson.dumps(call).decode()}]
    draft = FAMILIES["sharegpt"].compile({"conversations": turns, "tools": '[{"name": "search"}]'})
    calls = orjson.loads(draft.messages[1].tool_calls or "")
    assert calls == [
        {"id": "call_1_0", "type": "function", "function": {"name": "search", "arguments": '{"q":"rice"}'}}
    ]
    assert draft.tools == '[{"name":"search"}]'


def test_messages_keep_weights_names_tools_and_parts() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    item = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": "x", "weight": 0},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
            {"role": "assistant", "content": "y", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "category": "chat",
        "id": 7,
    }
    draft = FAMILIES["messages"].compile(item)
    assert [(m.role, m.content, m.train) for m in draft.messages] == [
        ("system", "s", True),
        ("user", "ab", True),
        ("assistant", "x", False),
        ("assistant", "", True),
        ("tool", "r", True),
        ("assistant", "y", True),
    ]
    assert draft.messages[1].name == "Ann"
    assert orjson.loads(draft.messages[3].tool_calls or "") == calls
    assert orjson.loads(draft.tools or "") == item["tools"]
    assert (draft.category, dict(draft.metadata)) == ("chat", {"id": 7})


@pytest.mark.parametrize(
    ("family", "item", "expected"),
    [
        ("alpaca", {"text": "x"}, "has none of instruction, input, output"),
        ("alpaca", {"instruction": ["x"], "output": "y"}, "instruction is a list"),
        ("prompt_completion", {"text": "x"}, "has no prompt and completion"),
        ("sharegpt", {"conversations": []}, "not a list with turns"),
        ("sharegpt", {"conversations": [{"from": "humn", "value": "x"}]}, 'Did you mean "human"?'),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "x"}]}, "not JSON"),
        ("messages", {"messages": [{"role": "asistant", "content": "x"}]}, 'Did you mean "assistant"?'),
        ("messages", {"messages": [{"role": "user", "content": "x"}]}, "holds no answer"),
        ("messages", {"messages": [{"role": "assistant", "content": None}]}, "content"),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "weight"),
        ("messages", {"messages": [{"role": "user", "content": "x", "weight": 0}]}, "only answers are trained on"),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "contnt": "y"}]}, 'Did you mean "content"?'),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is not text"),
    ],
)
def test_what_is_malformed_says_so_and_what_to_do(family: str, item: dict[str, Any], expected: str) -> None:
    with pytest.raises(Invalid) as refused:
        FAMILIES[family].compile(item)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("item", "family"),
    [
        ({"messages": []}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "a", "response": "b"}, "alpaca"),
        ({"input": "a", "output": "b"}, "h2ogpt"),
        ({"question": "a", "answer": "b"}, "prompt_completion"),
    ],
)
def test_a_family_is_told_by_its_columns_whatever_a_few_odd_items_are(item: dict[str, Any], family: str) -> None:
    assert detect_family([item, item, {"odd": 1}]) == family


def test_a_column_map_makes_any_table_readable() -> None:
    item = rename({"A": "in", "B": "out", "C": 1}, {"A": "input", "B": "output"})
    assert detect_family([item]) == "h2ogpt"
    assert compiled("h2ogpt", item) == [("user", "in"), ("assistant", "out")]


def test_unknown_columns_are_named_with_the_remedy() -> None:
    with pytest.raises(Unreadable, match="foo") as unknown:
        detect_family([{"foo": 1}])
    assert "columns" in unknown.value.remedy
    assert detect_family([]) == UNKNOWN_FAMILY


def test_other_columns_travel_along_within_bounds() -> None:
    item = {"prompt": "q", "completion": "a", "prompt_type": "human_bot", "tags": ["x"], "note": 1, "big": "y" * 5000}
    draft = FAMILIES["prompt_completion"].compile(item)
    assert (draft.prompt_format, draft.tags, dict(draft.metadata)) == ("human_bot", ("x",), {"note": 1})
