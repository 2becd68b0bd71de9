"""Who holds a claim, and whether that process is gone for certain."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One process, told apart from any later one with the same number."""

    host: str
    pid: int
    started: int | None
    """Clock ticks from boot to the start of the process, where ``/proc`` tells."""
    boot: str
    """Id of the machine's boot, where ``/proc`` tells."""
    space: str
    """Id of the namespace that ``pid`` is counted in: containers on one machine have their own."""

    @classmethod
    def current(cls) -> Owner:
        """The calling process."""
        pid = os.getpid()
        state = _state(pid)
        return cls(host=socket.gethostname(), pid=pid, started=state[1] if state else None, boot=_boot(), space=space())

    def dead(self) -> bool | None:
        """Whether the process is gone; ``None`` when that cannot be known from here."""
        if (self.host, self.boot, self.space) != (socket.gethostname(), _boot(), space()):
            return None
        if gone(self.pid):
            return True
        state = _state(self.pid)
        if state is None or self.started is None:
            # The number may belong to another process by now: the heartbeat tells.
            return None
        letter, started = state
        return letter in "ZXx" or started != self.started


def gone(pid: int) -> bool:
    """Whether no process of this machine has the number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _state(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, where ``/proc`` tells."""
    try:
        # The command name is in parentheses and may hold anything, also parentheses and spaces.
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return words[0], int(words[19])
    except (OSError, IndexError, ValueError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def space() -> str:
    """Id of the namespace that process numbers are counted in here, where ``/proc`` tells."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def cpus() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
