"""Trials and their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtlbench.api.method import Value
from mtlbench.api.record import Record

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One suggestion and its results."""

    number: int
    """From 0; determines the trial's seed."""
    settings: Mapping[str, Value]
    """The searched settings."""
    records: tuple[Record, ...] = ()
    """One per share of the budget that was run; the last one may have failed."""
    state: State = "running"

    @property
    def scores(self) -> tuple[float, ...]:
        """Average over the tasks for each share of the budget, in percent."""
        return tuple(record.average for record in self.records if record.average is not None)

    @property
    def score(self) -> float | None:
        """Average at the full budget, or ``None``."""
        return self.scores[-1] if self.state == "complete" else None

    @property
    def seconds(self) -> float:
        """Total time of its cells."""
        return sum(record.costs.total_seconds for record in self.records if record.costs)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest score, the first of equals; ``None`` when none is complete."""
    scored = [(trial.score, -trial.number, trial) for trial in trials if trial.score is not None]
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None
