"""Ctrl-C, SIGTERM and SIGHUP in the parent of a run: raised at once while it waits, deferred elsewhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """Raises ``KeyboardInterrupt`` for the three signals inside :meth:`raised`; outside, one is remembered as pending.

    Signals that the caller ignores (as nohup does) stay ignored.
    """

    def __init__(self) -> None:
        self.pending = False
        """Whether a signal arrived that was not raised yet."""
        self._raises = False
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers; does nothing outside the main thread, which alone may."""
        if threading.current_thread() is not threading.main_thread():
            return
        handled = [
            n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN
        ]
        self._previous = {number: signal.signal(number, self._handle) for number in handled}

    def forget(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Inside the block signals raise at once; a pending one raises on entry."""
        before, self._raises = self._raises, True
        try:
            if self.pending:
                self.pending = False
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            raise KeyboardInterrupt
        self.pending = True
