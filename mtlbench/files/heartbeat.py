"""Signs of life of a worker, on a pipe to the process that started it: which cell is in hand, and that it gets on."""

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
"""A sign is sent at most this often, so that it costs a step nothing."""

_sinks: list[HeartbeatSender] = []


class HeartbeatSender:
    """The worker's end of the pipe: lines ``cell KEY``, ``on`` and ``idle``. Also an observer of the worker."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._next = 0.0
        self._idle = False
        os.set_blocking(file, False)
        os.set_inheritable(file, False)

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """A cell is in hand."""
        self._idle = False
        self._send(f"cell {cell.key}")

    @hookimpl
    def mtlbench_step_finished(self) -> None:
        """Training gets on."""
        self.beat()

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        """The cell in hand has its record. Where it broke the device the worker ends with it in hand."""
        if record.failure is None or record.failure.kind != "device":
            self.wait()

    def wait(self) -> None:
        """No cell is in hand."""
        if not self._idle:
            self._idle = True
            self._send("idle")

    def beat(self) -> None:
        """The work gets on."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_S
            self._send("on")

    def _send(self, word: str) -> None:
        # Nobody who reads, or not fast enough: the work goes on without.
        with contextlib.suppress(OSError):
            os.write(self._file, f"{word}\n".encode())


def install(file: int) -> HeartbeatSender:
    """The pulse of this process from now on."""
    pulse = HeartbeatSender(file)
    _sinks[:] = [pulse]
    return pulse


def wait() -> None:
    """Say that this process waits for a cell; nothing where nobody listens."""
    for pulse in _sinks:
        pulse.wait()


def beat() -> None:
    """Say that a long stage without training steps (scoring, reading data) gets on; nothing where nobody listens."""
    for pulse in _sinks:
        pulse.beat()
