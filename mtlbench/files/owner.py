"""The process that holds a claim, whether it is certainly dead, and what a child of this one sees."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One process, distinguished from later ones with the same pid."""

    host: str
    pid: int
    started: int | None
    """Clock ticks from boot to the start of the process; ``None`` without ``/proc``."""
    boot: str
    """Boot id of the machine; empty without ``/proc``."""
    space: str
    """Id of the pid namespace: containers on one machine have their own."""

    @classmethod
    def current(cls) -> Owner:
        """The calling process."""
        pid = os.getpid()
        state = _state(pid)
        return cls(host=socket.gethostname(), pid=pid, started=state[1] if state else None, boot=_boot(), space=space())

    def dead(self) -> bool | None:
        """Whether the process is gone; ``None`` when that cannot be determined from here."""
        if (self.host, self.boot, self.space) != (socket.gethostname(), _boot(), space()):
            return None
        if gone(self.pid):
            return True
        state = _state(self.pid)
        if state is None or self.started is None:
            # The pid may belong to another process by now: only the heartbeat can tell.
            return None
        letter, started = state
        return letter in "ZXx" or started != self.started


def gone(pid: int) -> bool:
    """Whether no process on this machine has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _state(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process; ``None`` without ``/proc``."""
    try:
        # The command name is in parentheses and may hold anything, also parentheses and spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def space() -> str:
    """Id of the pid namespace of this process; empty without ``/proc``."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def import_variables() -> dict[str, str]:
    """Environment variables under which ``python -m`` finds the modules that this process finds.

    By itself ``python -m`` puts the working directory first: a file ``datasets.py`` there would hide the package.
    """
    try:
        working = os.getcwd()  # noqa: PTH109 - as written into sys.path
    except FileNotFoundError:
        return {}
    return {} if {"", working} & set(sys.path) else {"PYTHONSAFEPATH": "1"}


def cpus() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
