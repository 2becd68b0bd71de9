"""One cell of the matrix: what a worker does with a method on a tiny model, in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """``ok``; ``refused`` at the plan or by the method; ``failed``."""
    reason: str = ""
    record: Record | None = None


def tried(model: Path, methods: Sequence[str], *, folder: Path, **options: str | int) -> Iterator[Tried]:
    """Train each method for two steps on two tasks, score four rows of each."""
    given = {
        "tasks": TASKS, "model": str(model), "data": "demo", "steps": 2, "batch_size": 8, "train_rows": 24,
        "eval_rows": 4, "max_length": 128, "evals_per_run": 1, **options,
    }  # fmt: skip
    bench, runs = Bench(device="cpu", threads=1, data="demo"), RunFolder(folder)
    runs.preflight()
    for number, method in enumerate(methods):
        if number == 1:
            gc.collect()
            gc.freeze()  # a cell ends with a collection, which takes half a second with all of transformers loaded
        try:
            (cell,) = plan_of({**given, "methods": method}).cells
        except RequestError as error:
            yield Tried(method, "refused", str(error))
            continue
        record = run_cell(cell, bench=bench, folder=runs, events=Events({}))
        reason = "" if record.failure is None else record.failure.message
        yield Tried(method, {"skipped": "refused"}.get(record.status, record.status), reason, record)
