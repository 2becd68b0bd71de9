"""A worker of tiny cells whose scores follow from their keys, so that every disturbed run can be compared.

``python fault_worker.py`` takes the command line of ``mtlbench.workers.worker``. Setting ``seconds`` is how long a cell trains.
``FAULT_HOST`` gives the worker another host name, as if it ran on another machine that shares the run folder, and
``FAULT_FILE_BYTES`` limits the size of the files it may write, which is what a full disk looks like. With ``FAULT_FAST`` cells take no time.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))

from holding import wait_while_held

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.executor import FOREIGN_BYTES
from mtlbench.api.record import Costs, Failure, FailureClass, Record, TaskScore
from mtlbench.files.failpoints import reach
from mtlbench.files.stop_request import StopRequest
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.worker import main

COMMAND = (sys.executable, str(Path(__file__).resolve()))
TASKS = ("toy/a", "toy/b")
STEPS, ROWS = 4, 24
FAST = "FAULT_FAST"


class Numbers(list[float]):
    """Stands for a tensor of a step: all the step log asks of one."""

    def tolist(self) -> list[float]:
        return list(self)


def fault_cell(seed: int, *, seconds: float = 0.0, method: str = "toy") -> Cell:
    return Cell(method=method, settings={"seconds": seconds}, tasks=TASKS, model="m", protocol=Protocol(), seed=seed)


def predictions(cell: Cell) -> list[dict[str, Any]]:
    """What the cell predicts: from its key alone."""
    dice = random.Random(cell.key)
    return [{"task": task, "row": row, "right": dice.random() < 0.7} for task in cell.tasks for row in range(ROWS)]


def undisturbed(cell: Cell) -> Record:
    """The record of the cell, but for what it cost in time and where it ran."""
    rows = predictions(cell)
    scores = {}
    for task in cell.tasks:
        share = sum(row["right"] for row in rows if row["task"] == task) / ROWS
        scores[task] = TaskScore(score=100 * share, metrics={"acc": share}, rows=ROWS)
    return Record(
        cell=cell,
        status="ok",
        scores=scores,
        costs=Costs(trainable_parameters=10, backbone_parameters=1000, steps=STEPS),
        notes={"padding": "é" * 200},
    )


def equal(one: Record, other: Record) -> bool:
    """Whether two records are the same but for provenance."""
    return {**one.to_json(), "provenance": None} == {**other.to_json(), "provenance": None}


def run(cell: Cell, folder: RunFolder, events: Events) -> Record:
    """Everything that a real cell leaves behind, in its order."""
    try:
        reach("cell.started")
        events.training_planned(cell, STEPS)
        for step in range(1, STEPS + 1):
            time.sleep(0 if FAST in os.environ else float(cell.settings["seconds"] or 0) / STEPS)
            if step == 2:
                wait_while_held(folder, cell)
            reach("cell.step")
            events.step_finished(cell, step, Numbers([1.0, 2.0]), Numbers([0, 1]))  # type: ignore[arg-type]
        reach("cell.trained")
        adapter = folder.adapter(cell.key)
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter.bin").write_bytes(cell.key.encode() * 50)
        reach("cell.saved")
        reach("cell.evaluated")
        folder.put_samples(cell.key, predictions(cell))
    except (MemoryError, OSError) as error:
        kind: FailureClass = "oom" if isinstance(error, MemoryError) else "disk"
        return Record(cell=cell, status="failed", failure=Failure(kind=kind, message=str(error), next_step="n"))
    taken = os.environ.get(FOREIGN_BYTES)
    told = {"pid": os.getpid(), "at": time.time(), **({"foreign_device_bytes": int(taken)} if taken else {})}
    record = Record(**{**vars(undisturbed(cell)), "provenance": told})
    return _leak(record) if cell.method.startswith("leaks") else record


def _leak(record: Record) -> Record:
    """Tell the secrets of the environment wherever a method can."""
    token, password = os.environ["HF_TOKEN"], os.environ["MY_DB_PASSWORD"]
    told = f"token {token}, url https://user:{password}@host/x"
    logging.getLogger("somebody").warning("connecting with %s", told)
    if record.cell.method == "leaks and dies":
        raise RuntimeError(told)
    if record.cell.method == "leaks and fails":
        failure = Failure(kind="infra", message=told, next_step=told, frames=(told,))
        return Record(cell=record.cell, status="failed", failure=failure)
    return Record(**{**vars(record), "notes": {"leaked": told}, "provenance": {"command": [told]}})


def engine(given: WorkerArguments, folder: RunFolder, events: Events, stop: StopRequest) -> Callable[[Cell], Record]:
    return lambda cell: run(cell, folder, events)


def take_environment() -> None:
    """Be on another machine, or on one with a full disk, if the environment says so."""
    if host := os.environ.get("FAULT_HOST"):
        socket.gethostname = lambda: host
    if limit := os.environ.get("FAULT_FILE_BYTES"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))


if __name__ == "__main__":
    take_environment()
    sys.exit(main(engine=engine))
