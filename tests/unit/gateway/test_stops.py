"""Stop text is cut the same way however the text arrives."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from shortstack.gateway.chat.stops import StopCutter

TEXT = st.text("abE\n", max_size=40)
STOPS = st.lists(st.text("abE\n", min_size=1, max_size=4), max_size=3)


def cut_whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The law, written plainly: look after each character whether a stop string has just become complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS)
def test_any_cut_into_tokens_gives_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    cutter = StopCutter(stops)
    sent = "".join(cutter.feed(piece) for piece in pieces) + cutter.flush()
    assert (sent, cutter.stopped) == cut_whole("".join(pieces), stops)


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    cutter = StopCutter(stops)
    given_text = sent = ""
    for piece in pieces:
        given_text, sent = given_text + piece, sent + cutter.feed(piece)
        if cutter.stopped:
            break
        held = given_text[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_comes_after_a_stop() -> None:
    cutter = StopCutter(["END"])
    assert [cutter.feed("a EN"), cutter.feed("D b"), cutter.feed("c")] == ["a ", "", ""]
    assert cutter.flush() == ""
