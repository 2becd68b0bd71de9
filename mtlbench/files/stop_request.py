"""Signals that ask a worker to end: at once, or where what it does may be left off."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

DRAIN_S = 25.0
"""How long training may go on to the end of its step and write a checkpoint while it is asked again and again."""


class Stopped(SystemExit):
    """The worker was asked to end: unwind, leave the cell unrecorded."""


class Stop:
    """Turns SIGTERM and SIGINT into :class:`Stopped`.

    Python swallows an exception that a signal raises inside a finalizer or a fork handler, so whoever stops a worker
    signals again until it ends; :meth:`held` and :meth:`ignore` keep that from breaking what must not be broken.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal came."""
        self._code = 0
        self._since = 0.0
        self._patience = 0.0

    def install(self) -> None:
        """Listen from now on; only the main thread may do this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """The process ends anyway: more signals change nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal came."""
        if self.asked:
            raise Stopped(self._code)

    def ask(self) -> NoReturn:
        """Raise :class:`Stopped`, whether or not a signal came."""
        self.asked = True
        raise Stopped(self._code)

    @contextlib.contextmanager
    def held(self, *, for_s: float = math.inf) -> Iterator[None]:
        """Do not raise inside: a signal that comes sets ``asked`` and waits for the next :meth:`check`.

        A signal that comes ``for_s`` seconds after the first one raises all the same.
        """
        before, self._patience = self._patience, for_s
        try:
            yield
        finally:
            self._patience = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
        self._code = 128 + number
        if now - self._since >= self._patience:
            self.check()
