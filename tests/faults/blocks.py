"""Blocks of a document that commands write: what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def get(name: str, document: Path = DOCUMENT) -> str:
    """What stands in the block ``name``; empty when there is none."""
    rest = document.read_text().partition(f"<!-- begin {name} -->\n")[2]
    return rest.partition(f"<!-- end {name} -->")[0]


def put(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace the block ``name``.

    Raises:
        ValueError: the document has no such block.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    head, found, rest = document.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no block {name}")
    document.write_text(f"{head}{begin}{text.strip()}\n{end}{tail}")
