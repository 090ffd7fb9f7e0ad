"""Where a name leads."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shortstack.gateway.errors import ApiError
from shortstack.gateway.routing.table import Alias, ModelPhase, RouteTable, ServedModel
from shortstack.gateway.routing.watch import alias_of, model_of
from shortstack.messages.v1 import serving_pb2 as sv

PHASES = st.sampled_from(list(ModelPhase))


def table(**phases: ModelPhase) -> RouteTable:
    return RouteTable({name: ServedModel(name, phase=phase) for name, phase in phases.items()}, synced=True)


@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=5), draw=st.text(max_size=8))
def test_an_alias_tries_each_of_its_models_once(weights: list[int], draw: str) -> None:
    alias = Alias("a", "", tuple((f"m{index}", weight) for index, weight in enumerate(weights)))
    assert sorted(alias.order(draw)) == sorted(model for model, _ in alias.weights)
    assert alias.order(draw) == alias.order(draw)


def test_weights_are_kept_to() -> None:
    alias = Alias("a", "", (("big", 90), ("small", 10)))
    first = [alias.order(str(draw))[0] for draw in range(4000)]
    assert 0.87 < first.count("big") / len(first) < 0.93


@given(phases=st.dictionaries(st.sampled_from("abcd"), PHASES), draw=st.text(max_size=4))
def test_only_a_served_model_ever_answers(phases: dict[str, ModelPhase], draw: str) -> None:
    routes = RouteTable(
        table(**phases).models, {"alias": Alias("alias", "", tuple((name, 1) for name in "abcd"))}, synced=True
    )
    served = {name for name, phase in phases.items() if phase is ModelPhase.SERVED}
    if served:
        assert routes.resolve("alias", "", draw).name in served
        return
    with pytest.raises(ApiError) as caught:
        routes.resolve("alias", "", draw)
    assert caught.value.status in (404, 503)


def test_an_alias_of_another_owner_is_unknown() -> None:
    routes = RouteTable(table(m=ModelPhase.SERVED).models, {"a": Alias("a", "team-a", (("m", 1),))}, synced=True)
    assert routes.resolve("a", "team-a", "").name == "m"
    with pytest.raises(ApiError, match="does not exist or you do not have access"):
        routes.resolve("a", "team-b", "")
    assert list(routes.names("team-b")) == ["m"]


def test_an_operators_alias_never_hides_a_model() -> None:
    routes = RouteTable(table(base=ModelPhase.SERVED, gpt=ModelPhase.SERVED).models, fallbacks={"gpt": "base"})
    assert routes.resolve("gpt", "", "").name == "gpt"


@pytest.mark.parametrize("phase", list(ModelPhase))
def test_an_operators_name_answers_until_its_aliass_model_is_served(phase: ModelPhase) -> None:
    coming = {"gpt": Alias("gpt", "", (("tuned", 1),))}
    models = table(base=ModelPhase.SERVED, tuned=phase).models
    routes = RouteTable(models, coming, fallbacks={"gpt": "base"}, synced=True)
    expected = "tuned" if phase is ModelPhase.SERVED else "base"
    assert routes.resolve("gpt", "", "").name == expected
    assert "gpt" in routes.names("")


def test_before_serving_was_heard_an_unknown_model_is_503() -> None:
    with pytest.raises(ApiError) as caught:
        RouteTable().resolve("m", "", "")
    assert (caught.value.status, caught.value.code) == (503, "routes_unknown")
    assert caught.value.headers() == {"retry-after": "2"}


@given(state=st.sampled_from(list(sv.ModelState.values())), progress=st.floats(-1, 2))
def test_every_state_of_the_wire_has_a_phase(state: sv.ModelState.ValueType, progress: float) -> None:
    model = model_of(sv.ModelSnapshot(name="m", state=state, progress=progress))
    assert (model.phase is ModelPhase.SERVED) == (state == sv.MODEL_STATE_SERVED)
    assert 0 <= model.progress <= 1


def test_a_weight_of_nought_takes_no_traffic() -> None:
    weights = [sv.Weight(model="a", weight=0), sv.Weight(model="b", weight=1)]
    assert alias_of(sv.AliasSnapshot(alias="x", weights=weights)).weights == (("b", 1),)
