"""Rows and prompts as ids: tokenizers that add tokens or a dummy space, loss, stop ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from shortstack.core.errors import Invalid
from shortstack.prompts.encoding import PromptEncoder, continuation_tokenizer
from shortstack.prompts.formats import PromptFormats
from shortstack.prompts.special_tokens import SpecialTokens
from shortstack.prompts.template_format import TemplateFormat
from shortstack.records.message import Message

TALK = [Message("user", "Hi"), Message("assistant", "\nHello"), Message("user", "Bye"), Message("assistant", "So long")]


def words(dummy: str) -> tokenizers.Tokenizer:
    """A tokenizer of characters in Llama's manner, with a dummy space by normalizer or pre-tokenizer."""
    letters = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", *"abcdefgHiUSERASTN:.,'"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>", fuse_unk=False))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if dummy == "normalizer":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize("dummy", ["normalizer", "pre_tokenizer"])
def test_an_answer_is_encoded_without_a_dummy_space(dummy: str) -> None:
    tokenizer = words(dummy)
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["▁", "a", "b"]
    assert continuation_tokenizer(tokenizer).encode("ab", add_special_tokens=False).tokens == ["a", "b"]


@pytest.mark.parametrize("dummy", ["normalizer", "pre_tokenizer"])
def test_a_text_holds_no_token_that_the_server_adds(dummy: str, formats: PromptFormats) -> None:
    encoder = PromptEncoder(formats.get("airoboros"), words(dummy), eos_id=2, bos_id=1)
    messages = [Message("user", "<s>a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    assert "<s>" not in encoder.format.text(messages)
    rows = encoder.rows(messages)
    assert all(row.ids.count(1) == 1 and row.ids[0] == 1 for row in rows)
    assert sum(row.trained_tokens for row in rows) == 4


def test_a_template_that_writes_the_token_itself_is_rid_of_it(tmp_path: Path, formats: PromptFormats) -> None:
    tokenizer = words("normalizer")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = "{{ bos_token }}{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    source += "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    fmt = formats.with_base(tmp_path).get("base")
    encoder = PromptEncoder.load(fmt, tmp_path)
    assert fmt.text(TALK) == "user: Hi</s>assistant: \nHello</s>user: Bye</s>assistant: So long</s>"
    assert encoder.prompt_ids(TALK[:1]).count(1) == 1
    assert encoder.generation_stop_ids() == (2,)


def test_a_tokenizer_that_adds_a_token_after_the_text_is_refused(formats: PromptFormats) -> None:
    tokenizer = words("normalizer")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    with pytest.raises(Invalid, match="after every text"):
        PromptEncoder(formats.get("plain"), tokenizer, eos_id=2, bos_id=1)


def test_a_format_that_needs_an_end_token_is_refused_without_one(
    formats: PromptFormats, tokenizer: tokenizers.Tokenizer
) -> None:
    with pytest.raises(Invalid, match="end-of-sequence"):
        PromptEncoder(formats.get("alpaca"), tokenizer, eos_id=None)


def test_loss_lies_on_answers_and_their_close(encoders: dict[str, PromptEncoder]) -> None:
    encoder = encoders["base"]
    (row,) = encoder.rows(TALK)
    learnt = [token for token, loss in zip(row.ids, row.trained, strict=True) if loss]
    assert encoder.tokenizer.decode(learnt, skip_special_tokens=False) == "\nHello<|im_end|>So long<|im_end|>"
    (whole,) = encoder.rows(TALK, train_on_inputs=True)
    assert whole.ids == row.ids
    assert all(whole.trained)


def test_an_answer_that_is_not_to_be_learnt_carries_no_loss(encoders: dict[str, PromptEncoder]) -> None:
    messages = [TALK[0], Message("assistant", "\nHello", train=False), *TALK[2:]]
    (row,) = encoders["base"].rows(messages)
    learnt = [token for token, loss in zip(row.ids, row.trained, strict=True) if loss]
    assert encoders["base"].tokenizer.decode(learnt, skip_special_tokens=False) == "So long<|im_end|>"


def test_a_conversation_without_an_answer_has_no_row(encoders: dict[str, PromptEncoder]) -> None:
    assert encoders["chatml"].rows([Message("user", "Hi")]) == []


def test_tokens_across_the_border_give_a_row_each(encoders: dict[str, PromptEncoder]) -> None:
    encoder = encoders["human_bot"]
    rows = encoder.rows([Message("user", "Hi"), Message("assistant", "Hello"), *TALK[2:]])
    assert len(rows) == 2
    assert all(row.ids[-1] == encoder.eos_id and row.trained[-1] for row in rows)


@pytest.mark.parametrize(
    ("name", "expected"), [("base", (2,)), ("chatml", (2,)), ("ihop", (2,)), ("airoboros", (2,)), ("llama3", ())]
)
def test_the_export_is_told_where_an_answer_ends(
    name: str, expected: tuple[int, ...], encoders: dict[str, PromptEncoder]
) -> None:
    assert encoders[name].generation_stop_ids() == expected


def test_the_model_folder_names_its_special_tokens(smollm2_dir: Path) -> None:
    special = SpecialTokens.load(smollm2_dir)
    assert (special.eos, special.bos, special.adds_bos) == ("<|im_end|>", "<|im_start|>", False)
    assert "<|endoftext|>" in special.tokens


def test_a_template_is_a_format_like_the_others(with_base: PromptFormats) -> None:
    assert isinstance(with_base.get("base"), TemplateFormat)
    assert with_base.names()[0] == "base"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, formats: PromptFormats) -> None:
    with pytest.raises(Invalid, match=r"no tokenizer\.json"):
        PromptEncoder.load(formats.get("chatml"), tmp_path)
