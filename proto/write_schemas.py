"""Writes proto/schemas/*.json, the JSON Schemas of the topics that people write to, or checks that they are fresh.

python proto/write_schemas.py          writes
python proto/write_schemas.py --check  exits 1 and names each file that differs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shortstack.declarations.publication import publication_schema

FOLDER: Final = Path(__file__).resolve().parent / "schemas"
SCHEMAS: Final[dict[str, Callable[[], dict[str, Any]]]] = {"datasets.ingest.json": publication_schema}


def schema_text(name: str) -> str:
    """The text of one schema file."""
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Writes, or with ``--check`` compares; the exit code."""
    stale = [name for name in SCHEMAS if not _fresh(name)]
    if "--check" in arguments:
        for name in stale:
            print(f"proto/schemas/{name} is not what its models say; run: python proto/write_schemas.py")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(schema_text(name), encoding="utf-8")
    return 0


def _fresh(name: str) -> bool:
    path = FOLDER / name
    return path.exists() and path.read_text(encoding="utf-8") == schema_text(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
