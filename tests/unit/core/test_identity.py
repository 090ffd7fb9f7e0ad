"""Ids, as people give them: whole, or as a table shows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.core.errors import Invalid
from shortstack.core.identity import begun_by

IDS = st.sets(st.text("ab", min_size=10, max_size=12), min_size=1)


@given(IDS, st.data())
def test_an_id_is_found_by_itself_and_by_what_begins_it_alone(ids: set[str], data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(sorted(ids)))
    beginning = one[: data.draw(st.integers(8, len(one)))]
    assert begun_by(one, ids, param="run") == one
    if beginning in ids or sum(other.startswith(beginning) for other in ids) == 1:
        assert begun_by(beginning, ids, param="run") in {one, beginning}
    else:
        with pytest.raises(Invalid, match="ids begin with") as caught:
            begun_by(beginning, ids, param="run")
        assert caught.value.param == "run"


def test_a_short_word_is_no_beginning() -> None:
    assert begun_by("0123456", ["0123456789ab"], param="run") is None
    assert begun_by("", ["0123456789ab"], param="run") is None
    assert begun_by("01234567", ["0123456789ab"], param="run") == "0123456789ab"
    assert begun_by("01234568", ["0123456789ab"], param="run") is None
