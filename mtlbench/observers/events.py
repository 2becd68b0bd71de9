"""Relay of events to observers. Each has its own plugin manager, so that one that raises does not affect the others."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, BinaryIO

import pluggy

from mtlbench.api.hooks import PROJECT, EventHooks, NounHooks, hookimpl
from mtlbench.files.sealed import overwrite

if TYPE_CHECKING:
    from torch import Tensor

    from mtlbench.api.cell import Cell
    from mtlbench.api.record import Record
    from mtlbench.store import RunFolder

_log = logging.getLogger(__name__)


class Events:
    """Relays events to observers by name. One that raises is reported once and dropped."""

    def __init__(self, observers: Mapping[str, object]) -> None:
        self._managers: dict[str, pluggy.PluginManager] = {}
        for name, observer in observers.items():
            manager = pluggy.PluginManager(PROJECT)
            for specs in (NounHooks, EventHooks):
                manager.add_hookspecs(specs)
            try:
                manager.register(observer)
                manager.check_pending()
            except Exception as error:
                self._report(name, "registration", error)
                continue
            self._managers[name] = manager

    def run_started(self, cells: Sequence[Cell]) -> None:
        """The parent is about to start workers."""
        self._relay("mtlbench_run_started", cells=cells)

    def run_finished(self) -> None:
        """All workers have ended."""
        self._relay("mtlbench_run_finished")

    def cell_started(self, cell: Cell) -> None:
        """A worker has claimed the cell."""
        self._relay("mtlbench_cell_started", cell=cell)

    def training_planned(self, cell: Cell, total_steps: int, done: int = 0) -> None:
        """The training budget is known, and the steps ``done`` by earlier attempts that this one resumes."""
        self._relay("mtlbench_training_planned", cell=cell, total_steps=total_steps, done=done)

    def step_finished(self, cell: Cell, step: int, row_losses: Tensor, tasks: Tensor) -> None:
        """An optimizer step is done; ``row_losses`` and ``tasks`` are ``[rows]``, detached and on the device."""
        self._relay("mtlbench_step_finished", cell=cell, step=step, row_losses=row_losses, tasks=tasks)

    def step_logged(self, cell: Cell, line: Mapping[str, Any]) -> None:
        """The step log of a cell grew."""
        self._relay("mtlbench_step_logged", cell=cell, line=line)

    def cell_finished(self, record: Record) -> None:
        """The record of a cell is published."""
        self._relay("mtlbench_cell_finished", record=record)

    def _relay(self, hook: str, **arguments: Any) -> None:
        for name, manager in list(self._managers.items()):
            try:
                getattr(manager.hook, hook)(**arguments)
            except Exception as error:
                del self._managers[name]
                self._report(name, hook, error)

    def _report(self, name: str, where: str, error: Exception) -> None:
        _log.warning(
            "Observer %r%s failed in %s and is dropped for the rest of the run: %s: %s",
            name,
            _origin(name),
            where,
            type(error).__name__,
            error,
            exc_info=error,
        )


class StepLog:
    """Writes a cell's step log: ``steps/<key>.jsonl``, at most about 200 lines for each attempt.

    A line holds ``step``, ``loss`` (mean over the examples of that step), ``tasks`` (full task name to mean loss over
    its examples in that step) and ``seconds`` since the attempt started. An attempt begins with ``{"started": time}``
    and, once the budget is known, ``{"total": steps}``; one that resumes from a checkpoint adds ``"done": steps`` and
    continues the count of seconds. After such an attempt the log is rewritten at the end, so that every step occurs
    once. Losses are read from the device only for steps that are written.
    """

    lines = 200

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._began = 0.0
        self._total: int | None = None
        self._next = 1
        self._resumed = False

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """Open the log of a new attempt."""
        self._close()
        path = self._folder.steps_file(cell.key)
        self._file = path.open("ab", buffering=0)
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):  # of a killed attempt: end its last line
            self._file.write(b"\n")
        self._began, self._total, self._next, self._resumed = time.monotonic(), None, 1, False
        self._write({"started": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    @hookimpl
    def mtlbench_training_planned(self, cell: Cell, total_steps: int, done: int) -> None:
        """Space the lines evenly over the budget."""
        self._total, self._resumed = total_steps, done > 0
        self._write({"total": total_steps, **({"done": done} if done else {})})
        if done:
            gap = self._gap(done)
            self._next = 1 + gap * math.ceil(done / gap)
            earlier = [line["seconds"] for line in self._folder.steps(cell.key) if "seconds" in line]
            self._began -= earlier[-1] if earlier else 0.0

    @hookimpl
    def mtlbench_step_finished(self, cell: Cell, step: int, row_losses: Tensor, tasks: Tensor) -> None:
        """Write the step if it is due."""
        if self._file is None or (step < self._next and step != self._total):
            return
        # Without a known budget the gaps grow with the step, which keeps any log short.
        self._next = step + self._gap(step)
        losses: list[float] = row_losses.tolist()
        by_task: dict[str, list[float]] = {}
        for loss, task in zip(losses, tasks.tolist(), strict=True):
            by_task.setdefault(cell.tasks[task], []).append(loss)
        self._write(
            {
                "step": step,
                "loss": _mean(losses),
                "tasks": {name: _mean(values) for name, values in sorted(by_task.items())},
                "seconds": round(time.monotonic() - self._began, 3),
            }
        )

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        """Close the log."""
        self._close()
        if self._resumed:
            lines = [{k: v for k, v in line.items() if k != "done"} for line in self._folder.steps(record.key)]
            whole = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            overwrite(self._folder.steps_file(record.key), whole)

    def _gap(self, step: int) -> int:
        return max(1, math.ceil(self._total / self.lines) if self._total else step // 25)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 6)


def _origin(name: str) -> str:
    """The distributions that provide an observer of this name, for a message."""
    names = {e.dist.name for e in metadata.entry_points(group=f"{PROJECT}.observers", name=name) if e.dist is not None}
    return f" of {', '.join(sorted(names))}" if names else ""
