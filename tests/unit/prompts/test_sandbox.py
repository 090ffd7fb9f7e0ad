"""A chat template gets no further than text: no attributes, no endless work, no flood of output."""

from __future__ import annotations

import pytest
from tests.unit.prompts.conftest import noon

from shortstack.core.errors import Invalid
from shortstack.prompts.sandbox import ChatTemplate, Limits

SMALL = Limits(seconds=0.2, characters=10_000)


def render(source: str) -> str:
    template = ChatTemplate(source, clock=noon, variables={"eos_token": "</s>"}, limits=SMALL)
    return template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 10 ** 100000000 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}",
        "{{ range(1000000) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
    ],
)
def test_a_template_that_goes_too_far_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(Invalid, match="the chat template cannot render"):
        render(source)


def test_a_template_that_is_no_jinja_says_so() -> None:
    with pytest.raises(Invalid, match="no Jinja"):
        render("{% for %}")


def test_what_templates_commonly_use_is_there() -> None:
    assert render("{{ strftime_now('%Y') }}{{ messages[0]|tojson }}{{ eos_token }}") == (
        '2026{"role": "user", "content": "Hi"}</s>'
    )
    assert render("{% generation %}{{ 'a' * 3 }}{% endgeneration %}") == "aaa"
