"""Which rows and how many steps one run of the training loop gets: all tasks, or some tasks with their share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.errors import PluginError, RequestError
from mtlbench.planning.mixing import read_mixing
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.splits import Splits


@dataclass(frozen=True)
class RunPlan:
    """What one run trains on."""

    tasks: tuple[int, ...]
    steps: int
    rows_of_task: list[list[int]]
    """For each task of the cell the indices of its training rows; empty for a task that is left out."""
    stop: list[TokenRow]
    """Rows that stop this run early."""


def stage_of(
    splits: Splits, rows_of_task: Sequence[Sequence[int]], tasks: Sequence[int] | None, *, steps: int, mixing: str
) -> RunPlan:
    """The run on ``tasks``, or on all when ``None``, out of a budget of ``steps``.

    Rows of a task are visited in the same order as when all tasks train together: the plan draws one stream per task.

    Raises:
        PluginError: for a task that is not there.
        RequestError: when the budget has fewer steps than there are tasks to share it.
    """
    everything = tuple(range(len(rows_of_task)))
    if tasks is None:
        trained = tuple(task for task in everything if rows_of_task[task])
        return RunPlan(trained, steps, [list(rows) for rows in rows_of_task], splits.stop)
    wanted = tuple(sorted(set(tasks)))
    if not wanted or not set(wanted) <= set(everything):
        raise PluginError(f"run(tasks={list(tasks)}) is not possible: the tasks of this cell are {list(everything)}.")
    shares = share_steps([len(rows) for rows in rows_of_task], steps=steps, mixing=mixing)
    return RunPlan(
        tasks=wanted,
        steps=sum(shares[task] for task in wanted),
        rows_of_task=[list(rows) if task in wanted else [] for task, rows in enumerate(rows_of_task)],
        stop=[row for row in splits.stop if row.task in wanted],
    )


def share_steps(rows_per_task: Sequence[int], *, steps: int, mixing: str) -> list[int]:
    """``steps`` divided as the mixture divides a batch: whole numbers that sum to ``steps``, at least one per task.

    Raises:
        RequestError: when there are more tasks with rows than steps.
    """
    weights = np.array(read_mixing(mixing).weights(rows_per_task))
    some = int((weights > 0).sum())
    if steps < some:
        raise RequestError(
            f"{steps} steps cannot be shared by {some} tasks that train one after another: raise steps or epochs to "
            "at least one step per task."
        )
    due = steps * weights / weights.sum()
    counts = np.maximum(np.floor(due), weights > 0).astype(np.int64)
    while (missing := steps - int(counts.sum())) != 0:
        gap = np.where(counts > 1, due - counts, np.inf) if missing < 0 else due - counts
        counts[gap.argmin() if missing < 0 else gap.argmax()] += 1 if missing > 0 else -1
    return [int(count) for count in counts]
