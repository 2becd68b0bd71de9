"""One process's worth of training with checkpoints, and what two of them must have in common."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.files.stop_request import StopRequest
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, toy_loop
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.splits import Splits
from mtlbench_methods.lora import Lora

STEPS = 16
SMALL = "prefix_length=4,layers=2,search_share=0.5"
IDENTITY = {"cell": "a", "code": "1"}


class Crash(Exception):
    """Stands for the end of the process."""


@dataclass
class Attempt:
    """One process's worth of a cell's training."""

    method: Method
    folder: Path | None = None
    crash_at: int | None = None
    """Raise once this many steps are done in all."""
    signal_at: int | None = None
    """Send this process SIGTERM once this many steps are done."""
    identity: dict[str, str] = field(default_factory=lambda: IDENTITY)
    every_s: float = 0.0
    build: Any = tiny_causal
    changes: dict[str, Any] = field(default_factory=dict)
    splits: Splits | None = None
    autocast: torch.dtype | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)

    def run(self) -> Attempt:
        model = self.build(0)
        self.setup: Setup = setup_for(model, total_steps=STEPS)
        self.method.attach(model, self.setup)
        stop = StopRequest()
        files = CheckpointStore(self.folder, identity=self.identity) if self.folder and self.method.resumes() else None
        self.recovery = CheckpointPolicy(files, stop=stop, every_s=self.every_s)
        protocol = {"steps": STEPS, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 4, "patience": 9}
        self.loop = toy_loop(
            model,
            self.method,
            self.setup,
            Protocol(**{**protocol, **self.changes}),
            splits=self.splits,
            autocast=self.autocast,
            on_step=self._stepped,
            recovery=self.recovery if self.folder else None,
        )
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        stop.install()
        try:
            self.method.fit(model, self.loop)
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
        return self

    def _stepped(self, step: int, losses: Tensor, tasks: Tensor) -> None:
        self.losses[step + 1] = losses.clone()
        random.random()  # what others draw meanwhile
        np.random.rand()
        if step + 1 == self.crash_at:
            raise Crash
        if step + 1 == self.signal_at:
            signal.raise_signal(signal.SIGTERM)


def method_of(words: str) -> Method:
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


def told(attempt: Attempt) -> dict[str, Any]:
    """What a record would tell, but for times."""
    notes: dict[str, Any] = {}
    for module in attempt.loop.model.modules():
        if callable(getattr(module, "notes", None)):
            notes.update(module.notes())
    progress = attempt.loop.progress.to_json()
    return {**progress, "seconds": 0, "notes": notes}


def assert_equal(one: Attempt, other: Attempt) -> None:
    states = [trainable_state(attempt.loop.model) for attempt in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert told(one) == told(other)


def interrupted(folder: Path, *, at: int = 9) -> None:
    with pytest.raises(Crash):
        Attempt(Lora(), folder, crash_at=at).run()
