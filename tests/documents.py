"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

Namespace = dict[str, Any]


class Block(NamedTuple):
    """A block of code."""

    page: str
    language: str
    text: str


BLOCKS = [
    Block(str(page.relative_to(ROOT)), language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


def block(containing: str) -> str:
    """Return the one block that has this in it."""
    found = [one.text for one in BLOCKS if containing in one.text]
    assert len(found) == 1, f"{len(found)} blocks have {containing!r}"
    return found[0]


def run(code: str, names: Namespace) -> None:
    """Run a block, as a module of its own would."""
    exec(compile(code, "<documentation>", "exec", dont_inherit=True), names)
