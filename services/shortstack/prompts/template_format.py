"""``base``: the chat template that a model's tokenizer brings, held to the laws of every other format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from typing_extensions import override

from shortstack.core.errors import Invalid
from shortstack.prompts.guard import Guard
from shortstack.prompts.jinja_source import guarded_messages
from shortstack.prompts.prompt_format import Exchange, PromptFormat, answer_text, check_roles
from shortstack.prompts.sandbox import ChatTemplate
from shortstack.prompts.special_tokens import SpecialTokens, read_json
from shortstack.records.message import ROLES, Message

__all__ = ["TemplateFormat", "read_template"]

_JOIN: Final = "\n\n"
_ASKED: Final = {"role": "user", "content": "QUESTION7319"}
_ANSWERED: Final = {"role": "assistant", "content": "ANSWER7319"}
_PROBE: Final = "PROBE7319"


@dataclass(frozen=True)
class TemplateFormat(PromptFormat):
    """A tokenizer's own chat template.

    A role that the template has no place for joins the user's turn: ``context`` always (no template knows it), and
    ``system`` and ``tool`` where a probe shows that the template refuses or drops them. Tool calls stand in the
    answer's text as the record has them.

    Attributes:
        template: the compiled template.
        special: the tokenizer's special tokens.
        folded: roles that join the user's turn.
        close: the text with which the template closes an answer, up to its last special token.
    """

    template: ChatTemplate
    special: SpecialTokens
    folded: tuple[str, ...]
    close: str
    guard: Guard
    name: str = "base"
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    eos: Literal["every", "last", "none"] = "none"

    @classmethod
    def load(cls, model_dir: Path, special: SpecialTokens, *, clock: Callable[[], datetime]) -> TemplateFormat | None:
        """Reads the template of a model folder; None where there is none.

        Raises:
            Invalid: it cannot render a plain exchange.
        """
        source = read_template(model_dir)
        if source is None:
            return None
        variables = {"bos_token": special.bos or "", "eos_token": special.eos or ""}
        if special.adds_bos and special.bos:
            # The server adds it to every text: one more inside would double it.
            source = source.replace(special.bos, "")
            variables["bos_token"] = ""
        template = ChatTemplate(source, clock=clock, variables=variables)
        close = _close_of(template, special)
        folded = ("context", *(role for role in ("system", "tool") if not _has_place(template, role)))
        eos: Literal["last", "none"] = "none" if close else "last"
        return cls(template, special, folded, close, Guard.of(special.tokens), eos=eos)

    @override
    def bound(self, special: SpecialTokens) -> TemplateFormat:
        return replace(self, guard=self.guard.with_tokens(special.tokens))

    @override
    def prompt(self, messages: Sequence[Message]) -> str:
        return self.template.render(self._prepared(messages)[0], add_generation_prompt=True)

    @override
    def text(self, messages: Sequence[Message]) -> str:
        return self.template.render(self._prepared(messages)[0], add_generation_prompt=False)

    @override
    def exchanges(self, messages: Sequence[Message]) -> list[Exchange]:
        prepared, sources = self._prepared(messages)
        found = []
        for position, (turn, index) in enumerate(zip(prepared, sources, strict=True)):
            if turn["role"] == "assistant":
                prompt = self.template.render(prepared[:position], add_generation_prompt=True)
                whole = self.template.render(prepared[: position + 1], add_generation_prompt=False)
                answer = self._answer(turn["content"], prompt, whole, index)
                found.append(Exchange(index, prompt, answer, self.close, messages[index].train))
        return found

    @override
    def close_text(self) -> str:
        return self.close

    @override
    def chat_template(self) -> str:
        blank_bos = "{%- set bos_token = '' -%}" if self.special.adds_bos else ""
        front = guarded_messages(self.guard.replacements, self.folded, _JOIN)
        return f"{front}{blank_bos}{self.template.source}"

    @override
    def roles(self) -> Mapping[str, str]:
        return {role: "joined to the user's turn" if role in self.folded else "own turn" for role in ROLES}

    def _prepared(self, messages: Sequence[Message]) -> tuple[list[dict[str, str]], list[int]]:
        """The messages as the template takes them, guarded and folded, and the index each (last) comes from."""
        check_roles(messages)
        turns: list[dict[str, str]] = []
        sources: list[int] = []
        joinable = False
        for index, message in enumerate(messages):
            folded = message.role in self.folded
            role = "user" if folded else message.role
            content = self.guard(answer_text(message) if role == "assistant" else message.content)
            if turns and role == "user" == turns[-1]["role"] and (folded or joinable):
                before = turns[-1]["content"]
                turns[-1] = {"role": "user", "content": _JOIN.join(filter(None, (before, content)))}
                sources[-1] = index
            else:
                turns.append({"role": role, "content": content})
                sources.append(index)
            joinable = folded
        return turns, sources

    def _answer(self, content: str, prompt: str, whole: str, index: int) -> str:
        """The answer as the template writes it: some remove white space around it."""
        rest = whole[len(prompt) :]
        if whole.startswith(prompt):
            for written in (content, content.strip()):
                if rest.startswith(written + self.close):
                    return written
        raise Invalid(
            "the chat template does not continue its own prompt with this answer",
            where=f"messages[{index}]",
            remedy="Let a user's turn stand before it, or name another prompt_format.",
            param=f"messages[{index}]",
        )


def read_template(model_dir: Path) -> str | None:
    """The chat template of a model folder: ``chat_template.jinja``, else the field of ``tokenizer_config.json``."""
    path = model_dir / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    value = read_json(model_dir / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        value = next((one.get("template") for one in value if one.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _close_of(template: ChatTemplate, special: SpecialTokens) -> str:
    """What the template writes after an answer, up to the last special token; empty where it writes none."""
    prompt = template.render([_ASKED], add_generation_prompt=True)
    whole = template.render([_ASKED, _ANSWERED], add_generation_prompt=False)
    opened = prompt + _ANSWERED["content"]
    if not whole.startswith(opened):
        raise Invalid(
            "the chat template's answer does not begin where its prompt ends",
            remedy="Name a prompt_format.",
            param="prompt_format",
        )
    after = whole[len(opened) :]
    return after[: max((after.rfind(token) + len(token) for token in special.tokens if token in after), default=0)]


def _has_place(template: ChatTemplate, role: str) -> bool:
    """Whether the template renders a message of this role where such a message usually stands."""
    probe = {"role": role, "content": _PROBE}
    turns = [probe, _ASKED] if role == "system" else [_ASKED, _ANSWERED, probe]
    try:
        return _PROBE in template.render(turns, add_generation_prompt=True)
    except Invalid:
        return False
