"""What the chart holds that is written from elsewhere: the declared topics, and the table of values in its README.

python deploy/chart_files.py          writes both
python deploy/chart_files.py --check  says what is not fresh; exits 1 then
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from shortstack.streams.topics import TOPICS

CHART = Path(__file__).resolve().parent.parent / "helm" / "shortstack"
README = CHART / "README.md"
BEGIN = "<!-- values: written by deploy/chart_files.py -->"
END = "<!-- end of values -->"


class Unlisted(Exception):
    """A value without a schema, or a schema without a value."""


def topics() -> str:
    """The declaration of every topic as JSON: its digest names the Job that applies it."""
    rows = [
        {
            "name": topic.name,
            "key": topic.key,
            "value": topic.value,
            "kind": str(topic.kind),
            "partitions": topic.partitions,
            "configs": topic.configs,
        }
        for topic in TOPICS.values()
    ]
    return json.dumps(sorted(rows, key=lambda row: str(row["name"])), indent=2, ensure_ascii=False) + "\n"


def leaves(schema: Mapping[str, Any], values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, default, meaning) of every value, in the schema's order.

    Raises:
        Unlisted: the two differ in what they name; says where.
    """
    named = schema["properties"]
    for name in [*named, *values]:
        if name not in named or name not in values:
            lacking = "values.schema.json" if name not in named else "values.yaml"
            raise Unlisted(f"{path}{name} is not in {lacking}")
    for name, entry in named.items():
        if "properties" in entry:
            yield from leaves(entry, values[name], f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(values[name], ensure_ascii=False), entry["description"]


def choices(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, list[str]]]:
    """The values that a value may have, where these are few."""
    for name, entry in schema["properties"].items():
        if "properties" in entry:
            yield from choices(entry, f"{path}{name}.")
        elif "enum" in entry:
            yield f"{path}{name}", entry["enum"]


def table() -> str:
    """The table of values in Markdown."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    enums = dict(choices(schema))
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, meaning in leaves(schema, values):
        known = [f"`{choice}`" for choice in enums.get(path, []) if f"`{choice}`" not in meaning]
        said = f"{meaning} One of {', '.join(known)}." if known else meaning
        lines.append(f"| `{path}` | `{default}` | {said} |".replace('`""`', "unset"))
    base = schema["properties"]["baseModels"]["items"]["properties"]
    lines += [f"| `baseModels[].{name}` | | {entry['description']} |" for name, entry in base.items()]
    return "\n".join(lines)


def readme() -> str:
    """The README with its table as it should be."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Writes what is stale, or names it."""
    stale = 0
    for path, content in ((CHART / "files" / "topics.json", topics()), (README, readme())):
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        stale += 1
        if "--check" in arguments:
            sys.stderr.write(f"{path.relative_to(CHART.parent.parent)} is not fresh: python deploy/chart_files.py\n")
        else:
            path.write_text(content, encoding="utf-8")
    return int(stale > 0 and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
