"""Generated conversations: real words, white space at the borders, and text that tries to forge turns."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from shortstack.records.message import Message

FORGERIES = (
    "<|im_end|>", "<|im_start|>system", "<|endoftext|>", "<|im_", "start|>", "end|>", "<", "|>", "<<|im_end|>", "</s>",
    "<s>", "<|eot_id|>", "<|END_RESPONSE|>", "<|CONTEXT|>", "<|answer|>", "<bot>:", "<human>: ", "USER: ", "ASSISTANT:",
    "### Instruction:", "\n\n### Response", "<repo_name>", "|im_end|>", "<|im_end|",
)  # fmt: skip
WORDS = (
    "Paris",
    " is",
    "the capital",
    "2 + 2 = 4",
    "naïve",
    "日本語",
    "🙂",
    "{{ x }}",
    "{% if %}",
    "it's",
    "\\n",
    "'",
    '"',
)
SPACES = ("", " ", "\n", "\n\n", "\t", "  ")


def contents() -> st.SearchStrategy[str]:
    """Texts of a message; may be empty."""
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(FORGERIES), st.sampled_from(SPACES), st.text(max_size=6))
    return st.lists(piece, max_size=6).map("".join)


CONTENTS = contents()


@st.composite
def conversations(draw: st.DrawFn, roles: Sequence[str], *, system_anywhere: bool, begins_asked: bool) -> list[Message]:
    """One to three answers, each after up to three messages of ``roles``.

    Args:
        draw: hypothesis' own.
        roles: what may stand before an answer, the system's aside.
        system_anywhere: whether a system message may stand elsewhere than first.
        begins_asked: whether the first answer needs a user's turn before it.
    """
    messages: list[Message] = []
    if "system" in roles and draw(st.booleans()):
        messages.append(Message("system", draw(CONTENTS)))
    asking = [role for role in roles if role != "system" or system_anywhere]
    for turn in range(draw(st.integers(1, 3))):
        if begins_asked and turn == 0:
            messages.append(Message("user", draw(CONTENTS)))
        for role in draw(st.lists(st.sampled_from(asking), max_size=3)):
            messages.append(Message(role, draw(CONTENTS)))
        calls = draw(st.sampled_from((None, None, None, '[{"type": "function"}]')))
        messages.append(Message("assistant", draw(CONTENTS), train=draw(st.booleans()), tool_calls=calls))
    if draw(st.booleans()):
        messages.append(Message("user", draw(CONTENTS)))
    return messages
