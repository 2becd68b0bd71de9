"""Cells of the matrix: what a worker does with a method on a tiny model, in this process."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_types import tiny_model

from mtlbench.api.record import Record
from mtlbench.cells.cell import Bench, run_cell
from mtlbench.errors import RequestError
from mtlbench.observers.events import Events
from mtlbench.planning.plan import plan_of
from mtlbench.store import RunFolder

TASKS = "glue/rte,commonsense_170k/boolq"
"""One scored by the likelihood of its answers, one by what is generated."""
METHODS = (
    "base", "full", "lora", "dora", "adalora", "mtl_lora", "moelora", "cpoly", "peml", "prefix", "ta_lora",
    "preembedd", "prompt_tuning", "bitfit", "houlsby", "hyperformer", "ia3",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """What became of a method on a model."""

    method: str
    status: str
    """``ok``, ``failed``, ``refused`` by the method, or ``unplanned``: refused at the plan."""
    reason: str = ""
    record: Record | None = None
    """``None`` where there was no cell."""


def tried(name: str, methods: Sequence[str] = METHODS, **options: str | int) -> Iterator[Tried]:
    """Train each method for two steps on two tasks on a model of the type ``name``, and score four rows of each."""
    given = {
        "tasks": TASKS, "data": "demo", "steps": 2, "batch_size": 8, "train_rows": 24, "eval_rows": 4,
        "max_length": 128, "evals_per_run": 1, **options,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(name, Path(folder) / "model")
        bench, runs = Bench(device="cpu", threads=1, data="demo"), RunFolder(Path(folder) / "run")
        runs.preflight()
        gc.collect()
        gc.freeze()  # a cell ends with a collection, which takes half a second with all of transformers loaded
        for method in methods:
            try:
                (cell,) = plan_of({**given, "model": str(model), "methods": method}).cells
            except RequestError as error:
                yield Tried(method, "unplanned", str(error).replace(str(model), name))
                continue
            record = run_cell(cell, bench=bench, folder=runs, events=Events({}))
            reason = "" if record.failure is None else record.failure.message
            yield Tried(method, {"skipped": "refused"}.get(record.status, record.status), reason, record)
        gc.unfreeze()
