"""The contract of a ledger: published result tables as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A folder of published tables, one JSON file per paper; docs/published.md describes the format."""

    name: str
    folder: Path
