"""The ledger of published tables: each JSON file in this folder is a paper."""

from __future__ import annotations

from pathlib import Path

from mtlbench import Ledger, hookimpl


@hookimpl
def mtlbench_published() -> list[Ledger]:
    return [Ledger(name="papers", folder=Path(__file__).parent)]
