"""Identities along a record's way: source → batch → segment → shard → manifest → version.

A request is a publication, a try is an attempt. Topic, partition and offset are evidence, never a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shortstack.core.digest import identity
from shortstack.core.errors import Invalid

__all__ = [
    "DEFAULT_OWNER",
    "NAME",
    "NAME_RULE",
    "BatchId",
    "begun_by",
    "check_name",
    "job_id",
    "model_name",
    "publication_id",
    "run_id",
]

DEFAULT_OWNER: Final = "default"
"""Owner of what is published on ``datasets.ingest``."""

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""Names of datasets, owners, suffixes: they become parts of topics, object keys and Kubernetes labels."""

NAME_RULE: Final = "Use 1 to 64 of a-z, 0-9, dot, underscore and hyphen, with a letter or digit at both ends."
"""`NAME` in words."""


def check_name(value: str, *, param: str) -> str:
    """Returns ``value`` if it is a name.

    Raises:
        Invalid: it is not; the message names the field and the rule.
    """
    if not NAME.fullmatch(value):
        raise Invalid(
            f'{param} "{value}" is not a name',
            remedy=NAME_RULE,
            param=param,
        )
    return value


_BEGINNING: Final = 8
"""Characters of an id that stand for it, at least; a mistyped name of fewer is not to be taken for one."""


def begun_by(given: str, ids: Iterable[str], *, param: str) -> str | None:
    """The one id that is ``given`` or begins with it, from 8 characters on; None if there is none.

    Raises:
        Invalid: several begin with it.
    """
    known = set(ids)
    if given in known:
        return given
    found = sorted(one for one in known if one.startswith(given)) if len(given) >= _BEGINNING else []
    if len(found) > 1:
        raise Invalid(
            f'{len(found)} ids begin with "{given}"', remedy=f"Give more of it: {', '.join(found[:3])}.", param=param
        )
    return found[0] if found else None


def publication_id(owner: str, dataset: str, sources: Sequence[str], recipe_digest: str) -> str:
    """digest(owner, dataset, sha256 of each pinned source in order, recipe with step versions)."""
    return identity("publication", owner, dataset, list(sources), recipe_digest)


@dataclass(frozen=True, slots=True, order=True)
class BatchId:
    """A batch: ``count`` records of one source from ``first``, cut by pinned size alone."""

    publication: str
    attempt: int
    source: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.publication}.{self.attempt}.{self.source}.{self.first}.{self.count}"

    @classmethod
    def parse(cls, text: str) -> BatchId:
        """Reads what ``str`` wrote.

        Raises:
            Invalid: ``text`` is no batch id.
        """
        parts = text.split(".")
        if len(parts) != 5 or not all(part.isdecimal() for part in parts[1:]):
            raise Invalid(f'"{text}" is not a batch id', remedy="Expected PUBLICATION.ATTEMPT.SOURCE.FIRST.COUNT.")
        return cls(parts[0], int(parts[1]), int(parts[2]), int(parts[3]), int(parts[4]))


def job_id(publication: str, attempt: int, train_json: str, deploy_json: str) -> str:
    """Id of the job that a publication's own ``train`` opens; equal wishes on one attempt have equal ids."""
    return f"ftjob-{identity('job', publication, attempt, train_json, deploy_json)[:24]}"


def run_id(config: Mapping[str, Any], version: str, base_digest: str) -> str:
    """digest(resolved config, dataset version, base model digest)."""
    return identity("run", dict(config), version, base_digest)


def model_name(base: str, owner: str, suffix: str, export_digest: str) -> str:
    """``ft:BASE:OWNER:SUFFIX:12HEX``, where the hex digits are the first of the exported files' digest."""
    return f"ft:{base.rsplit('/', 1)[-1]}:{owner}:{suffix}:{export_digest[:12]}"
