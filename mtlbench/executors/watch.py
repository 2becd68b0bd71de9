"""When a worker counts as stuck, and the record of the cell it was running."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field

from mtlbench.api.cell import Cell
from mtlbench.api.record import Failure, Record


@dataclass
class Heartbeat:
    """What a worker has sent through its heartbeat pipe so far. Times are monotonic seconds."""

    file: int
    """The non-blocking read end of the pipe."""
    last: float
    """Time of the latest heartbeat; initially of the start."""
    cell: str | None = None
    """Key of the running cell."""
    since: float = 0.0
    """When that cell began."""
    done: int = 0
    """Number of cells that ended in this worker."""
    idle: bool = False
    """Whether it waits for a cell; false while it starts."""
    _rest: bytes = field(default=b"", repr=False)

    def read(self, now: float) -> None:
        """Read what the worker has sent since the last call."""
        while True:
            try:
                data = os.read(self.file, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._receive(line.decode(errors="replace"), now)

    def _receive(self, line: str, now: float) -> None:
        kind, _, key = line.partition(" ")
        self.last = now
        if kind == "cell":
            self.cell, self.since, self.idle = key, now, False
        elif kind == "idle":
            self.done += self.cell is not None
            self.cell, self.idle = None, True


def overdue(heartbeat: Heartbeat, *, now: float, silence_s: float, cell_timeout_s: float | None) -> str | None:
    """Why a worker must be ended, or ``None``: its cell runs too long, or it was silent for too long."""
    if heartbeat.idle:
        return None
    if heartbeat.cell is not None and cell_timeout_s is not None and now - heartbeat.since > cell_timeout_s:
        return f"The cell ran for more than {cell_timeout_s:g} s (--cell-timeout)."
    if now - heartbeat.last > silence_s:
        return f"No step and no scored batch for {silence_s:g} s (--silence)."
    return None


def timeout_record(cell: Cell, reason: str, *, pid: int, frames: tuple[str, ...], stacks: str | None) -> Record:
    """The failed record of a cell whose worker was ended; ``stacks`` is the path of its stack dump."""
    where = f"; its stacks are in {stacks}" if stacks else ""
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
