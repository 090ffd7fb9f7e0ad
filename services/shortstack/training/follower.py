"""Starts, follows and ends the attempts of the runs in a book, so that a wanted run has exactly one going."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Final

from shortstack.core.clock import Clock
from shortstack.core.errors import Forbidden, Poison, ShortstackError, Transient
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.training.book import JOB_ENDED, JobBook, stamp
from shortstack.training.config import TrainingConfig
from shortstack.training.events import broke_off_event
from shortstack.training.launcher import STOPPED, AttemptOrder, AttemptPhase, AttemptStatus, Launcher

__all__ = ["ACTIVE", "RunFollower"]

ACTIVE: Final = frozenset({tr.RUN_STATE_STARTING, tr.RUN_STATE_WAITING, tr.RUN_STATE_RUNNING, tr.RUN_STATE_EXPORTING})
"""States of a run that has an attempt, or is about to have one."""

_PAUSE_MAX_S: Final = 300.0


class RunFollower:
    """Used by the controller's thread alone.

    Args:
        order: what a run's attempt is told; raises `Poison` where that cannot be said any more.
        written: the attempt of ``run/ID`` as the state topic has it; 0 where it has none.
        tell: ships an event.
    """

    def __init__(
        self,
        book: JobBook,
        launcher: Launcher,
        config: TrainingConfig,
        telemetry: Telemetry,
        clock: Clock,
        *,
        order: Callable[[tr.RunSnapshot], AttemptOrder],
        written: Callable[[str], int],
        tell: Callable[[tr.TrainingEvent], None],
    ) -> None:
        self._book, self._launcher, self._config = book, launcher, config
        self._telemetry, self._clock = telemetry, clock
        self._agents: dict[tuple[str, int], str] = {}
        self._order, self._written, self._tell_event = order, written, tell

    def follow(self) -> None:
        """Looks at every attempt, and does what follows from how it is."""
        for run in self._book.runs.values():
            if run.state not in ACTIVE:
                continue
            try:
                self._follow_attempt(run)
            except Transient as error:
                # Of one run: the others, and every job, go on.
                self._note(run, str(error))
            except Forbidden as error:  # somebody grants the right; what trains goes on meanwhile
                if run.state == tr.RUN_STATE_STARTING:
                    self._show_waiting(run, str(error))
                else:
                    self._note(run, str(error))

    def _follow_attempt(self, run: tr.RunSnapshot) -> None:
        wanted = self._wanted(run)
        if not wanted:
            self._launcher.cancel(run.run, run.attempt)
        status = self._launcher.status(run.run, run.attempt)
        match status.phase:
            case AttemptPhase.ABSENT if not wanted:
                self._finish(run, tr.RUN_STATE_CANCELLED)
            case AttemptPhase.ABSENT if self._clock.now() < run.not_before.ToDatetime(tzinfo=UTC):
                pass  # a pause after the attempt before; the run's message says so
            case AttemptPhase.ABSENT if _has_no_turn(run) and not self._has_room():
                most = f"at most {self._config.training_parallel} at the same time (SHORTSTACK_TRAINING_PARALLEL)"
                self._note(run, f"attempt {run.attempt} starts when another run has ended: {most}.")
            case AttemptPhase.ABSENT:
                self._take_turn(run)
                self._show_waiting(run, status.waiting)
                self._launch(run)
            case AttemptPhase.SUCCEEDED:
                self._succeed(run, status)
            case AttemptPhase.FAILED | AttemptPhase.LOST:
                self._agents.pop((run.run, run.attempt), None)
                self._broke_off(run, status)
            case AttemptPhase.RUNNING if _has_no_turn(run):  # launched, and what said so was not written
                self._take_turn(run)
            case AttemptPhase.RUNNING if status.waiting or run.state == tr.RUN_STATE_WAITING:
                self._show_waiting(run, status.waiting)
            case AttemptPhase.RUNNING:
                self._note(run, self._agents.get((run.run, run.attempt), ""))

    def told(self, run: tr.RunSnapshot, waits: str) -> None:
        """An attempt's agent says what the end of a trained run waits for; "" for nothing any more."""
        self._agents[run.run, run.attempt] = waits

    def _show_waiting(self, run: tr.RunSnapshot, words: str) -> None:
        """What keeps an attempt from starting is the run's state; once that is gone it starts, or goes on."""
        self._note(run, words)
        if words and run.state != tr.RUN_STATE_WAITING:
            self.move(run, tr.RUN_STATE_WAITING)
        elif not words and run.state == tr.RUN_STATE_WAITING:
            self.move(run, tr.RUN_STATE_STARTING)

    def _note(self, run: tr.RunSnapshot, words: str) -> None:
        if run.message == words:
            return
        if words:
            self._telemetry.log.warning("run waits", run=run.run, attempt=run.attempt, why=words)
        run.message = words
        self._book.dirty.add(f"run/{run.run}")

    def _wanted(self, run: tr.RunSnapshot) -> bool:
        """Whether a job still waits for it: only the last one's cancel stops a run."""
        return any(self._book.jobs[job].state not in JOB_ENDED for job in run.jobs if job in self._book.jobs)

    def _succeed(self, run: tr.RunSnapshot, status: AttemptStatus) -> None:
        export = status.export or {}
        names = ("prefix", "manifest", "manifest_sha256", "digest", "base_digest", "prompt_format")
        self._agents.pop((run.run, run.attempt), None)
        run.export.CopyFrom(tr.Export(base_model=run.base_model, **{name: export[name] for name in names}))
        self._finish(run, tr.RUN_STATE_SUCCEEDED)

    def _broke_off(self, run: tr.RunSnapshot, status: AttemptStatus) -> None:
        """Another attempt from the newest whole checkpoint, unless it is not wanted, hopeless, or the last."""
        if not self._wanted(run):
            self._finish(run, tr.RUN_STATE_CANCELLED)
            return
        self._telemetry.metrics.broken_attempts.inc()
        stopped = status.code == STOPPED
        if status.began:
            run.deaths, run.unstarted = run.deaths + (not stopped), 0
        else:
            run.unstarted += 1
        if status.final or run.deaths >= self._config.training_max_attempts:
            self._give_up(run, status.message or "its processes died", status.remedy or f"See {run.run_dir}")
            return
        why = status.message or status.code
        self._telemetry.log.warning("attempt broke off", run=run.run, attempt=run.attempt, why=why)
        self._tell_event(broke_off_event(run, why))
        self._try_again(run, 0.0 if stopped else self._pause_s(run), why)

    def _pause_s(self, run: tr.RunSnapshot) -> float:
        """A node that rejects pods, or a store that is away, does so many times in a minute."""
        return min(_PAUSE_MAX_S, self._config.training_back_off_s * 2.0 ** min(run.deaths + run.unstarted - 1, 16))

    def _try_again(self, run: tr.RunSnapshot, pause_s: float, why: str) -> None:
        at = self._clock.now() + timedelta(seconds=pause_s)
        run.attempt += 1
        run.message = ""
        stamp(run.not_before, at)
        if pause_s:
            run.message = (
                f"attempt {run.attempt - 1} broke off: {why.rstrip('.')}. After a pause of {pause_s:g} s, at "
                f"{at.astimezone(UTC):%H:%M:%S} UTC, attempt {run.attempt} goes on from the newest checkpoint."
            )
        self.move(run, tr.RUN_STATE_WAITING if pause_s else tr.RUN_STATE_STARTING)

    def _give_up(self, run: tr.RunSnapshot, error: str, remedy: str) -> None:
        run.error, run.remedy = error, remedy
        self._finish(run, tr.RUN_STATE_FAILED)

    def _finish(self, run: tr.RunSnapshot, state: tr.RunState.ValueType) -> None:
        stamp(run.finished_at, self._clock.now())
        run.message = ""
        self.move(run, state)
        if state == tr.RUN_STATE_FAILED:  # asked for again, it goes on from where it is
            return
        try:
            self._launcher.forget(run.run)
        except ShortstackError as error:  # it costs room, and no run its end
            self._telemetry.log.warning("what only another attempt needs is still there", run=run.run, error=str(error))

    def start(self) -> None:
        """Queued runs in order of age, as many as may go at the same time."""
        queued = [run for run in self._book.runs.values() if run.state == tr.RUN_STATE_QUEUED]
        for run in sorted(queued, key=lambda r: r.created_at.ToNanoseconds()):
            if not self._wanted(run):
                self._finish(run, tr.RUN_STATE_CANCELLED)
            elif self._has_room():
                # Written before it is launched: a crash between the two finds the attempt absent and launches it.
                self.move(run, tr.RUN_STATE_STARTING)

    def _has_room(self) -> bool:
        active = sum(run.state in ACTIVE and not _has_no_turn(run) for run in self._book.runs.values())
        return active < self._config.training_parallel

    def _take_turn(self, run: tr.RunSnapshot) -> None:
        if run.HasField("not_before"):
            run.ClearField("not_before")
            self._book.dirty.add(f"run/{run.run}")

    def _launch(self, run: tr.RunSnapshot) -> None:
        if self._written(f"run/{run.run}") != run.attempt:
            return
        try:
            order = self._order(run)
        except Poison as error:
            self._give_up(run, str(error), error.remedy)
            return
        run.run_dir = self._launcher.place(run.run)
        self._book.dirty.add(f"run/{run.run}")
        failpoint("training.before_launch")
        self._launcher.launch(order)

    def move(self, run: tr.RunSnapshot, state: tr.RunState.ValueType) -> None:
        """Gives a run a state."""
        run.state = state
        stamp(run.updated_at, self._clock.now())
        self._book.dirty.add(f"run/{run.run}")


def _has_no_turn(run: tr.RunSnapshot) -> bool:
    """Whether a run whose trainer did not begin lets others go first, from its pause on until its next attempt.

    It is tried again without end, as what keeps it may pass, so it must not keep others. One that died while it trained
    keeps its turn: it pauses seldom, and is near its end or its limit of deaths.
    """
    return run.state == tr.RUN_STATE_WAITING and run.unstarted > 0 and run.HasField("not_before")
