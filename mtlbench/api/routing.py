"""Task ids of the current batch for routed layers, without changing the signature of the model's forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowSums:
    """What one layer reported of its tokens, for :meth:`~mtlbench.api.method.Method.auxiliary_loss`."""

    values: Tensor
    """Sums over the tokens of each row ``[rows, reported]``, at least float32."""
    tokens: Tensor
    """Tokens of each row that the layer saw ``[rows]``."""


class Packing(Protocol):
    """How the rows of a batch lie in what layers see."""

    def tasks_of(self, chunks: int) -> Tensor:
        """Task ids of the chunks of an activation that has so many ``[chunks]``.

        Raises:
            RuntimeError: it is no activation of this batch, or its chunks hold rows of several tasks.
        """


class Routing:
    """Holds the task id of every row of the current batch.

    The training loop runs forward *and* backward inside :meth:`of`, because gradient checkpointing repeats the forward
    during the backward.
    """

    def __init__(self) -> None:
        self._tasks: Tensor | None = None
        self._contexts: Tensor | None = None
        self._packing: Packing | None = None
        self.turn = 0
        """Increases whenever the current batch changes."""

    @contextmanager
    def of(self, tasks: Tensor, contexts: Tensor | None = None, packing: Packing | None = None) -> Iterator[None]:
        """Route a batch whose rows have the ids ``tasks [rows]`` (int64, on the model's device).

        Args:
            contexts: Tokens of each row before its answer ``[rows]``, where a decoder-only backbone reads both.
            packing: How layers see the rows, where not as rows.
        """
        previous = self._tasks, self._contexts, self._packing
        self._tasks, self._contexts, self._packing = tasks, contexts, packing
        self.turn += 1
        try:
            yield
        finally:
            self._tasks, self._contexts, self._packing = previous
            self.turn += 1

    @contextmanager
    def by_row(self) -> Iterator[None]:
        """Inside, the rows of an activation are those of the batch, also where the batch in flight is packed."""
        packing, self._packing = self._packing, None
        try:
            yield
        finally:
            self._packing = packing

    @property
    def tasks(self) -> Tensor:
        """Task ids of the current batch ``[rows]``.

        Raises:
            RuntimeError: outside :meth:`of`.
        """
        if self._tasks is None:
            raise RuntimeError("a task-routed layer ran outside `with routing.of(tasks)`: no task ids are known")
        return self._tasks

    def ids(self, rows: int) -> Tensor:
        """Task ids ``[rows]`` for an activation of ``rows`` rows: beam search repeats each row in place.

        In a packed batch the rows of an activation are chunks of tokens of one task.

        Raises:
            RuntimeError: outside :meth:`of`, or when ``rows`` is not a multiple of the batch size.
        """
        if self._packing is not None:
            return self._packing.tasks_of(rows)
        return _of_rows(self.tasks, rows)

    def contexts(self, rows: int) -> Tensor | None:
        """Number of prompt tokens of each row ``[rows]``; ``None`` where all tokens are prompt, as in generation.

        A method that attends to the text of a row must use only these tokens: in the rows of a decoder-only backbone,
        the answer that is trained or scored follows them.
        """
        return None if self._contexts is None else _of_rows(self._contexts, rows)


def _of_rows(values: Tensor, rows: int) -> Tensor:
    batch = values.shape[0]
    if rows == batch:
        return values
    if rows % batch:
        raise RuntimeError(f"an activation of {rows} rows cannot be routed by {batch} task ids")
    return values.repeat_interleave(rows // batch)
