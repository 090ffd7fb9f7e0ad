"""What the loss stands on: answers and what closes them, never padding."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shortstack.records.message import Message
from shortstack.records.schema import Record
from shortstack.training.trainer.data import prepare
from shortstack.training.trainer.formats import ServedFormat
from shortstack.training.trainer.plan import RunPlan
from shortstack.training.trainer.rows import Conversation, TrainingRows


def rows_of(base: Path, *answers: str) -> TrainingRows:
    served = ServedFormat.load("base", base, datetime(2026, 1, 1, tzinfo=UTC))
    conversations = [Conversation("here", (Message("user", "say"), Message("assistant", answer))) for answer in answers]
    return TrainingRows.build(
        iter(conversations),
        {None: served.encoder},
        prompt_format="base",
        sequence_len=64,
        drop_long=False,
        train_on_inputs=False,
    )


def test_the_end_of_sequence_token_is_trained_and_padding_is_not(tiny_llama: Path) -> None:
    from shortstack.training.trainer.loop import RowDataset, collate

    served = ServedFormat.load("base", tiny_llama, datetime(2026, 1, 1, tzinfo=UTC))
    (end,) = served.eos_ids
    rows = rows_of(tiny_llama, "yes", "certainly").rows
    batch = collate([RowDataset(rows)[0], RowDataset(rows)[1]])
    short = len(rows[0].input_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, len(rows[1].input_ids))
    assert (batch["labels"][0, short:] == -100).all()
    assert (batch["attention_mask"][0] == 0).sum() == len(rows[1].input_ids) - short
    assert (batch["labels"][0] == end).sum() == 1
    trained = [label for label in batch["labels"][0].tolist() if label != -100]
    assert served.decode(trained).startswith("yes")


def test_a_row_has_the_same_loss_alone_and_padded(tiny_llama: Path) -> None:
    import torch

    from shortstack.training.trainer.loop import RowDataset, collate
    from shortstack.training.trainer.model import load_base

    model = load_base(tiny_llama, dtype=torch.float32).eval()
    dataset = RowDataset(rows_of(tiny_llama, "a", "b" * 9, "c" * 30).rows)

    def total(*indices: int) -> float:
        batch = collate([dataset[index] for index in indices])
        with torch.inference_mode():
            return float(model(**batch, num_items_in_batch=1).loss)

    assert total(0, 1, 2) == pytest.approx(total(0) + total(1) + total(2), rel=1e-5)


def test_an_answer_scores_in_one_pass_as_it_was_decoded_step_by_step(tiny_llama: Path) -> None:
    import torch

    from shortstack.training.trainer.generate import greedy, score
    from shortstack.training.trainer.model import load_base

    model = load_base(tiny_llama, dtype=torch.float32).eval()
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    answers = greedy(model, prompts, new_tokens=6, stop_ids=[])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 6
        for logprob, margin in score(model, prompt, answer):
            assert logprob < 0
            assert margin >= -1e-4
    stopped = greedy(model, prompts, new_tokens=6, stop_ids=[answers[0][2]])
    assert stopped[0] == answers[0][: answers[0].index(answers[0][2]) + 1]


@pytest.mark.parametrize("own", [None, "human_bot"], ids=["as ingestion writes rows", "as it once did"])
def test_a_job_with_a_format_of_its_own_is_proven_by_the_datasets_prompts(
    new_run: Callable[..., Any], own: str | None
) -> None:
    turns = (Message("user", "Who made you?"), Message("assistant", "Ann did."))
    records = [Record(0, turns, prompt_format=own), Record(1, turns, prompt_format="chatml")]
    run = new_run(prompt_format="human_bot", data=records)
    prepared = prepare(RunPlan.read(run.folder / "plan.json"))
    assert prepared.prompts == [turns[:1]] * 2  # of validation, then of training
    assert "<human>: Who made you?" in prepared.served.decode(prepared.train[0].input_ids)
    assert len(prepared.train) == 2
