"""Records for tests of what is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Costs, Failure, Record, TaskScore

PROTOCOL = Protocol(data="demo:5f2c", prompts="lm_eval 0.4.13")
COSTS = Costs(
    trainable_parameters=25_000,
    backbone_parameters=1_000_000,
    train_seconds=61.0,
    eval_seconds=4.0,
    total_seconds=70.0,
    tokens_per_second=9_000.0,
    peak_memory=512 * 2**20,
    peak_memory_kind="process",
    adapter_bytes=98 * 2**10,
)


def cell(
    method: str = "lora", seed: int = 0, tasks: tuple[str, ...] = ("glue/rte", "glue/cola"), **changes: Any
) -> Cell:
    fields: dict[str, Any] = {"model": "demo", "protocol": PROTOCOL, "plugins": {"mtlbench": "0.1.0"}, **changes}
    return Cell(method=method, seed=seed, tasks=tasks, **fields)


def accuracy(percent: float, *, majority: float | None = 50.0) -> TaskScore:
    return TaskScore(score=percent, metrics={"acc": percent / 100}, rows=200, majority=majority)


def correlation(percent: float, *, majority: float | None = 69.0) -> TaskScore:
    return TaskScore(score=percent, metrics={"mcc": percent / 100}, rows=100, majority=majority)


def done(of: Cell, *percents: float, costs: Costs | None = COSTS, **changes: Any) -> Record:
    """A finished cell with one accuracy per task, or a Matthews correlation for ``cola``."""
    scores: Mapping[str, TaskScore] = {
        task: correlation(percent) if task.endswith("/cola") else accuracy(percent)
        for task, percent in zip(of.tasks, percents, strict=True)
    }
    return Record(cell=of, status="ok", scores=scores, costs=costs, **changes)


def failed(of: Cell, message: str = "CUDA out of memory", next_step: str = "Lower --micro-batch.") -> Record:
    return Record(cell=of, status="failed", failure=Failure(kind="oom", message=message, next_step=next_step))


def skipped(of: Cell, message: str = "needs two tasks") -> Record:
    return Record(cell=of, status="skipped", failure=Failure(kind="refused", message=message, next_step="Add a task."))
