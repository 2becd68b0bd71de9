"""Processes that tests start: their environment, whether they run, and their children."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def python_path(*first: str | Path) -> str:
    """``PYTHONPATH`` of a process that searches these folders first, and then those of this process."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def state(pid: int) -> str:
    """The letter of the kernel for the process (``R``, ``S``, ``T``, ``Z`` ...); empty where there is none."""
    return _stat(pid)[:1]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie that waits to be collected."""
    return state(pid) not in ("", "Z", "X")


def stopped(pid: int) -> bool:
    """Whether a signal stopped the process."""
    return state(pid) == "T"


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal has come that the process has not taken yet, as a stopped one does not."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started and that run."""
    every = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [child for child in every if _stat(child).split()[1:2] == [str(pid)] and alive(child)]


def _stat(pid: int) -> str:
    """``/proc/<pid>/stat`` from the state on: the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2]
    except OSError:
        return ""
