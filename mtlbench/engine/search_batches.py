"""Batches of the split that architecture search learns from, in their own order."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.api.cell import Protocol
from mtlbench.engine.batches import plan_batches
from mtlbench.engine.seeds import axis_seed
from mtlbench.engine.tokens import TokenRow, by_task
from mtlbench.errors import RequestError


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
