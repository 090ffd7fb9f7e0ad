from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shortstack.local.supervisor import BackOff

LIVES = st.lists(st.floats(0, 59), min_size=1, max_size=40)


@given(LIVES)
def test_each_early_death_waits_at_least_as_long_as_the_one_before_up_to_the_limit(lives: list[float]) -> None:
    back_off = BackOff()
    deaths, waits = 0, []
    for lived in lives:
        deaths = back_off.deaths(deaths, lived)
        waits.append(back_off.wait_s(deaths))
    assert waits == sorted(waits)
    assert waits[0] == back_off.first_s
    assert max(waits) <= back_off.limit_s


@given(LIVES, st.floats(60, 1e6))
def test_a_long_life_is_forgiven(lives: list[float], long: float) -> None:
    back_off = BackOff()
    deaths = 0
    for lived in lives:
        deaths = back_off.deaths(deaths, lived)
    assert back_off.wait_s(back_off.deaths(deaths, long)) == back_off.first_s
