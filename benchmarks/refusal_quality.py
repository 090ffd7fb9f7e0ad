"""Quality of the refusal step: precision and recall on answers that people labelled, and misfires in human chat.

    python benchmarks/refusal_quality.py [FOLDER]

FOLDER holds ``csv/pyrit_refusal.csv`` (answers with a person's verdict) and ``dialogue/chitchat_A.json`` (people
talking to people, so that nothing in it declines a task); ../shared/data unless given. One JSON object a line; the
baseline is the same figure of IHOP's keyword list (``ihop``) on the same texts.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from shortstack.declarations.recipe import RefusalStep
from shortstack.formatting.steps.refusal import Refusal, opening

FOLDER: Final = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def one_line(text: str) -> str:
    """The whole text, as the list of IHOP is matched."""
    return text.replace("\n", " ")


METHODS: Final[dict[Literal["opening", "ihop"], Callable[[str], str]]] = {"opening": opening, "ihop": one_line}
BASELINE: Final = "ihop"


def labelled(folder: Path) -> list[tuple[str, bool]]:
    """(answer, whether a person calls it a refusal)."""
    with (folder / "csv" / "pyrit_refusal.csv").open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("# dataset_version"))
        return [(row["assistant_response"], row["human_score"] == "1") for row in rows]


def chat(folder: Path) -> list[str]:
    """Every turn of the chats."""
    return list(_texts(orjson.loads((folder / "dialogue" / "chitchat_A.json").read_bytes())))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value["text"]
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The figures, method by method, and how many answers they are of."""
    answers, turns = labelled(folder), chat(folder)
    refusals = sum(refused for _, refused in answers)
    measured: dict[str, dict[str, tuple[float, str]]] = {}
    for method, look in METHODS.items():
        step = Refusal(RefusalStep(method=method))
        found = step.found([look(answer) for answer, _ in answers])
        right = sum(answers[index][1] for index in found)
        misfires = len(step.found([look(turn) for turn in turns]))
        measured[method] = {
            "precision": (right / len(found) if found else 0.0, "share"),
            "recall": (right / refusals, "share"),
            "misfires_in_chat": (misfires / len(turns), "share of turns"),
        }
    for measured_by, figures in measured.items():
        for name, (value, unit) in figures.items():
            yield _line(f"refusal_{measured_by}_{name}", value, unit, measured[BASELINE][name][0])
    yield _line("refusal_labelled", refusals, f"of {len(answers)} answers", None)


def _line(name: str, value: float, unit: str, baseline: float | None) -> dict[str, Any]:
    """A figure; the ratio is null where there is no baseline, or it is 0."""
    known = None if baseline is None else round(baseline, 4)
    ratio = round(value / baseline, 2) if baseline else None
    return {"name": name, "value": round(value, 4), "unit": unit, "baseline": known, "ratio": ratio}


def main() -> None:
    """Prints the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not here; name the folder of the data as an argument")
    for line in lines(folder):
        print(orjson.dumps(line).decode())


if __name__ == "__main__":
    main()
