"""Progress of a run on stderr: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import Cell
from mtlbench.text import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@dataclass
class Running:
    """A running cell and its progress by the step log."""

    cell: Cell
    label: str
    total: int | None
    step: int = 0
    loss: float | None = None
    seconds: float = 0.0
    first: tuple[int, float] | None = None
    """Step and seconds of the first line; the time left is extrapolated from there, without start-up."""

    def update(self, line: Mapping[str, Any]) -> None:
        """Update from one line of the step log."""
        if "started" in line:
            self.step, self.loss, self.first = 0, None, None
        if "total" in line:
            self.total = int(line["total"])
        if "step" in line:
            self.step, self.loss, self.seconds = int(line["step"]), float(line["loss"]), float(line["seconds"])
            self.first = self.first or (self.step, self.seconds)

    @property
    def share(self) -> float:
        """Fraction of the training steps that are done, 0 where the budget is unknown."""
        return min(1.0, self.step / self.total) if self.total else 0.0

    @property
    def left_s(self) -> float | None:
        """Estimated seconds of training left, or ``None``."""
        if self.total is None or self.first is None or self.step <= self.first[0]:
            return None
        return (self.total - self.step) * (self.seconds - self.first[1]) / (self.step - self.first[0])

    def text(self) -> str:
        """``step 40/400, loss 1.234, 12 s left``, without unknown values."""
        if self.step == 0:
            return "starting"
        if self.step == self.total:
            return "scoring"
        fields = [f"step {self.step}/{self.total}" if self.total else f"step {self.step}"]
        if self.loss is not None:
            fields.append(f"loss {self.loss:.3f}")
        if self.left_s is not None:
            fields.append(f"{duration(self.left_s, digits=0)} left")
        return ", ".join(fields)


class Display(ABC):
    """A way to show a run."""

    @abstractmethod
    def started(self, running: Running) -> None:
        """A cell started, possibly again."""

    @abstractmethod
    def progressed(self, running: Running) -> None:
        """A cell made progress."""

    @abstractmethod
    def finished(self, key: str, label: str, text: str) -> None:
        """A cell is done."""

    @abstractmethod
    def overall(self, done: float, text: str) -> None:
        """Progress of the whole run: ``done`` cells, including fractions of running ones."""

    @abstractmethod
    def close(self) -> None:
        """The run is over."""


class Lines(Display):
    """Plain lines: at the start, at about every tenth of the training, at the end."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def started(self, running: Running) -> None:
        self._tenths[running.cell.key] = 0
        _write_line(f"{running.label}: started")

    def progressed(self, running: Running) -> None:
        tenth = int(running.share * 10)
        if tenth > self._tenths.get(running.cell.key, 0):
            self._tenths[running.cell.key] = tenth
            _write_line(f"{running.label}: {running.text()}")

    def finished(self, key: str, label: str, text: str) -> None:
        _write_line(f"{label}: {text}")

    def overall(self, done: float, text: str) -> None:
        return

    def close(self) -> None:
        return


class Bars(Display):
    """One bar for the run and one per running cell."""

    def __init__(self, cells: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._rich: RichProgress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
        )
        self._bars: dict[str, TaskID] = {}
        self._all = self._rich.add_task("cells", total=cells, text="")
        self._rich.start()

    def started(self, running: Running) -> None:
        if running.cell.key in self._bars:
            self._rich.remove_task(self._bars.pop(running.cell.key))
        self._bars[running.cell.key] = self._rich.add_task(f"  {running.label}", total=running.total, text="starting")

    def progressed(self, running: Running) -> None:
        bar = self._bars[running.cell.key]
        self._rich.update(bar, completed=running.step, total=running.total, text=running.text())

    def finished(self, key: str, label: str, text: str) -> None:
        if key in self._bars:
            self._rich.remove_task(self._bars.pop(key))
        self._rich.console.print(f"{label}: {text}", markup=False, highlight=False)

    def overall(self, done: float, text: str) -> None:
        self._rich.update(self._all, completed=done, text=text)

    def close(self) -> None:
        for bar in self._bars.values():
            self._rich.remove_task(bar)
        self._rich.stop()


def _write_line(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
