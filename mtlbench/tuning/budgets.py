"""How much tuning a method gets, by name, so that two methods can get the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtlbench.errors import RequestError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One named effort. Words that a command gives win over it."""

    trials: int
    startup: int
    """Trials drawn at random before TPE has enough results to model."""
    at_once: int
    """Trials asked before their results are known."""
    share: float
    """Share of each task's training rows that trials are scored on instead of being trained on."""
    score_rows: int | None = None
    """At most this many of those rows per task are scored; ``None`` scores all."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Protocol fields of the trials, and of the run that uses their result."""


BUDGETS: Mapping[str, Budget] = {
    # PEML, section 4: 100 trials of at most 150 epochs, stopped after 25 without a better score.
    "paper": Budget(
        trials=100,
        startup=10,
        at_once=4,
        share=0.1,
        training={"epochs": 150.0, "evals_per_run": 150, "patience": 25},
    ),
    "standard": Budget(
        trials=20,
        startup=6,
        at_once=4,
        share=0.1,
        score_rows=500,
        training={"epochs": 20.0, "evals_per_run": 20, "patience": 5},
    ),
    "quick": Budget(trials=8, startup=3, at_once=2, share=0.25, training={"epochs": 1.0, "train_rows": 200}),
}


def budget_named(name: str) -> Budget:
    """The budget ``name``.

    Raises:
        RequestError: there is none.
    """
    if name not in BUDGETS:
        raise RequestError(f"Unknown budget {name!r}. {did_you_mean(name, BUDGETS)}")
    return BUDGETS[name]
