"""What is refused at submission because the servers could not serve it."""

from __future__ import annotations

import pytest

from shortstack.core.errors import Invalid
from shortstack.declarations.deploy import require_servable


def test_a_model_of_all_parameters_is_refused_where_adapters_alone_are_served() -> None:
    with pytest.raises(Invalid, match="takes adapters alone") as caught:
        require_servable({"adapter": None}, serves_merged=False, where="dataset faq")
    assert caught.value.param == "train.adapter"
    assert '"adapter": "lora"' in caught.value.remedy


@pytest.mark.parametrize("train", [{}, {"adapter": "lora"}])
def test_an_adapter_may_be_served_anywhere(train: dict[str, object]) -> None:
    require_servable(train, serves_merged=False, where="dataset faq")


def test_whole_models_may_be_served_where_the_operator_says_so() -> None:
    require_servable({"adapter": None}, serves_merged=True, where="dataset faq")
