"""A run folder, cells and records for tests of the store, and processes that die in it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Record
from mtlbench.store import Claim, RunFolder

SPAWN = multiprocessing.get_context("spawn")


def make_folder(path: Path) -> RunFolder:
    made = RunFolder(path)
    made.preflight()
    return made


def make_cell(seed: int = 0) -> Cell:
    return Cell(method="toy", tasks=("toy/a", "toy/b"), model="toy", protocol=Protocol(steps=4), seed=seed)


def make_record(seed: int = 0, **changes: Any) -> Record:
    return Record(cell=make_cell(seed), status="ok", **changes)


def publish(folder: RunFolder, record: Record) -> Path:
    claim = folder.claim(record.key)
    assert claim is not None
    assert folder.publish(record, claim)
    folder.release(claim)
    return folder.path / "records" / f"{record.key}.json"


def dead_claim(folder: RunFolder, key: str) -> Claim:
    """The claim of a process that took it and died."""
    code = "import os, sys; from pathlib import Path; from mtlbench.store import RunFolder\n"
    code += "assert RunFolder(Path(sys.argv[1])).claim(sys.argv[2]); os._exit(9)"
    ended = subprocess.run([sys.executable, "-c", code, str(folder.path), key], check=False)
    assert ended.returncode == 9
    claim = folder._claims._read(key, 1)
    assert claim is not None
    return claim
