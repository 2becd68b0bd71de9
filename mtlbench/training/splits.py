"""What is kept from the training rows."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.api.cell import Protocol
from mtlbench.backbones.machine import axis_seed
from mtlbench.tokens.encode import TokenRow


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
