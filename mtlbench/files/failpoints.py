"""Fail points: named places where a test can make a process die, stop or fail.

``MTLBENCH_FAILPOINT="store.before_link:kill"`` arms one, a comma separates several, and ``worker.claimed:kill@3`` acts
at the third time the process gets there. With ``MTLBENCH_FAILPOINT_ONCE=FILE`` only the first process to create FILE
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
"""Every place that calls :func:`reach`, in the order a cell passes them; files are written throughout."""

_WORD = re.compile(r"(?P<point>[a-z_.]+):(?P<action>[a-z]+)(@(?P<hit>[1-9]\d*))?")


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
    """Say that the process is at ``point``: does nothing unless the environment arms it.

    Raises:
        RequestError: the environment variable names no fail point or no action.
    """
    armed = _armed if _armed is not None else arm(os.environ.get(VARIABLE, ""))
    if not armed:
        return
    found = armed.get(point)
    if found is None:
        return
    found.hits += 1
    if found.hits == found.hit and _first(os.environ.get(ONCE)):
        _ACTIONS[found.action](point)


def arm(words: str) -> dict[str, _Armed]:
    """Arm what ``words`` says, in place of what was armed; an empty text disarms.

    Raises:
        RequestError: a word names no fail point or no action.
    """
    global _armed
    found: dict[str, _Armed] = {}
    for word in filter(None, words.split(",")):
        match = _WORD.fullmatch(word)
        if match is None:
            raise RequestError(f"{VARIABLE}: {word!r} is not POINT:ACTION or POINT:ACTION@HIT.")
        for kind, known in (("point", POINTS), ("action", tuple(_ACTIONS))):
            if match[kind] not in known:
                raise RequestError(
                    f"{VARIABLE}: there is no fail {kind} {match[kind]!r}. {did_you_mean(match[kind], known)}"
                )
        found[match["point"]] = _Armed(match["action"], int(match["hit"] or 1))
    _armed = found
    return found


def _first(marker: str | None) -> bool:
    if not marker:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
