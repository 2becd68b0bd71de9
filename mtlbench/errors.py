"""The few errors mtlbench raises on purpose.

A message says what was wrong, the value, what is known, and what to do now.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MtlbenchError(Exception):
    """Base of every error raised on purpose."""


class RequestError(MtlbenchError):
    """The request cannot be carried out as written; the command line exits with 2."""


class DataError(RequestError):
    """The data asked for is missing, unreachable or not shaped as the task needs."""


class PluginError(MtlbenchError):
    """A plugin cannot be found, loaded or trusted to be what its name says."""


class StoreError(MtlbenchError):
    """A run folder cannot be read or written."""


class DeviceBusy(MtlbenchError):
    """Other programs hold the memory of the device, or all of it: no cell can be run on it now."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest known name, or all known names when none is close."""
    names = sorted(known)
    if not names:
        return "None is installed."
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}? Known: {', '.join(names)}."
    return f"Known: {', '.join(names)}."
