"""Stacks of a worker's threads, written by faulthandler on a crash and on a signal, even while the GIL is held."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mtlbench.api.hooks import hookimpl

if TYPE_CHECKING:
    from mtlbench.api.cell import Cell

STACKS_SIGNAL = getattr(signal, "SIGUSR1", None)
"""The signal that makes a worker write its stacks; ``None`` where the system has no SIGUSR1."""

_FRAME = re.compile(r'^ {2}File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$')
_THREAD = re.compile(r"^(Current thread|Thread) .*$", re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: (?P<what>.+)$", re.MULTILINE)


def stacks_file(folder: Path, key: str) -> Path:
    """File of a cell's stacks in the run folder."""
    return folder / "logs" / f"{key}.stacks"


class Stacks:
    """Observer in a worker: directs faulthandler output to a file of the current cell; empty files are removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None
        self._path: Path | None = None
        self._direct_to(sys.stderr)

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """Direct stacks to the file of this cell."""
        self._close()
        self._path = stacks_file(self._folder, cell.key)
        self._file = self._path.open("a")
        self._direct_to(self._file)

    @hookimpl
    def mtlbench_cell_finished(self) -> None:
        """Close the file of the cell."""
        self._close()

    def _direct_to(self, file: TextIO) -> None:
        faulthandler.enable(file=file)
        if STACKS_SIGNAL is not None:
            faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)

    def _close(self) -> None:
        if self._file is None or self._path is None:
            return
        self._direct_to(sys.stderr)
        self._file.close()
        self._file = None
        with contextlib.suppress(OSError):
            if not self._path.stat().st_size:
                self._path.unlink()


def crash_of(folder: Path, key: str) -> tuple[str, tuple[str, ...]] | None:
    """The fatal error that ended a cell's process (``Segmentation fault``), and its frames; ``None`` without one."""
    text = _read(folder, key)
    fatal = _FATAL.search(text)
    return (fatal["what"], frames(text[fatal.start() :])) if fatal else None


def frames(text: str) -> tuple[str, ...]:
    """The six innermost frames, outermost first: of the thread that crashed, else of the main thread."""
    _, *sections = _THREAD.split(text)
    heads, bodies = sections[0::2], sections[1::2]
    crashed = [body for head, body in zip(heads, bodies, strict=True) if head == "Current thread"]
    body = crashed[-1] if crashed and _FATAL.search(text) else (bodies or [""])[-1]
    innermost = [match for line in body.splitlines() if (match := _FRAME.match(line))][:6]
    return tuple(f"{match['file']}:{match['line']} in {match['name']}" for match in reversed(innermost))


def forget_stacks(folder: Path, keys: Iterable[str]) -> None:
    """Remove the stacks of earlier attempts."""
    for key in keys:
        stacks_file(folder, key).unlink(missing_ok=True)


def _read(folder: Path, key: str) -> str:
    try:
        return stacks_file(folder, key).read_text(errors="replace")
    except OSError:
        return ""
