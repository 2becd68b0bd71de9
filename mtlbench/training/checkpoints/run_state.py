"""Where one run of the training loop is, and the best state it had so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.optimizer import load_optimizer_state, optimizer_state
from mtlbench.training.progress import RunProgress
from mtlbench.training.stages import RunPlan


@dataclass
class RunState:
    """One run of the loop."""

    number: int
    """Of the runs of a cell, from 0."""
    stage: RunPlan
    optimizer: Optimizer
    plan: list[list[int]]
    """The rows of every step."""
    stop_points: set[int]
    """Numbers of steps after which the stop split is scored."""
    patience: int
    """The run is over after so many scores in a row without a better one."""
    done: RunProgress
    step: int = 0
    """Steps done."""
    scaler: GradScaler | None = None
    """Of losses, in float16."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The trainable parameters with the best score, on the host; empty before the first score."""
    lowest: float = math.inf
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether the budget is used or the run was stopped early."""
        return self.done.stopped_early or self.step >= len(self.plan)

    def judge(self, score: float) -> bool:
        """Take in a score of the stop split; says whether it is the best, whose state is to be kept."""
        if score < self.lowest:
            self.lowest, self.waited, self.done.best_step = score, 0, self.done.steps
            return True
        self.waited += 1
        self.done.stopped_early = self.waited >= max(1, self.patience)
        return False

    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs besides the progress."""
        return {
            "tasks": list(self.stage.tasks),
            "steps": len(self.plan),
            "step": self.step,
            "optimizer": optimizer_state(self.optimizer),
            "best": self.best,
            "lowest": self.lowest,
            "waited": self.waited,
            "scaler": None if self.scaler is None else dict(self.scaler.state_dict()),
        }

    def load(self, state: Mapping[str, Any], *, done: RunProgress) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            Unusable: it was another run.
        """
        if (state["tasks"], state["steps"]) != (list(self.stage.tasks), len(self.plan)):
            raise Unusable(f"run {self.number} trains on other tasks or for another number of steps")
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.best = {name: value.cpu() for name, value in state["best"].items()}
        self.step, self.lowest, self.waited, self.done = state["step"], state["lowest"], state["waited"], done
