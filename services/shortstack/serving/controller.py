"""The serving controller: keeps models and aliases, rolls out what is wished, moves routes by one write.

It reads training.state and models.requests whole, joins no group and commits nothing. A model that was served stays
so by its snapshot; what a replay asks for is there already.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from shortstack.core.clock import Clock
from shortstack.core.errors import Poison, Transient, did_you_mean
from shortstack.core.failpoints import failpoint
from shortstack.core.telemetry import Telemetry
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.book import ModelBook
from shortstack.serving.config import ServingConfig
from shortstack.serving.known import in_order
from shortstack.serving.rollout import Held, RolledOut, Rollout
from shortstack.serving.watch import Look, Watch
from shortstack.streams import topics
from shortstack.streams.broker import Broker, Delivery, Reader
from shortstack.streams.notices import Notices
from shortstack.streams.set_aside import SetAside
from shortstack.streams.shown import Shown
from shortstack.streams.state import StateReader, StateWriter

__all__ = ["ServingController"]

_SOURCE: Final = "serving"
_RETRY_S: Final = 3.0
_POLL_S: Final = 0.25
_SETTLED_S: Final = 60.0
"""After the last change and the drain that follows it, until servers are looked at less often."""


@dataclass(slots=True)
class _RollingOut:
    """What the thread that rolls out tells, beside its result."""

    name: str
    proving: threading.Event = field(default_factory=threading.Event)
    progress: float = 0.0
    future: Future[RolledOut] = field(default_factory=Future)

    def reached(self, part: float) -> None:
        """It is so far; parts come in any order."""
        self.progress = max(self.progress, part)


class ServingController:
    """Driven by a `Loop`; API threads read `shown` and `book`'s checks under the same lock."""

    def __init__(
        self,
        broker: Broker,
        training: StateReader[tr.TrainingRecord],
        rollout: Rollout,
        bases: Mapping[str, Path],
        *,
        config: ServingConfig,
        telemetry: Telemetry,
        clock: Clock,
        poll_s: float = _POLL_S,
    ) -> None:
        self._broker, self._training, self._rollout, self._bases = broker, training, rollout, bases
        self._config, self._telemetry, self._clock = config, telemetry, clock
        self._writer = StateWriter(broker, topics.MODELS_STATE, sv.ModelRecord, clock, source=_SOURCE)
        self._poll_s = poll_s
        self._looking: Watch | None = None
        self._book = ModelBook()
        self._aside: SetAside | None = None
        self._reader: Reader | None = None
        self._deployed: Notices | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._rolling: _RollingOut | None = None
        self._not_before: dict[str, float] = {}
        self._found_at: dict[str, float] = {}
        self._watched_at = float("-inf")
        self._written_at = clock.monotonic()
        self._shown: Shown[sv.ModelRecord] = Shown()
        self._coming: dict[str, sv.ModelRecord] = {}
        self._turned = threading.Event()

    # Turning.

    def open(self) -> None:
        """Claims the state topic, then reads requests to their end before it acts on anything."""
        self.close()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._looking = Watch(self._rollout, self._telemetry.log, self._rolling_out)
        self._book = ModelBook(keep_superseded=self._config.serving_keep_superseded)
        self._book.restore(self._writer.open().values())
        for key, record in self._writer.latest.items():
            self._shown.show(key, record)
        self._count()
        self._training.wait_caught_up(30.0)
        self._deployed = Notices(self._broker, topics.MODELS_DEPLOYED, _SOURCE, self._clock)
        for key, record in self._writer.latest.items():
            self._tell_deployed(key, record, again=False)
        self._aside = SetAside(self._broker, topics.MODELS_REQUESTS, _SOURCE, self._telemetry, self._clock)
        self._reader = self._broker.reader([topics.MODELS_REQUESTS.name])
        while not self._reader.caught_up():
            self._read(self._reader)

    def turn(self) -> None:
        """Takes what has come, looks at the servers, rolls out the next model, writes what changed."""
        assert self._reader is not None
        self._read(self._reader)
        now = self._clock.monotonic()
        jobs, runs = self._jobs_and_runs()
        self._book.follow(jobs, runs, self._clock.now())
        self._seen()
        if now - self._watched_at >= self._between_looks(now):
            self._watched_at = now
            self._watch()
        self._collect()
        self._next(now)
        self._book.move_aliases(self._clock.now())
        self._write()
        self._tell_coming()
        self._turned.set()

    def close(self) -> None:
        """Lets go of connections."""
        self._turned.clear()
        if self._reader is not None:
            self._reader.close()
        for sending in (self._deployed, self._aside):
            if sending is not None:
                with suppress(Transient):  # the broker is away; snapshots that count were acknowledged
                    sending.close(self._config.shutdown_grace_s / 4)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._looking is not None:
            self._looking.close()
        self._writer.close()
        self._rolling = self._pool = self._looking = None
        self._reader = self._deployed = self._aside = None

    # For the API's threads.

    def require_turned(self, timeout_s: float) -> None:
        """Waits for the end of the first turn. Before it what is shown is not whole: nothing may be read from it.

        Raises:
            Transient: that takes longer than ``timeout_s``.
        """
        if not self._turned.wait(timeout_s):
            raise Transient(
                "the serving service has not read its topics to their end since it was started",
                remedy="Try again in a moment; /readyz says what it waits for.",
            )

    def shown(self) -> dict[str, sv.ModelRecord]:
        """All models and aliases as last written, by ``model/NAME`` and ``alias/NAME``."""
        return self._shown.all()

    def watched(self) -> dict[str, sv.ModelRecord]:
        """As `shown`, and aliases whose first model is under way, as they will be; without weights if they came not."""
        return self._coming | self._shown.all()

    def wait(self, met: Callable[[Mapping[str, sv.ModelRecord]], bool], timeout_s: float) -> bool:
        """Waits until what is shown meets a condition."""
        return self._shown.wait(met, timeout_s)

    def runs(self) -> dict[str, tr.RunSnapshot]:
        """Runs by id, as training has them."""
        return self._jobs_and_runs()[1]

    # Reading.

    def _jobs_and_runs(self) -> tuple[dict[str, tr.JobSnapshot], dict[str, tr.RunSnapshot]]:
        records = self._training.values()
        jobs = {r.job.job: r.job for r in records if r.WhichOneof("record") == "job"}
        return jobs, {r.run.run: r.run for r in records if r.WhichOneof("record") == "run"}

    def _read(self, reader: Reader) -> None:
        assert self._aside is not None
        for delivery in reader.poll(self._poll_s):
            if self._aside.holds(delivery):
                continue  # what was refused when it came is not done at a later start
            try:
                self._request(orjson.loads(delivery.value or b"{}"), delivery)
            except (Poison, ValueError, KeyError, TypeError) as error:
                self._aside.put(delivery, error)

    def _request(self, request: Mapping[str, Any], delivery: Delivery) -> None:
        kinds = {"deploy": self._deploy, "traffic": self._traffic, "withdraw": self._withdraw}
        if request["kind"] not in kinds:
            raise Poison(f'kind "{request["kind"]}" is unknown', remedy=did_you_mean(str(request["kind"]), kinds))
        kinds[request["kind"]](request, datetime.fromtimestamp(delivery.timestamp_ms / 1000, UTC))

    def _deploy(self, request: Mapping[str, Any], at: datetime) -> None:
        run = self.runs()[request["run"]]
        alias = request.get("alias", "")
        self._book.deploy(run, request["model"], request["owner"], alias, at, self._clock.now())

    def _traffic(self, request: Mapping[str, Any], at: datetime) -> None:
        weights = [sv.Weight(model=w["model"], weight=w["weight"]) for w in request["weights"]]
        self._book.traffic(request["owner"], request["alias"], weights, at, self._clock.now())

    def _withdraw(self, request: Mapping[str, Any], at: datetime) -> None:
        self._book.withdraw(request["model"], at, self._clock.now())

    # Rolling out.

    def _between_looks(self, now: float) -> float:
        """Seconds. Servers that go after their drain are looked at as often as those that come."""
        settled = now - self._written_at > self._config.serving_drain_s + _SETTLED_S
        return self._config.quiet_watch_s if settled and self._book.is_quiet() else self._config.serving_watch_s

    def _watch(self) -> None:
        """Has the servers looked at: bases that are up, models that a restart took, servers that nobody needs."""
        assert self._looking is not None
        book, coming = self._book, self._book.pending()
        away = self._making_way(coming)
        served = [model for model in book.served() if model.name not in away]
        now, drain = self._clock.now(), timedelta(seconds=self._config.serving_drain_s)
        book.keep_bases(self._bases.keys(), now)
        for name in self._bases.keys() - book.models.keys():
            book.base(name, None, now, "its server is being looked for")
        needed = {model.export.digest for model in [*book.served(), *coming]}  # others' names for the same files
        idle = [m for m in book.idle(now - drain) if m.export.digest not in needed]
        self._looking.start(
            Look(
                [(name, folder, book.url(name)) for name, folder in self._bases.items()],
                [(model.name, _held(model)) for model in served],
                [(model.name, _held(model).export) for model in idle],
                [_held(model) for model in [*coming, *(book.models[name] for name in away)]],
            )
        )

    def _seen(self) -> None:
        """Writes down what the last look found."""
        assert self._looking is not None
        now = self._clock.now()
        for finding in self._looking.found():
            if finding.name in self._bases:
                self._book.base(finding.name, finding.endpoint, now, finding.trouble, finding.behind)
            elif finding.url:
                # A stack that was started again on other ports has its server elsewhere.
                self._book.moved(finding.name, finding.url, now, finding.behind)
            else:
                self._book.troubled(finding.name, finding.trouble, now)

    def _making_way(self, coming: Iterable[sv.ModelSnapshot]) -> set[str]:
        """Models whose servers have to go before those of the coming ones start."""
        if self._config.rollout_strategy == "surge":
            return set()
        return {old.name for model in coming for old in self._book.superseded_by(model.name)}

    def _next(self, now: float) -> None:
        if self._rolling is not None or self._pool is None:
            return
        for model in self._book.pending():
            self._found_at.setdefault(model.name, now)
            if now >= self._not_before.get(model.name, 0.0):
                rolling = _RollingOut(model.name)
                away = self._making_way([model])
                instead_of = [_held(self._book.models[name]) for name in sorted(away)]
                rolling.future = self._pool.submit(
                    self._rollout.roll_out, _held(model).export, rolling.proving.set, instead_of, rolling.reached
                )
                self._rolling = rolling
                return

    def _rolling_out(self) -> str:
        rolling = self._rolling
        return "" if rolling is None else rolling.name

    def _collect(self) -> None:
        rolling = self._rolling
        if rolling is None:
            return
        now = self._clock.now()
        self._book.progressed(rolling.name, rolling.progress)
        if rolling.proving.is_set():
            self._book.proving(rolling.name, now)
        if not rolling.future.done():
            return
        self._rolling = None
        error = rolling.future.exception()
        if error is None:
            failpoint("serving.after_rollout")
            result = rolling.future.result()
            outcome = "passed" if result.proof.model.passed else "refused"
            self._telemetry.metrics.contract_tests.labels(outcome).inc()
            self._book.rolled_out(rolling.name, result, now)
            began = self._found_at.pop(rolling.name)
            if result.proof.model.passed:
                self._telemetry.metrics.rollout_seconds.observe(self._clock.monotonic() - began)
        elif isinstance(error, Poison):
            del self._found_at[rolling.name]
            self._book.refuse(rolling.name, str(error), error.remedy, now)
        elif isinstance(error, Transient):
            if self._book.models[rolling.name].message != str(error):  # a pod may wait for hours
                self._telemetry.log.warning("rollout is tried again", model=rolling.name, error=str(error))
            self._book.waits(rolling.name, str(error), now)
            self._not_before[rolling.name] = self._clock.monotonic() + _RETRY_S
        else:
            raise error

    # Writing.

    def _write(self) -> None:
        """One write for all that changed: a model's last step and the move of its aliases are one event."""
        if not self._book.dirty:
            return
        changed = in_order({key: self._book.record(key) for key in self._book.dirty})
        self._writer.put_all(changed)
        self._book.dirty.clear()
        self._written_at = self._clock.monotonic()
        self._count()
        for key, record in changed.items():
            known = self._shown.get(key)
            self._shown.show(key, record)
            if _deployed(record) and not _announced(known):
                failpoint("serving.before_notice")
                self._tell_deployed(key, record, again=True)

    def _tell_coming(self) -> None:
        """Whoever asks for an alias whose first model is under way is to hear how far that is: it is no event."""
        coming = {f"alias/{name}": sv.ModelRecord(alias=alias) for name, alias in self._book.coming_aliases().items()}
        for key in self._coming.keys() - coming.keys():
            coming[key] = sv.ModelRecord(alias=sv.AliasSnapshot(alias=key.partition("/")[2]))
        if coming != self._coming:
            self._coming = coming
            self._shown.wake()

    def _count(self) -> None:
        states = Counter(sv.ModelState.Name(model.state) for model in self._book.models.values())
        for state, _ in sv.ModelState.items():
            self._telemetry.metrics.models.labels(state.removeprefix("MODEL_STATE_").lower()).set(states[state])

    def _tell_deployed(self, key: str, record: sv.ModelRecord, *, again: bool) -> None:
        """One notice a move of an alias, and one a model, with more if it is served ``again`` after a withdrawal."""
        assert self._deployed is not None
        if not _deployed(record):
            return
        is_alias = record.WhichOneof("record") == "alias"
        if is_alias and self._deployed.told(f"{key}/{record.alias.requested_at.ToNanoseconds()}"):
            return  # as an earlier version named a move
        changed = record.alias.updated_at if is_alias else record.model.updated_at
        since = changed if is_alias else record.model.created_at
        name = f"{key}/{since.ToNanoseconds()}"
        if again and self._deployed.told(name):
            name = f"{key}/{changed.ToNanoseconds()}"
        self._deployed.tell(name, key.partition("/")[2], record.SerializeToString(), changed)


def _held(model: sv.ModelSnapshot) -> Held:
    """A copy, for other threads."""
    export = tr.Export()
    export.CopyFrom(model.export)
    return Held(export, model.endpoint.url)


def _deployed(record: sv.ModelRecord) -> bool:
    return record.WhichOneof("record") == "alias" or record.model.state == sv.MODEL_STATE_SERVED


def _announced(known: sv.ModelRecord | None) -> bool:
    """Whether what was shown before has been announced: a base once, also if its server was away meanwhile."""
    if known is None or known.WhichOneof("record") == "alias":
        return False
    base_was_up = not known.model.export.digest and known.model.endpoint.url != ""
    return base_was_up or known.model.state == sv.MODEL_STATE_SERVED
