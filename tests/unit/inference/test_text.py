"""Texts of tokens: whole characters only, and byte offsets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shortstack.core.errors import Fatal
from shortstack.inference.text import IncrementalDecoder, TextCodec


def byte_codec() -> TextCodec:
    """One token a byte, so that every character beyond ASCII is cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return TextCodec(tokenizer, frozenset({256}))


CODEC = byte_codec()
PROMPT = CODEC.encode("Name: ")


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), min_size=1, max_size=30))
def test_the_pieces_of_a_stream_join_to_the_text(text: str) -> None:
    decoder = IncrementalDecoder(CODEC, PROMPT)
    pieces = [decoder.push(token) for token in CODEC.encode(text)]
    assert "".join(pieces) == text
    assert decoder.full_text() == text


def test_a_token_inside_a_character_has_no_text_and_the_last_one_has_all() -> None:
    decoder = IncrementalDecoder(CODEC, PROMPT)
    assert [decoder.push(token) for token in CODEC.encode("日a")] == ["", "", "日", "a"]


def test_an_answer_that_ends_inside_a_character_has_no_text() -> None:
    decoder = IncrementalDecoder(CODEC, PROMPT)
    for token in CODEC.encode("ab日")[:-1]:
        decoder.push(token)
    assert decoder.full_text() == ""


def test_special_tokens_show_in_the_stream_and_not_in_the_answer() -> None:
    decoder = IncrementalDecoder(CODEC, PROMPT)
    assert [decoder.push(token) for token in [*CODEC.encode("hi"), 256]] == ["h", "i", "<|end|>"]
    assert decoder.full_text() == "hi"
    assert CODEC.special == {256}


def test_offsets_count_bytes() -> None:
    spans = CODEC.spans("aé")
    assert [(span.text, span.start, span.stop) for span in spans] == [("a", 0, 1), ("é", 1, 3), ("é", 1, 3)]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"tokenizer\.json"):
        TextCodec.open(tmp_path)


def test_end_tokens_come_from_the_generation_config_and_the_tokenizers(tmp_path: Path) -> None:
    CODEC._tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert TextCodec.open(tmp_path).eos == {3, 4, 256}


def test_the_real_tokenizer_gives_the_recorded_offsets(smollm2_dir: Path) -> None:
    spans = TextCodec.open(smollm2_dir).spans("Été 123 😀")
    recorded = [
        (39614, "É", 0, 2),
        (100, "t", 2, 3),
        (2756, "é", 3, 5),
        (216, " ", 5, 6),
        (33, "1", 6, 7),
        (34, "2", 7, 8),
        (35, "3", 8, 9),
        (40303, " 😀", 9, 14),
        (218, "😀", 10, 14),
    ]
    assert [(span.id, span.text, span.start, span.stop) for span in spans] == recorded
