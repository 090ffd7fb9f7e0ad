"""The documents: every relative link leads somewhere, and what is written from code is as the code is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shortstack.cli.settings_doc import settings_document

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "services/**/*.md", "benchmarks/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    missing = []
    for target in LINK.findall(text):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (document.parent / file).resolve() if file else document
        if not found.exists() or (anchor and anchor not in headings(found)):
            missing.append(target)
    assert missing == []


def headings(document: Path) -> set[str]:
    """Anchors as GitHub makes them: small letters, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_documents_to_look_at() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {document.name for document in DOCUMENTS}


def test_the_page_of_settings_is_as_the_code_has_them() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == settings_document(), "run `python -m shortstack.cli.settings_doc > docs/settings.md`"


def test_what_the_status_points_at_is_there() -> None:
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / "docs" / "status.md").read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
