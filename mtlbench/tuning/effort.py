"""How much every method of a comparison is tuned: one number of trials and one range of learning rates for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mtlbench.api.cell import Protocol, digest
from mtlbench.errors import RequestError, did_you_mean

RATE = "learning_rate"
"""The setting that is searched over one range for all methods."""
MOST_TRIALS = 10_000
"""Most trials of a search; seeds of the trials of two searches with different seeds differ up to so many."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort that each method gets."""

    level: str
    """``quick``, ``standard`` or ``paper``."""
    trials: int
    """Trials of each method, the default settings among them."""
    rates: tuple[float, float] = (2e-5, 2e-2)
    """Lowest and highest peak learning rate; the values between are even on a logarithmic scale."""
    finalists: int = 3
    """The best trials, which are run again on other seeds before one is chosen."""
    repeats: int = 3
    """Seeds that a finalist has scores on, each with its own held-out rows."""
    share: float = 0.2
    """Share of each task's training rows that trials are scored on instead of trained on."""
    score_rows: int = 500
    """At most this many scored rows per task."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the trials: the first for all, the others for finalists. None is one that a user would give."""
        return tuple(int(digest(["tuning", number]), 16) % 2**31 for number in range(self.repeats))

    @property
    def cells(self) -> int:
        """Most cells that one method takes."""
        return self.trials + min(self.finalists, self.trials) * (self.repeats - 1)

    def identity(self, *, protocol: Protocol, tasks: tuple[str, ...], model: str, weights: str) -> Mapping[str, Any]:
        """What is equal for all methods of a study, as JSON: this effort, and what the trials share."""
        return {
            **asdict(self),
            "rates": list(self.rates),
            "tasks": list(tasks),
            "model": weights or model,
            "protocol": replace(protocol, tuning="none").identity(),
        }


LEVELS: Mapping[str, int] = {"quick": 6, "standard": 12, "paper": 30}
"""Trials by level."""


def read_effort(level: str, trials: int | None = None) -> Effort:
    """The effort of ``--tune`` and ``--tune-trials``.

    Raises:
        RequestError: the level is unknown, or there are too few trials to choose between.
    """
    if level not in LEVELS:
        raise RequestError(f"Unknown --tune {level!r}. {did_you_mean(level, LEVELS)}")
    if trials is not None and not 2 <= trials <= MOST_TRIALS:
        raise RequestError(
            f"--tune-trials must be from 2 to {MOST_TRIALS}, got {trials}: each method gets so many, the default among "
            "them."
        )
    return Effort(level=level, trials=LEVELS[level] if trials is None else trials)
