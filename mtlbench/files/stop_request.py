"""Signals that request a worker to end: at once, or at the next point where its work may be interrupted."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

DRAIN_S = 25.0
"""Seconds that training may take to finish its step and write a checkpoint while signals keep coming."""


class Stopped(SystemExit):
    """The worker is to end: unwind, and leave the cell without a record."""


class StopRequest:
    """Turns SIGTERM and SIGINT into :class:`Stopped`.

    Python swallows an exception that a signal handler raises inside a finalizer or a fork handler, so the parent
    signals again until the worker ends; :meth:`held` and :meth:`ignore` protect code that must not be interrupted.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether a signal arrived."""
        self._code = 0
        self._since = 0.0
        self._patience = 0.0

    def install(self) -> None:
        """Install the handlers; only the main thread may do this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignore further signals, as the process is ending anyway."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal arrived."""
        if self.requested:
            raise Stopped(self._code)

    def stop_now(self) -> NoReturn:
        """Raise :class:`Stopped`, whether or not a signal arrived."""
        self.requested = True
        raise Stopped(self._code)

    @contextlib.contextmanager
    def held(self, *, for_s: float = math.inf) -> Iterator[None]:
        """Inside, a signal does not raise: it sets ``requested`` for the next :meth:`check`.

        A signal that arrives ``for_s`` seconds or more after the first one still raises.
        """
        before, self._patience = self._patience, for_s
        try:
            yield
        finally:
            self._patience = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        self._code = 128 + number
        if now - self._since >= self._patience:
            self.check()
