"""Fail points: named places where a test can make a process die, stop or fail.

``MTLBENCH_FAILPOINT="store.before_link:kill"`` arms one, commas separate several, and ``worker.claimed:kill@3`` acts
the third time the process reaches it. With ``MTLBENCH_FAILPOINT_ONCE=FILE`` only the first process to create FILE
acts, however many share the environment. Without the variable a fail point costs one comparison.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mtlbench.errors import RequestError, did_you_mean

VARIABLE, ONCE = "MTLBENCH_FAILPOINT", "MTLBENCH_FAILPOINT_ONCE"

POINTS = (
    "store.before_write",
    "store.before_link",
    "store.after_link",
    "store.before_replace",
    "store.quarantined",
    "worker.claimed",
    "worker.computed",
    "worker.published",
    "cell.started",
    "cell.prepared",
    "cell.attached",
    "cell.step",
    "rank.step",
    "checkpoint.before_tensors",
    "checkpoint.after_tensors",
    "checkpoint.after_write",
    "cell.trained",
    "cell.saved",
    "cell.evaluated",
)
"""Every argument of :func:`reach`, in the order a cell passes them; those of ``store`` occur throughout."""

_PATTERN = re.compile(r"(?P<point>[a-z_.]+):(?P<action>[a-z]+)(@(?P<hit>[1-9]\d*))?")


class FailPoint(Exception):
    """Raised by the action ``raise``."""


def _raise(point: str) -> None:
    raise FailPoint(f"the fail point {point} is armed")


def _oom(point: str) -> None:
    raise MemoryError(f"the fail point {point} is armed")


def _full(point: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)


def _device(point: str) -> None:
    raise RuntimeError(f"CUDA error: an illegal memory access was encountered: the fail point {point} is armed")


_ACTIONS: Mapping[str, Callable[[str], None]] = {
    "kill": lambda point: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda point: os.kill(os.getpid(), signal.SIGSTOP),
    "term": lambda point: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda point: os._exit(70),
    "raise": _raise,
    "oom": _oom,
    "full": _full,
    "device": _device,
}


@dataclass
class _Armed:
    action: str
    hit: int
    hits: int = 0


_armed: dict[str, _Armed] | None = None


def reach(point: str) -> None:
    """Act if ``point`` is armed by the environment; otherwise do nothing.

    Raises:
        RequestError: the environment variable names no fail point or no action.
    """
    armed = _armed if _armed is not None else arm(os.environ.get(VARIABLE, ""))
    if not armed:
        return
    current = armed.get(point)
    if current is None:
        return
    current.hits += 1
    if current.hits == current.hit and _first(os.environ.get(ONCE)):
        _ACTIONS[current.action](point)


def arm(text: str) -> dict[str, _Armed]:
    """Arm the fail points in ``text`` and disarm all others; an empty text disarms all.

    Raises:
        RequestError: an entry names no fail point or no action.
    """
    global _armed
    parsed: dict[str, _Armed] = {}
    for entry in filter(None, text.split(",")):
        match = _PATTERN.fullmatch(entry)
        if match is None:
            raise RequestError(f"{VARIABLE}: {entry!r} is not POINT:ACTION or POINT:ACTION@HIT.")
        for kind, known in (("point", POINTS), ("action", tuple(_ACTIONS))):
            if match[kind] not in known:
                raise RequestError(
                    f"{VARIABLE}: there is no fail {kind} {match[kind]!r}. {did_you_mean(match[kind], known)}"
                )
        parsed[match["point"]] = _Armed(match["action"], int(match["hit"] or 1))
    _armed = parsed
    return parsed


def _first(marker: str | None) -> bool:
    if not marker:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
