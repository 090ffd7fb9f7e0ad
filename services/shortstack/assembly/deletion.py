"""What a deletion is about: which publications go, who uses them, and where else their text is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from shortstack.core.errors import Conflict
from shortstack.messages.v1.dataset_pb2 import (
    DATASET_STATE_DELETED,
    DATASET_STATE_FAILED,
    DATASET_STATE_READY,
    DatasetSnapshot,
)
from shortstack.messages.v1.training_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    JobSnapshot,
)

__all__ = ["Deletion", "deletion_of"]

_ENDED: Final = (JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED)
_SETTLED: Final = (DATASET_STATE_READY, DATASET_STATE_FAILED, DATASET_STATE_DELETED)


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion that nothing speaks against.

    Attributes:
        publications: that lose their text.
        models: that saw it, by themselves or in a dataset that it is mixed into; sorted.
        copies: datasets that it is mixed into and that stay, as ``NAME version DIGITS``; sorted.
    """

    publications: Sequence[DatasetSnapshot]
    models: Sequence[str]
    copies: Sequence[str]


def deletion_of(
    named: Sequence[DatasetSnapshot], known: Iterable[DatasetSnapshot], jobs: Sequence[JobSnapshot], asked: str
) -> Deletion:
    """The deletion of what ``asked`` stands for.

    Args:
        named: publications of one dataset: all of its name, or the one that was asked for.
        known: all publications of its owner.
        jobs: of the same owner.
        asked: name or publication id, as given.

    Raises:
        Conflict: a job that has not ended uses the text, or it is to be mixed into a dataset that is not made yet.
    """
    mixing = _mixing(named, list(known))
    ids = {snapshot.publication.publication for snapshot in (*named, *mixing)}
    # A job that waits for its publication to be named knows its dataset alone.
    users = [job for job in jobs if job.publication in ids or (not job.publication and job.dataset == asked)]
    using = sorted(job.job for job in users if job.state not in _ENDED)
    if using:
        raise Conflict(
            f'dataset "{asked}" is used by {", ".join(using)}',
            remedy="Wait until it has ended, or cancel it with: shortstack runs cancel JOB",
        )
    open_ = sorted({s.publication.dataset for s in mixing if s.state not in _SETTLED})
    if open_:
        raise Conflict(
            f'dataset "{asked}" is to be mixed into {", ".join(open_)}',
            remedy=f"Wait until that is ready, or delete it first: shortstack datasets delete {open_[0]}",
        )
    copies = {f"{s.publication.dataset} version {s.version[:12]}" for s in mixing if s.state == DATASET_STATE_READY}
    return Deletion(
        publications=[snapshot for snapshot in named if snapshot.state != DATASET_STATE_DELETED],
        models=sorted({job.model for job in users if job.model}),
        copies=sorted(copies),
    )


def _mixing(named: Sequence[DatasetSnapshot], known: Sequence[DatasetSnapshot]) -> list[DatasetSnapshot]:
    """Publications that mix these in, or mix in one that does, and so on."""
    seen = {snapshot.publication.publication for snapshot in named}
    found: list[DatasetSnapshot] = []
    looked_for = list(named)
    while looked_for:
        versions = {(s.publication.dataset, s.version) for s in looked_for if s.version}
        looked_for = [
            s
            for s in known
            if s.publication.publication not in seen and any((m.dataset, m.version) in versions for m in s.mix)
        ]
        seen.update(s.publication.publication for s in looked_for)
        found += looked_for
    return found
