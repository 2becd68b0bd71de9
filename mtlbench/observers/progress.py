"""The progress observer: bars on a terminal, plain lines in a log; on stderr, as stdout is for tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.hooks import hookimpl
from mtlbench.api.record import Record
from mtlbench.observers.display import Bars, Display, Lines, Running
from mtlbench.text import duration


class ProgressObserver:
    """Shows progress in the parent; silent in workers, where no run starts."""

    def __init__(self) -> None:
        self._display: Display | None = None
        self._labels: dict[str, str] = {}
        self._running: dict[str, Running] = {}
        self._cells = self._done = self._already_done = 0
        self._began = 0.0

    @hookimpl
    def mtlbench_run_started(self, cells: Sequence[Cell]) -> None:
        """Start the display."""
        self._labels = _labels(cells)
        self._cells, self._done, self._already_done = len(cells), 0, 0
        self._running = {}
        self._began = time.monotonic()
        self._display = Bars(len(cells)) if sys.stderr.isatty() else Lines()

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """Show a running cell."""
        if self._display is None:
            return
        running = Running(cell=cell, label=self._labels[cell.key], total=cell.protocol.steps)
        self._running[cell.key] = running
        self._display.started(running)

    @hookimpl
    def mtlbench_step_logged(self, cell: Cell, line: Mapping[str, Any]) -> None:
        """Update a running cell."""
        running = self._running.get(cell.key)
        if self._display is None or running is None:
            return
        running.update(line)
        self._display.progressed(running)
        self._overall()

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        """Count a cell and show its outcome; cells that were already done are only counted."""
        if self._display is None:
            return
        self._done += 1
        if self._running.pop(record.key, None) is None:
            self._already_done += 1
        else:
            text = f"{_outcome(record)} [{self._done}/{self._cells}]"
            self._display.finished(record.key, self._labels[record.key], text)
        self._overall()

    @hookimpl
    def mtlbench_run_finished(self) -> None:
        """Close the display."""
        if self._display is not None:
            self._display.close()
            self._display = None

    def _overall(self) -> None:
        if self._display is None:
            return
        done = self._done + sum(running.share for running in self._running.values())
        text = f"{self._done}/{self._cells}"
        if done > self._already_done and self._done < self._cells:
            left = (self._cells - done) * (time.monotonic() - self._began) / (done - self._already_done)
            text += f", {duration(left, digits=0)} left"
        self._display.overall(done, text)


def _labels(cells: Sequence[Cell]) -> dict[str, str]:
    """Cell key to the shortest label that distinguishes the cells."""
    fields = {
        cell.key: (cell.variant, _tasks(cell), cell.model, f"seed {cell.seed}", cell.protocol.hash()) for cell in cells
    }
    columns = list(zip(*fields.values(), strict=True))
    differ = [i for i, column in enumerate(columns) if i == 0 or len(set(column)) > 1]
    return {key: " ".join(values[i] for i in differ) for key, values in fields.items()}


def _tasks(cell: Cell) -> str:
    more = len(cell.tasks) - 1
    return f"{cell.tasks[0]} and {more} more" if more else cell.tasks[0]


def _outcome(record: Record) -> str:
    if record.failure is not None:
        return f"{record.status} ({record.failure.kind}): {record.failure.message} {record.failure.next_step}"
    fields: list[str] = [record.status]
    if record.average is not None:
        fields.append(f"average {record.average:.2f}")
    if record.costs is not None:
        fields.append(duration(record.costs.total_seconds))
    return ", ".join(fields)


_progress = ProgressObserver()
mtlbench_run_started = _progress.mtlbench_run_started
mtlbench_cell_started = _progress.mtlbench_cell_started
mtlbench_step_logged = _progress.mtlbench_step_logged
mtlbench_cell_finished = _progress.mtlbench_cell_finished
mtlbench_run_finished = _progress.mtlbench_run_finished
