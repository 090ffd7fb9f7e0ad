"""How a training attempt ends when it does not end well.

A failure has a code that programs compare, a sentence and a remedy for people. Codes:

    bad_plan            the plan, settings or dataset cannot be used
    no_rows             nothing is left to train on
    non_finite_loss     the loss became NaN or infinite
    loss_watchdog       the loss stood above ``loss_watchdog_threshold``
    ranks_changed       the checkpoint was written by another number of processes
    merge_unchanged     merging the adapter changed no weight
    non_finite_weights  the trained weights hold NaN or infinite values
    out_of_memory       the machine or the accelerator had no memory left
    disk_full           the run folder's disk is full
    stopped             asked to stop; a checkpoint was written, another attempt goes on
    internal            anything else
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Fatal, Poison, ShortstackError, wire_code

__all__ = ["Failure", "TrainingFailed", "failure_of"]


class TrainingFailed(Fatal):
    """This attempt cannot go on. Its code says why."""

    def __init__(self, code: str, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.code = code


@dataclass(frozen=True, slots=True)
class Failure:
    """What the ``failed`` event says, and the exit code of the process."""

    code: str
    message: str
    remedy: str
    exit_code: int


STOPPED_EXIT: Final = 75
"""``EX_TEMPFAIL`` of sysexits.h: nothing was wrong, another attempt goes on."""


def _torn(error: BaseException) -> bool:
    # torch and safetensors write in C++ and Rust, and tell a full disk by words alone.
    return any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter failed writing"))


_Test = Callable[[BaseException], bool]

_KNOWN: Final[tuple[tuple[str, _Test, str], ...]] = (
    (
        "out_of_memory",
        lambda error: isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError",
        "Lower micro_batch_size or sequence_len, or set gradient_checkpointing.",
    ),
    (
        "disk_full",
        lambda error: (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _torn(error),
        "Free space below the run folder, or lower save_total_limit, and start the run again.",
    ),
)


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception stands for."""
    if isinstance(error, TrainingFailed):
        exit_code = STOPPED_EXIT if error.code == "stopped" else wire_code(error).exit_code
        return Failure(error.code, str(error), error.remedy, exit_code)
    if isinstance(error, ShortstackError):
        code = "bad_plan" if isinstance(error, Poison) else "internal"
        return Failure(code, str(error), error.remedy, wire_code(error).exit_code)
    for code, test, remedy in _KNOWN:
        if test(error):
            return Failure(code, f"{type(error).__name__}: {error}", remedy, wire_code(error).exit_code)
    remedy = "See the trainer's log in the run folder."
    return Failure("internal", f"{type(error).__name__}: {error}", remedy, wire_code(error).exit_code)
