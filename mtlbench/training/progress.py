"""What training did, as the record tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from mtlbench.tokens.encode import TokenRow


@dataclass
class RunProgress:
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
class TrainingProgress:
    """What training did, in plain numbers, over all runs of the loop."""

    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    """Token slots computed, padding included."""
    task_weighting: str = ""
    """How the losses of a step weigh: :class:`~mtlbench.training.objective.Objective` as text."""
    balance: dict[str, Any] | None = None
    """What :meth:`mtlbench.balancing.combined.Balancing.summary` says, where there is a balancer."""
    parameters: int = 0
    """The largest number that required gradients in one run."""
    row_layout: str = ""
    """As :class:`~mtlbench.training.forms.RowForm` says it; empty before the first step."""
    tasks_of_steps: int = 0
    """Sum over the steps of how many tasks each held rows of."""
    largest_of_steps: float = 0.0
    """Sum over the steps of the share of rows that the task with most rows had."""
    rows_per_task: Counter[int] = field(default_factory=Counter)
    tokens_per_task: Counter[int] = field(default_factory=Counter)
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the method's loss, every few steps."""
    stop_losses: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the loss on the stop split: mean over tasks of each task's mean."""
    stop_scores: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the mean of the tasks' metrics on the stop split in percent, where states are chosen by it."""
    stages: list[RunProgress] = field(default_factory=list)
    """One per run."""
    micro_batches: list[tuple[int, int]] = field(default_factory=list)
    """Where memory ran out: steps done, and the rows that were computed at once from there on."""

    def count(self, rows: Sequence[TokenRow], *, real: int, padded: int) -> None:
        """Take in the rows of a step, with their tokens and the token slots that were computed for them."""
        self.rows += len(rows)
        self.real_tokens += real
        self.padded_tokens += padded
        of_task = Counter(row.task for row in rows)
        self.tasks_of_steps += len(of_task)
        self.largest_of_steps += max(of_task.values()) / len(rows)
        self.rows_per_task.update(of_task)
        for row in rows:
            self.tokens_per_task[row.task] += row.length

    def to_json(self) -> dict[str, Any]:
        """Plain values that :meth:`from_json` reads back."""
        counts = {name: sorted(value.items()) for name, value in vars(self).items() if isinstance(value, Counter)}
        return {**asdict(self), **counts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The progress that wrote ``value``."""
        changed = {
            "rows_per_task": Counter(dict(map(tuple, value["rows_per_task"]))),
            "tokens_per_task": Counter(dict(map(tuple, value["tokens_per_task"]))),
            "stages": [RunProgress(**{**stage, "tasks": tuple(stage["tasks"])}) for stage in value["stages"]],
            **{
                name: [tuple(pair) for pair in value[name]]
                for name in ("losses", "stop_losses", "stop_scores", "micro_batches")
            },
        }
        return cls(**{**value, **changed})

    @property
    def tasks_per_step(self) -> float:
        """How many tasks a step held rows of, in the mean."""
        return self.tasks_of_steps / self.steps if self.steps else 0.0

    @property
    def largest_share_of_step(self) -> float:
        """The share of a step's rows that were of the task with most of them, in the mean."""
        return self.largest_of_steps / self.steps if self.steps else 0.0

    @property
    def best_step(self) -> int | None:
        """Of the last run."""
        return self.stages[-1].best_step if self.stages else None

    @property
    def stopped_early(self) -> bool:
        """Whether any run was stopped before its budget was used."""
        return any(stage.stopped_early for stage in self.stages)
