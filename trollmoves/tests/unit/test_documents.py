"""The files, options and tests that the documents refer to exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PAGES = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for path in [
        *CHECKOUT.glob("*.md"),
        *CHECKOUT.glob("doc/**/*.md"),
        *CHECKOUT.glob("examples/**/*.md"),
        *CHECKOUT.glob("packaging/*.md"),
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


def headings(page: Path) -> Iterator[str]:
    """Return the anchors that a page has, as the usual viewers make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in HEADING.findall(text):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every link within the checkout leads to a file or folder, and to a heading that is in it."""
    path = CHECKOUT / page
    broken = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []
