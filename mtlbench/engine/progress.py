"""What training did, as the record tells it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class StageProgress:
    """What one run of the loop did. Steps are counted over all runs."""

    tasks: tuple[int, ...]
    first_step: int
    """Steps done before this run."""
    steps: int = 0
    """Steps done after it."""
    best_step: int | None = None
    """Steps after which the kept state was reached; ``None`` where the last state was kept unscored."""
    stopped_early: bool = False


@dataclass
class Progress:
    """What training did, in plain numbers, over all runs of the loop."""

    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    """Token slots computed, padding included."""
    rows_per_task: Counter[int] = field(default_factory=Counter)
    tokens_per_task: Counter[int] = field(default_factory=Counter)
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the method's loss, every few steps."""
    stop_losses: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the loss on the stop split: mean over tasks of each task's mean."""
    stages: list[StageProgress] = field(default_factory=list)
    """One per run."""

    @property
    def best_step(self) -> int | None:
        """Of the last run."""
        return self.stages[-1].best_step if self.stages else None

    @property
    def stopped_early(self) -> bool:
        """Whether any run was stopped before its budget was used."""
        return any(stage.stopped_early for stage in self.stages)
