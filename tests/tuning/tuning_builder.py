"""Searches without training: cells get records with scores that a function makes of their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from record_builder import accuracy

from mtlbench.api.cell import Cell
from mtlbench.api.record import Costs, Failure, Record
from mtlbench.store import RunFolder
from mtlbench.tuning.search import Outcome, search
from mtlbench.tuning.tuning import Tuning, TuningOptions, make_tuning


class Killed(Exception):
    """The process ended here."""


def tuning(**words: Any) -> Tuning:
    return make_tuning(TuningOptions(**{"method": "lora", "tasks": "glue/rte,glue/sst2", "budget": "quick", **words}))


def near(rate: float) -> Callable[[Cell], float]:
    """Highest where the learning rate is ``rate``; larger budgets score a little higher."""
    return lambda cell: 90 - 20 * abs(math.log10(cell.settings["learning_rate"] / rate)) + cell.protocol.epochs  # type: ignore[operator]


class Runner:
    """Runs cells as workers would, each with a record; ends as if killed before cell number ``dies_at``."""

    def __init__(self, folder: RunFolder, score: Callable[[Cell], float | None], dies_at: int | None = None) -> None:
        self.folder, self.score, self.dies_at = folder, score, dies_at
        self.ran: list[Cell] = []
        self.calls: list[int] = []

    def __call__(self, cells: Sequence[Cell]) -> int:
        self.calls.append(len(cells))
        self.folder.put_request({"data": "demo"}, cells)
        self.folder.retire_failed([cell.key for cell in cells])
        code = 0
        # Workers finish in any order.
        for cell in reversed(cells):
            if len(self.ran) == self.dies_at:
                raise Killed
            self.ran.append(cell)
            record = self.record(cell)
            claim = self.folder.claim(cell.key)
            assert claim is not None, "a cell that has a record was asked for again"
            assert self.folder.publish(record, claim)
            self.folder.release(claim)
            code = max(code, int(record.status == "failed"))
        return code

    def record(self, cell: Cell) -> Record:
        score = self.score(cell)
        if score is None:
            why = Failure(kind="oom", message="no memory", next_step="Buy some.")
            return Record(cell=cell, status="failed", failure=why)
        costs = Costs(trainable_parameters=1, backbone_parameters=10, total_seconds=2.0)
        scores = {task: accuracy(score) for task in cell.tasks}
        return Record(
            cell=cell, status="ok", scores=scores, costs=costs, provenance={"started": 10.0, "finished": 12.0}
        )


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.preflight()
    return folder


def searched(
    made: Tuning, path: Path, score: Callable[[Cell], float | None] | None = None, dies_at: int | None = None
) -> tuple[Outcome, Runner]:
    """The search in the folder at ``path``; without ``score`` a learning rate of 1e-3 is best."""
    folder = folder_at(path)
    runner = Runner(folder, score or near(1e-3), dies_at)
    return search(made, folder, runner, on_settled=lambda trial: None), runner
