"""From a dataset that is whole to the plan of its version, and what is mixed into it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC
from typing import Any

import orjson

from shortstack.assembly.datasets import Dataset
from shortstack.assembly.plan import AssemblyPlan, MixIn, Segment
from shortstack.core.errors import NotFound
from shortstack.messages.v1.dataset_pb2 import DATASET_STATE_READY, DatasetSnapshot, MixedVersion, Publication

__all__ = ["mix_of", "plan_of", "publication_prefix"]


def publication_prefix(snapshot: DatasetSnapshot) -> str:
    """Object prefix of a publication; all its record text stands below."""
    publication = snapshot.publication
    return f"publications/{publication.owner}/{publication.publication}"


def mix_of(publication: Publication, known: Iterable[DatasetSnapshot]) -> list[MixedVersion]:
    """The versions that the publication's recipe mixes in: the newest ready one of each dataset it names.

    Raises:
        NotFound: one of them has no ready version.
    """
    wanted: list[dict[str, Any]] = orjson.loads(publication.recipe_json or "{}").get("mix") or []
    if not wanted:
        return []
    ready = [s for s in known if s.publication.owner == publication.owner and s.state == DATASET_STATE_READY]
    return [_newest(entry, ready) for entry in wanted]


def _newest(entry: dict[str, Any], ready: Sequence[DatasetSnapshot]) -> MixedVersion:
    named = [s for s in ready if s.publication.dataset == entry["dataset"]]
    if not named:
        raise NotFound(
            f'mix names dataset "{entry["dataset"]}", which is not ready',
            remedy="Publish it first, or accept it if it is held; then publish this one again.",
        )
    newest = max(named, key=lambda s: s.publication.accepted_at.ToDatetime(tzinfo=UTC))
    return MixedVersion(
        dataset=entry["dataset"],
        version=newest.version,
        manifest=newest.manifest,
        factor=float(entry.get("factor", 1.0)),
    )


def plan_of(dataset: Dataset, storage_url: str) -> AssemblyPlan:
    """What the assembling child is asked to do: a function of ledger and snapshot, so the same after a restart."""
    publication, snapshot = dataset.ledger.publication, dataset.snapshot
    recipe = orjson.loads(publication.recipe_json)
    return AssemblyPlan(
        storage_url=storage_url,
        prefix=publication_prefix(snapshot),
        segments=[Segment(e.segment, e.sha256, e.source) for e in dataset.ledger.entries() if e.segment],
        deduplicate=recipe.get("deduplicate", "exact"),
        order=recipe.get("order", "shuffle"),
        seed=int(recipe.get("seed", 42)),
        validation=float(recipe.get("validation") or 0),
        mix=[MixIn(m.dataset, m.version, m.manifest, m.factor) for m in snapshot.mix],
        head=_head(dataset, recipe),
    )


def _head(dataset: Dataset, recipe: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says beside splits and counts."""
    publication, snapshot = dataset.ledger.publication, dataset.snapshot
    return {
        "owner": publication.owner,
        "dataset": publication.dataset,
        "publication": publication.publication,
        "attempt": publication.attempt,
        "counts": {name: getattr(snapshot.counts, name) for name in ("items", "malformed", "rejected", "failed")},
        "reasons": [{"step": r.step, "reason": r.reason, "records": r.records} for r in snapshot.reasons],
        "license": publication.license,
        "prompt_format": publication.prompt_format,
        "recipe": recipe,
        "recipe_digest": publication.recipe_digest,
        "sources": [
            {"uri": s.uri, "revision": s.revision, "object": s.object, "sha256": s.sha256, "bytes": s.bytes}
            for s in publication.sources
        ],
        "malformed_objects": dataset.ledger.malformed_objects(),
        "failed_batches": [asdict(batch) for batch in dataset.ledger.failed_batches()],
    }
