"""When a worker counts as stuck, and the record of the cell it was stuck in."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field

from mtlbench.api.cell import Cell
from mtlbench.api.record import Failure, Record


@dataclass
class Heartbeat:
    """What the pipe of a worker told so far. Times are seconds of the monotonic clock."""

    file: int
    """The reading end, which never blocks."""
    last: float
    """Time of the latest sign; at first, of the start."""
    cell: str | None = None
    """Key of the cell in hand."""
    since: float = 0.0
    """When that cell began."""
    done: int = 0
    """Cells that ended in this worker."""
    idle: bool = False
    """Whether it waits for a cell; a worker that starts does not."""
    _rest: bytes = field(default=b"", repr=False)

    def read(self, now: float) -> None:
        """Take in what the worker said since."""
        while True:
            try:
                data = os.read(self.file, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._hear(line.decode(errors="replace"), now)

    def _hear(self, line: str, now: float) -> None:
        word, _, key = line.partition(" ")
        self.last = now
        if word == "cell":
            self.cell, self.since, self.idle = key, now, False
        elif word == "idle":
            self.done += self.cell is not None
            self.cell, self.idle = None, True


def overdue(signs: Heartbeat, *, now: float, silence_s: float, cell_timeout_s: float | None) -> str | None:
    """Why a worker is given up, or ``None``: its cell runs too long, or it said nothing for too long."""
    if signs.idle:
        return None
    if signs.cell is not None and cell_timeout_s is not None and now - signs.since > cell_timeout_s:
        return f"The cell ran for more than {cell_timeout_s:g} s (--cell-timeout)."
    if now - signs.last > silence_s:
        return f"No step and no scored batch for {silence_s:g} s (--silence)."
    return None


def timeout_record(cell: Cell, reason: str, *, pid: int, frames: tuple[str, ...], stacks: str | None) -> Record:
    """The failed record of a cell that was ended from outside; ``stacks`` is where its stack dump is."""
    where = f"; what it was doing then is in {stacks}" if stacks else ""
    return Record(
        cell=cell,
        status="failed",
        failure=Failure(
            kind="timeout",
            message=f"{reason} Its worker was ended{where}.",
            next_step="If it only needs longer, raise the limit that the message names and run the same command again; "
            "if the frames show a hang, report them to the method's authors.",
            frames=frames,
        ),
        provenance={"host": platform.node(), "pid": pid, "finished": time.time()},
    )
