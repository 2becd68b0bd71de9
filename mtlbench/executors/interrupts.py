"""Ctrl-C, SIGTERM and a closed terminal, as the parent of a run hears them: at once while it waits, else then."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """Turns the three signals into ``KeyboardInterrupt`` inside :meth:`raised` and remembers them elsewhere.

    What the caller ignores (as nohup does) stays ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether one came that nobody has seen yet."""
        self._raises = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Hear signals from now on; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        heard = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._hear) for number in heard}

    def forget(self) -> None:
        """Leave signals to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Interrupts end what is inside, also one that came before."""
        before, self._raises = self._raises, True
        try:
            if self.asked:
                self.asked = False
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = before

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            raise KeyboardInterrupt
        self.asked = True
