"""Remedies."""

from __future__ import annotations

from shortstack.core.errors import did_you_mean


def test_the_nearest_comes_before_all_the_others() -> None:
    assert did_you_mean("lora_rr", ["zeta", "lora_r", "adapter"]) == (
        'Did you mean "lora_r"? Known: adapter, lora_r, zeta.'
    )


def test_where_none_is_near_all_are_listed() -> None:
    assert did_you_mean("?", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("?", []) == "Known: none."
