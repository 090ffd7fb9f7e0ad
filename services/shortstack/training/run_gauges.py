"""What the newest runs do, as gauges whose labels stay few."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from shortstack.core.metrics import Metrics
from shortstack.messages.v1 import training_pb2 as tr

__all__ = ["RunGauges"]

_KEPT: Final = 8
"""Runs shown at once. An ended one stays, so that its last loss can be read, until newer ones take its place."""


class RunGauges:
    """Sets the gauges of one run each; whoever falls out of the newest leaves no series behind.

    Args:
        metrics: of the training service.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._loss, self._step = metrics.train_loss, metrics.train_step
        self._max_steps, self._speed = metrics.train_max_steps, metrics.train_tokens_per_second
        self._shown: set[tuple[str, str]] = set()

    def show(self, runs: Iterable[tr.RunSnapshot], active: Container[tr.RunState.ValueType]) -> None:
        """Shows those of ``runs`` that have begun: the active ones first, then the newest.

        Args:
            active: states of a run that has an attempt.
        """
        begun = [run for run in runs if run.max_steps]
        begun.sort(key=lambda run: (run.state in active, run.updated_at.ToNanoseconds()), reverse=True)
        newest = {(run.dataset, run.run): run for run in begun[:_KEPT]}
        for gone in self._shown - set(newest):
            for gauge in (self._loss, self._step, self._max_steps, self._speed):
                gauge.remove(*gone)
        for labels, run in newest.items():
            self._loss.labels(*labels).set(run.loss)
            self._step.labels(*labels).set(run.step)
            self._max_steps.labels(*labels).set(run.max_steps)
            self._speed.labels(*labels).set(run.tokens_per_second if run.state in active else 0.0)
        self._shown = set(newest)
