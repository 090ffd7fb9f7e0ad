from __future__ import annotations

import errno

import pytest

from shortstack.core.errors import Invalid
from shortstack.training.trainer.failure import TrainingFailed, failure_of


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (Invalid("bad", remedy="Do it right."), "bad_plan", 65),
        (TrainingFailed("no_rows", "none", remedy="More rows."), "no_rows", 70),
        (TrainingFailed("stopped", "asked to stop", remedy="Start again."), "stopped", 75),
        (MemoryError(), "out_of_memory", 70),
        (OutOfMemoryError("CUDA"), "out_of_memory", 70),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", 70),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "disk_full", 70),
        (ZeroDivisionError("x"), "internal", 70),
    ],
)
def test_every_end_has_a_code_a_remedy_and_an_exit_status(error: BaseException, code: str, exit_code: int) -> None:
    failure = failure_of(error)
    assert (failure.code, failure.exit_code) == (code, exit_code)
    assert failure.remedy
