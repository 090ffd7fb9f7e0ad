"""Models and aliases: what is wished, what is, and what follows. Pure.

A model's id never changes; an alias moves over models. An alias carries the time of the request that set it: an older
request that finishes later leaves it, a rollback is a newer request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr
from shortstack.serving.known import OVER, Known
from shortstack.serving.rollout import RolledOut

__all__ = ["ModelBook", "stamp"]

_JOB_OVER: Final = frozenset({tr.JOB_STATE_FAILED, tr.JOB_STATE_CANCELLED})
_TROUBLE: Final = "its server does not answer: "
_BEHIND: Final = "still served by the server of the earlier template: "
_NO_BASE: Final = "it is no longer among the base models (baseModels of the values, SHORTSTACK_BASE_MODELS)"
_OPEN: Final = frozenset({sv.MODEL_STATE_LOADING, sv.MODEL_STATE_PROVING})
_MISSES: Final = 3
"""Looks that fail one after the other until a base loses its route: one alone says that its server is busy."""


def stamp(field: Timestamp, at: datetime) -> None:
    """Sets a protobuf timestamp."""
    field.FromDatetime(at.astimezone(UTC).replace(tzinfo=None))


class ModelBook:
    """All models and aliases by name; ``dirty`` holds the keys that must be written.

    Args:
        keep_superseded: whether a model stays served when its last alias has moved to another.
    """

    def __init__(self, *, keep_superseded: bool = True) -> None:
        self._keep_superseded = keep_superseded
        self.models: dict[str, sv.ModelSnapshot] = {}
        self.aliases: dict[str, sv.AliasSnapshot] = {}
        self.known = Known(self.models, self.aliases)
        self.dirty: set[str] = set()
        # Aliases that move to a model once it is served: model → (alias, when it was requested, job).
        self._moves: dict[str, dict[str, tuple[datetime, str]]] = {}
        self._missed: Counter[str] = Counter()  # looks in a row at a served base
        self._ordered: set[str] = set()  # by an operator, so that they are wanted without a job

    def restore(self, records: Iterable[sv.ModelRecord]) -> None:
        """Takes what the state topic holds."""
        for record in records:
            if record.WhichOneof("record") == "model":
                self.models[record.model.name] = record.model
            else:
                self.aliases[record.alias.alias] = record.alias

    def record(self, key: str) -> sv.ModelRecord:
        """What the state topic is told of ``model/NAME`` or ``alias/NAME``."""
        kind, _, name = key.partition("/")
        if kind == "model":
            return sv.ModelRecord(model=self.models[name])
        return sv.ModelRecord(alias=self.aliases[name])

    def is_quiet(self) -> bool:
        """Whether no model is on its way, and all that take traffic answer, at servers of the newest template."""
        said = (m.message for m in self.models.values() if m.state == sv.MODEL_STATE_SERVED)
        on_the_way = any(m.state in _OPEN for m in self.models.values())
        return not on_the_way and not any(words.startswith((_TROUBLE, _BEHIND)) for words in said)

    # Wishes.

    def base(self, name: str, endpoint: sv.Endpoint | None, now: datetime, why: str = "", behind: str = "") -> None:
        """Says whether a base model is served as it is, else why not; and why an upgrade has not reached it.

        One that was served stays so until it has been missed three times in a row.
        """
        model = self.models.get(name)
        if model is None:
            model = self._open(name, "", tr.Export(), "", now)
        missed = endpoint is None and model.state == sv.MODEL_STATE_SERVED
        self._missed[name] = self._missed[name] + 1 if missed else 0
        if 0 < self._missed[name] < _MISSES:
            self.troubled(name, why, now)
            return
        wanted = sv.MODEL_STATE_SERVED if endpoint is not None else sv.MODEL_STATE_LOADING
        said = f"{_BEHIND}{behind}" if behind else why
        if model.state == wanted and model.message == said and endpoint in (None, model.endpoint):
            return
        model.state, model.message, model.progress = wanted, said, float(endpoint is not None)
        if endpoint is not None:
            model.endpoint.CopyFrom(endpoint)
        self._touch(model, now)

    def keep_bases(self, configured: Collection[str], now: datetime) -> None:
        """Withdraws bases that are no longer among those configured; `base` brings one back that is again."""
        for model in self.models.values():
            gone = not model.export.digest and model.name not in configured
            if gone and model.state != sv.MODEL_STATE_WITHDRAWN:
                model.state, model.message = sv.MODEL_STATE_WITHDRAWN, _NO_BASE
                self._touch(model, now)

    def follow(self, jobs: Mapping[str, tr.JobSnapshot], runs: Mapping[str, tr.RunSnapshot], now: datetime) -> None:
        """Opens the models that jobs wish to have served, and drops the wishes of jobs that ended without."""
        living = set()
        for job in jobs.values():
            run = runs.get(job.run)
            if not job.model or run is None or run.state != tr.RUN_STATE_SUCCEEDED or job.state in _JOB_OVER:
                continue
            living.add(job.job)
            self._follow_job(job, run, now)
        for moves in self._moves.values():
            for alias in [alias for alias, (_, job) in moves.items() if job and job not in living]:
                del moves[alias]
        for model in self.pending():
            wanted = any(job in living or job not in jobs for job in model.jobs)
            if model.jobs and not wanted and model.name not in self._ordered:
                model.state, model.message = sv.MODEL_STATE_WITHDRAWN, "every job that wished for it is over"
                self._touch(model, now)
        self._sweep(jobs, now)

    def _follow_job(self, job: tr.JobSnapshot, run: tr.RunSnapshot, now: datetime) -> None:
        model = self.models.get(job.model) or self._open(job.model, job.owner, run.export, run.run, now)
        newcomer = job.job not in model.jobs
        if newcomer:
            model.jobs.append(job.job)
            self._touch(model, now)
        # One that succeeded is not opened anew when it is asked for again: the wish alone is newer.
        asked_at = max(job.opened_at.ToDatetime(tzinfo=UTC), job.wished_at.ToDatetime(tzinfo=UTC))
        waits = job.state != tr.JOB_STATE_SUCCEEDED
        if model.state in OVER and (model.updated_at.ToDatetime(tzinfo=UTC) < asked_at or (newcomer and waits)):
            self._reopen(model, now)
        wish = orjson.loads(job.request_json).get("deploy") or {}
        if wish.get("alias"):
            self._wish_alias(model.name, wish["alias"], asked_at, job.job)

    def deploy(self, run: tr.RunSnapshot, name: str, owner: str, alias: str, at: datetime, now: datetime) -> None:
        """Opens a model on an operator's request; one that was refused or withdrawn opens anew if that is newer."""
        model = self.models.get(name) or self._open(name, owner, run.export, run.run, now)
        self._ordered.add(name)
        if model.state in OVER and at > model.updated_at.ToDatetime(tzinfo=UTC):
            self._reopen(model, now)
        if alias:
            self._wish_alias(name, alias, at, "")

    def _reopen(self, model: sv.ModelSnapshot, now: datetime) -> None:
        model.state, model.message, model.remedy, model.proof_json = sv.MODEL_STATE_LOADING, "", "", ""
        model.progress = 0.0
        self._touch(model, now)

    def _open(self, name: str, owner: str, export: tr.Export, run: str, now: datetime) -> sv.ModelSnapshot:
        model = sv.ModelSnapshot(name=name, owner=owner, state=sv.MODEL_STATE_LOADING, export=export, run=run)
        stamp(model.created_at, now)
        self.models[name] = model
        self._touch(model, now)
        return model

    def _wish_alias(self, model: str, alias: str, requested_at: datetime, job: str) -> None:
        known = self._moves.setdefault(model, {}).get(alias)
        if known is None or known[0] < requested_at:
            self._moves[model][alias] = (requested_at, job)

    # What follows.

    def pending(self) -> list[sv.ModelSnapshot]:
        """Models that are to be rolled out, oldest first; base models are not rolled out."""
        found = [m for m in self.models.values() if m.state in _OPEN and m.export.digest]
        return sorted(found, key=lambda model: model.created_at.ToNanoseconds())

    def served(self) -> list[sv.ModelSnapshot]:
        """Fine-tuned models that take traffic."""
        return [m for m in self.models.values() if m.state == sv.MODEL_STATE_SERVED and m.export.digest]

    def progressed(self, name: str, part: float) -> None:
        """The rollout is so far, 0 to 1; it never goes back. No change that would make an older withdrawal stale."""
        model = self.models[name]
        if model.state in _OPEN and part > model.progress:
            model.progress = part
            self.dirty.add(f"model/{name}")

    def proving(self, name: str, now: datetime) -> None:
        """The weights are loaded, the probes are being asked."""
        model = self.models[name]
        if model.state == sv.MODEL_STATE_LOADING:
            model.state, model.message = sv.MODEL_STATE_PROVING, "asking the probes of its training"
            self._touch(model, now)

    def rolled_out(self, name: str, result: RolledOut, now: datetime) -> None:
        """The contract test has been made: the model takes traffic, and its aliases move with the same write."""
        model = self.models[name]
        if model.state not in _OPEN:
            return
        model.proof_json = orjson.dumps(result.proof.as_dict()).decode()
        if not result.proof.model.passed:
            remedy = "The weights that were trained are kept; see docs/serving.md, “A model is refused”."
            self.refuse(name, f"contract test: {result.proof.model.why}", remedy, now)
            return
        model.endpoint.CopyFrom(result.endpoint)
        model.state, model.remedy, model.progress = sv.MODEL_STATE_SERVED, "", 1.0
        said = _words_of_proof(model)
        model.message = "; ".join(filter(None, [said, *self._move(model, now)]))
        self._touch(model, now)

    def moved(self, name: str, url: str, now: datetime, behind: str = "") -> None:
        """A served model answers at ``url`` now; ``behind`` says why an upgrade has not reached it."""
        model = self.models[name]
        said = f"{_BEHIND}{behind}" if behind else model.message
        if not behind and said.startswith((_TROUBLE, _BEHIND)):
            said = _words_of_proof(model)
        if model.state == sv.MODEL_STATE_SERVED and (model.endpoint.url, model.message) != (url, said):
            model.endpoint.url, model.message = url, said
            self._touch(model, now)

    def troubled(self, name: str, why: str, now: datetime) -> None:
        """A served model does not answer now; its route stays, for it comes back."""
        model = self.models[name]
        if model.state == sv.MODEL_STATE_SERVED and model.message != f"{_TROUBLE}{why}":
            model.message = f"{_TROUBLE}{why}"
            self._touch(model, now)

    def url(self, name: str) -> str:
        """Where a model answers, or did last; empty if it never has."""
        model = self.models.get(name)
        return "" if model is None else model.endpoint.url

    def refuse(self, name: str, why: str, remedy: str, now: datetime) -> None:
        """The model never takes traffic."""
        model = self.models[name]
        if model.state in _OPEN:
            model.state, model.message, model.remedy = sv.MODEL_STATE_REFUSED, why, remedy
            self._touch(model, now)

    def waits(self, name: str, why: str, now: datetime) -> None:
        """Says what a rollout waits for."""
        model = self.models[name]
        if model.state in _OPEN and model.message != why:
            model.message = why
            self._touch(model, now)

    def move_aliases(self, now: datetime) -> None:
        """Moves every alias whose model is served, unless a newer request has moved it already."""
        for name in self._moves:
            model = self.models.get(name)
            if model is not None and model.state == sv.MODEL_STATE_SERVED:
                self._move(model, now)

    def _move(self, model: sv.ModelSnapshot, now: datetime) -> list[str]:
        """Moves the model's aliases; what to say of those that stay."""
        stay = []
        for alias, (requested_at, job) in self._moves.get(model.name, {}).items():
            weights = [sv.Weight(model=model.name, weight=100)]
            known = self.aliases.get(alias)
            if known is not None and known.owner != model.owner:
                stay.append(f'alias "{alias}" belongs to another owner and was left')
            elif known is not None and known.requested_at.ToDatetime(tzinfo=UTC) > requested_at:
                stay.append(f'superseded: a newer request has set alias "{alias}"')
            self._set_alias(alias, model.owner, weights, requested_at, job, now)
        return stay

    def traffic(
        self, owner: str, alias: str, weights: Sequence[sv.Weight], requested_at: datetime, now: datetime
    ) -> None:
        """Sets an alias by hand, unless a newer request has: one that is read again after a start changes nothing.

        Raises:
            Invalid, NotFound, Conflict: it may not be set so now, whatever was so when it was asked for.
        """
        known = self.aliases.get(alias)
        if known is not None and known.requested_at.ToDatetime(tzinfo=UTC) >= requested_at:
            return
        self.known.check_weights(owner, alias, weights)
        self._set_alias(alias, owner, weights, requested_at, "", now)

    def _set_alias(
        self,
        alias: str,
        owner: str,
        weights: Sequence[sv.Weight],
        requested_at: datetime,
        job: str,
        now: datetime,
    ) -> None:
        known = self.aliases.get(alias)
        if known is not None and (known.owner != owner or known.requested_at.ToDatetime(tzinfo=UTC) >= requested_at):
            return
        snapshot = sv.AliasSnapshot(alias=alias, owner=owner, weights=weights, job=job)
        stamp(snapshot.requested_at, requested_at)
        stamp(snapshot.updated_at, now)
        if known is not None and known.weights == snapshot.weights:
            # Asked for once more: it counts against older requests, and is no move.
            snapshot.updated_at.CopyFrom(known.updated_at)
        self.aliases[alias] = snapshot
        self.dirty.add(f"alias/{alias}")
        for lost in known.weights if known is not None else ():
            self._supersede(lost.model, alias, now)

    def coming_aliases(self) -> dict[str, sv.AliasSnapshot]:
        """Aliases that stand for nothing yet, as they will once the model that is under way for them is served."""
        found: dict[str, sv.AliasSnapshot] = {}
        for model in self.pending():
            for alias, (at, job) in self._moves.get(model.name, {}).items():
                if alias not in self.aliases and alias not in found:
                    weights = [sv.Weight(model=model.name, weight=100)]
                    found[alias] = sv.AliasSnapshot(alias=alias, owner=model.owner, weights=weights, job=job)
                    stamp(found[alias].requested_at, at)
                    stamp(found[alias].updated_at, at)
        return found

    # What a newer model leaves behind.

    def superseded_by(self, name: str) -> list[sv.ModelSnapshot]:
        """Served models that lose their last alias when this one is served."""
        taken = {
            alias
            for alias, (requested_at, _) in self._moves.get(name, {}).items()
            if (known := self.aliases.get(alias)) is not None
            and known.owner == self.models[name].owner
            and known.requested_at.ToDatetime(tzinfo=UTC) < requested_at
        }
        return [m for m in self.served() if (own := self._aliases_of(m.name)) and m.name != name and own <= taken]

    def _aliases_of(self, name: str) -> set[str]:
        return {alias.alias for alias in self.aliases.values() if any(w.model == name for w in alias.weights)}

    def _supersede(self, name: str, alias: str, now: datetime) -> None:
        """Withdraws a model that has lost its last alias; it is in the same write as the move."""
        model = self.models.get(name)
        if self._keep_superseded or model is None or model.state != sv.MODEL_STATE_SERVED or not model.export.digest:
            return
        if self._aliases_of(name):
            return
        heirs = ", ".join(sorted(weight.model for weight in self.aliases[alias].weights))
        again = f"shortstack models deploy {model.run} --suffix {name.split(':')[-2]} --alias {alias}"
        model.state = sv.MODEL_STATE_WITHDRAWN
        model.message = f'superseded by {heirs} on alias "{alias}"; serve it again with: {again}'
        self._touch(model, now)

    def _sweep(self, jobs: Mapping[str, tr.JobSnapshot], now: datetime) -> None:
        """Withdraws models that were served after a newer request had set every alias they were meant for.

        Their jobs must have heard first that they were served.
        """
        for model in self.served():
            wished = self._moves.get(model.name, {})
            heard = all(jobs[job].state == tr.JOB_STATE_SUCCEEDED for job in model.jobs if job in jobs)
            overtaken = wished and all(self._is_overtaken(model, alias, at) for alias, (at, _) in wished.items())
            if overtaken and heard and model.name not in self._ordered:
                self._supersede(model.name, min(wished), now)

    def _is_overtaken(self, model: sv.ModelSnapshot, alias: str, requested_at: datetime) -> bool:
        known = self.aliases.get(alias)
        if known is None or known.owner != model.owner:
            return False
        return known.requested_at.ToDatetime(tzinfo=UTC) > requested_at

    # What is asked by hand.

    def withdraw(self, name: str, requested_at: datetime, now: datetime) -> bool:
        """Takes a model out of traffic; whether it was in it. An older request than its last change is stale.

        Raises:
            Conflict: an alias leads to it.
        """
        model = self.models.get(name)
        if model is None or not model.export.digest or model.state == sv.MODEL_STATE_WITHDRAWN:
            return False
        if requested_at < _milliseconds(model.updated_at.ToDatetime(tzinfo=UTC)):
            return False
        self.known.check_unused(name)
        model.state, model.message = sv.MODEL_STATE_WITHDRAWN, "withdrawn"
        self._touch(model, now)
        return True

    def idle(self, drained: datetime) -> list[sv.ModelSnapshot]:
        """Fine-tuned models that no server needs to hold: refused, or withdrawn until ``drained`` at the latest."""
        over = [m for m in self.models.values() if m.state in OVER and m.export.digest]
        refused = sv.MODEL_STATE_REFUSED
        return [m for m in over if m.state == refused or m.updated_at.ToDatetime(tzinfo=UTC) <= drained]

    def _touch(self, model: sv.ModelSnapshot, now: datetime) -> None:
        stamp(model.updated_at, now)
        self.dirty.add(f"model/{model.name}")


def _words_of_proof(model: sv.ModelSnapshot) -> str:
    """What there is to say of a model that passed its contract test."""
    measurable = not model.proof_json or orjson.loads(model.proof_json)["measurable"]
    return "" if measurable else "no measurable change: the base passes the same test"


def _milliseconds(at: datetime) -> datetime:
    """As exact as the broker's append times, so that a request is not older than what it followed."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
