"""Task ids on their way to the layers, without touching any model's forward signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Routing:
    """Holds the task id of every row of the batch in flight.

    The training loop runs forward *and* backward inside :meth:`of`, because gradient checkpointing replays the forward
    during the backward.
    """

    def __init__(self) -> None:
        self._tasks: Tensor | None = None
        self.turn = 0
        """Grows whenever the batch in flight changes."""

    @contextmanager
    def of(self, tasks: Tensor) -> Iterator[None]:
        """Route a batch whose rows have the ids ``tasks [rows]`` (int64, on the model's device)."""
        previous, self._tasks = self._tasks, tasks
        self.turn += 1
        try:
            yield
        finally:
            self._tasks = previous
            self.turn += 1

    @property
    def tasks(self) -> Tensor:
        """Task ids of the batch in flight ``[rows]``.

        Raises:
            RuntimeError: outside :meth:`of`.
        """
        if self._tasks is None:
            raise RuntimeError("a task-routed layer ran outside `with routing.of(tasks)`: no task ids are known")
        return self._tasks

    def ids(self, rows: int) -> Tensor:
        """Task ids ``[rows]`` for an activation of ``rows`` rows: beams repeat each row in place.

        Raises:
            RuntimeError: outside :meth:`of`, or when ``rows`` is no multiple of the batch.
        """
        tasks = self.tasks
        batch = tasks.shape[0]
        if rows == batch:
            return tasks
        if rows % batch:
            raise RuntimeError(f"an activation of {rows} rows cannot be routed by {batch} task ids")
        return tasks.repeat_interleave(rows // batch)
