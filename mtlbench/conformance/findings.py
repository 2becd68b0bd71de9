"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mtlbench.conformance.lab import Lab

Outcome = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of a method on one backbone."""

    check: str
    backbone: str
    """``tiny Llama`` or ``tiny T5``."""
    outcome: Outcome
    message: str
    """Of a failed check what was seen and what to change; of a skipped one the reason; otherwise what holds."""


@dataclass(frozen=True)
class Check:
    """One promise of a method."""

    name: str
    promise: str
    advice: str
    """What to change where the promise is broken; empty where only an exception can break it."""
    run: Callable[[Lab], None]
    """Raises :class:`Broken` with what was seen, :class:`NotApplicable` with the reason, or what the method raised."""


class Broken(Exception):
    """A promise does not hold; the message says what was seen."""


class NotApplicable(Exception):
    """A check says nothing about this method; the message says why."""
