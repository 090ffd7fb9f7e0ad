"""JSON schemas of Kubernetes' kinds as kubeconform reads them: one whole file for each kind.

They come from the package kubernetes-validate, which is in the environment of developers and holds those of many
versions. Its files refer to a common one by an address that kubeconform would fetch, so what each needs is put into it.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["KUBERNETES", "location", "write_schemas"]

KUBERNETES = "v1.33.0"
_COMMON = "_definitions.json"
_HERE = "#/$defs/"
_ADDRESS = f"/api/{_COMMON}{_HERE}"


def location(folder: Path) -> str | None:
    """Where kubeconform finds the schemas; they are written into ``folder`` once. None where the package is missing."""
    found = find_spec("kubernetes_validate")
    if found is None or not found.submodule_search_locations:
        return None
    target = folder / KUBERNETES
    if not target.exists():
        package = Path(found.submodule_search_locations[0])
        write_schemas(package / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict", target)
    return f"{target}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def write_schemas(source: Path, target: Path) -> None:
    """Writes the schema of each kind that a manifest may hold; the folder appears whole."""
    common = json.loads((source / _COMMON).read_text(encoding="utf-8").replace(_ADDRESS, _HERE))["$defs"]
    building = target.with_name(f".{target.name}")
    building.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        schema = json.loads(file.read_text(encoding="utf-8").replace(_ADDRESS, _HERE))
        if "kind" not in schema.get("properties", {}):
            continue
        # Under its own address a reference to itself would be fetched, too.
        kept = {name: value for name, value in schema.items() if name not in ("$id", "$schema")}
        (building / file.name).write_text(json.dumps(kept | {"$defs": _needed(schema, common)}), encoding="utf-8")
    building.rename(target)


def _needed(schema: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Those of the common definitions that a schema refers to, directly or through others."""
    needed: dict[str, Any] = {}
    waiting = list(_references(schema))
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = common[name]
            waiting += _references(common[name])
    return needed


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"].rpartition("/")[2]] if isinstance(part.get("$ref"), str) else []
        return own + [name for value in part.values() for name in _references(value)]
    return [name for value in part for name in _references(value)] if isinstance(part, list) else []
