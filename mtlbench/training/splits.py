"""What is kept from the training rows."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.api.cell import Protocol
from mtlbench.backbones.machine import axis_seed
from mtlbench.errors import RequestError
from mtlbench.tokens.encode import TokenRow, by_task
from mtlbench.training.batches import plan_batches, planned_steps


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of the training rows; evaluation rows are never among them."""

    train: list[TokenRow]
    stop: list[TokenRow]
    """Scored to stop training early."""
    search: list[TokenRow]
    """For choices made by gradient, such as architecture logits."""

    def of_tasks(self, tasks: Container[int]) -> Splits:
        """The rows of ``tasks``."""
        return Splits(*([row for row in part if row.task in tasks] for part in (self.train, self.stop, self.search)))


def carve(rows: Sequence[TokenRow], *, held_out: float, seed: int) -> Splits:
    """Keep the share ``held_out`` of each task's rows from training: half to stop early, half for the search.

    A task with ten rows or more gives at least one row to each when ``held_out > 0``; every task keeps a training row.
    """
    splits = Splits([], [], [])
    for task in sorted({row.task for row in rows}):
        mine = [row for row in rows if row.task == task]
        half = round(len(mine) * held_out / 2)
        if held_out > 0 and len(mine) >= 10:
            half = max(1, half)
        half = min(half, (len(mine) - 1) // 2)
        order = np.random.default_rng(axis_seed(seed, f"split/{task}")).permutation(len(mine))
        splits.stop.extend(mine[i] for i in sorted(order[:half]))
        splits.search.extend(mine[i] for i in sorted(order[half : 2 * half]))
        splits.train.extend(mine[i] for i in sorted(order[2 * half :]))
    return splits


def phases(splits: Splits, protocol: Protocol) -> list[tuple[Splits, Protocol]]:
    """What a cell trains on and with which budget, one after another: all tasks, or the sources and then the targets.

    The sources are the first of the cell's tasks.
    """
    count = len(protocol.source_tasks)
    if not count:
        return [(splits, protocol)]
    targets = {row.task for row in splits.train} - set(range(count))
    return [(splits.of_tasks(range(count)), protocol), (splits.of_tasks(targets), protocol.adaptation())]


class SearchBatches:
    """One batch after another, for as many as there are training steps, then from the first again.

    Args:
        rows: The search split.
        tasks: Number of tasks.
        steps: Training steps of the budget.
        seed: Of the cell.
    """

    def __init__(self, rows: Sequence[TokenRow], protocol: Protocol, *, tasks: int, steps: int, seed: int) -> None:
        self._rows, self._protocol, self._tasks, self._steps, self._seed = rows, protocol, tasks, steps, seed
        self._plan: list[list[int]] = []
        self._size = 0
        """Rows of a batch; 0 before the first one."""
        self._taken = 0

    def take(self, *, size: int) -> list[TokenRow]:
        """The next batch. The first one settles the ``size`` of all.

        Raises:
            RequestError: when nothing was held out.
        """
        if not self._rows:
            raise RequestError("The search split is empty: raise held_out or train_rows, or give the tasks more rows.")
        self._size = self._size or max(1, size)
        if not self._plan:
            self._plan = plan_batches(
                by_task(self._rows, self._tasks),
                steps=self._steps,
                batch_size=self._size,
                mixing=self._protocol.mixing,
                seed=axis_seed(self._seed, "search-order"),
                lengths=[row.length for row in self._rows],
                by_length=self._protocol.batching == "by_length",
            )
        indices = self._plan[self._taken % len(self._plan)]
        self._taken += 1
        return [self._rows[i] for i in indices]

    def state(self) -> list[int]:
        """What a checkpoint keeps."""
        return [self._taken, self._size]

    def load(self, state: Sequence[int]) -> None:
        """Go on from :meth:`state`."""
        self._taken, self._size = state


def budget_steps(splits: Splits, protocol: Protocol) -> int:
    """Optimizer steps of a budget on the rows to train on."""
    tasks = 1 + max((row.task for row in splits.train), default=0)
    return planned_steps(
        [len(rows) for rows in by_task(splits.train, tasks)],
        epochs=protocol.epochs,
        steps=protocol.steps,
        batch_size=protocol.batch_size,
        mixing=protocol.mixing,
    )
