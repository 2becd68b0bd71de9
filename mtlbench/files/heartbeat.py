"""Heartbeats of a worker, on a pipe to its parent: which cell it runs, and that it makes progress."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from mtlbench.api.hooks import hookimpl

if TYPE_CHECKING:
    from mtlbench.api.cell import Cell
    from mtlbench.api.record import Record

EVERY_S = 1.0
"""Least seconds between two beats, so that a beat costs a step nothing."""

_senders: list[HeartbeatSender] = []


class HeartbeatSender:
    """The write end of the pipe: lines ``cell KEY``, ``on`` and ``idle``. Also an observer in the worker."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._next = 0.0
        self._idle = False
        os.set_blocking(file, False)
        os.set_inheritable(file, False)

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """A cell started."""
        self._idle = False
        self._send(f"cell {cell.key}")

    @hookimpl
    def mtlbench_step_finished(self) -> None:
        """Training makes progress."""
        self.beat()

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        """The cell has a record. After a device error the worker exits, and the cell stays its current one."""
        if record.failure is None or record.failure.kind != "device":
            self.wait()

    def wait(self) -> None:
        """No cell is running."""
        if not self._idle:
            self._idle = True
            self._send("idle")

    def beat(self) -> None:
        """The work makes progress."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_S
            self._send("on")

    def _send(self, line: str) -> None:
        # A closed or full pipe must not stop the work.
        with contextlib.suppress(OSError):
            os.write(self._file, f"{line}\n".encode())


def install(file: int) -> HeartbeatSender:
    """Send the heartbeats of this process to ``file`` from now on."""
    sender = HeartbeatSender(file)
    _senders[:] = [sender]
    return sender


def wait() -> None:
    """Report that this process waits for a cell; a no-op without :func:`install`."""
    for sender in _senders:
        sender.wait()


def beat() -> None:
    """Report progress of a stage without training steps (scoring, reading data); a no-op without :func:`install`."""
    for sender in _senders:
        sender.beat()
