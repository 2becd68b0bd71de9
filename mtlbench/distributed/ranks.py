"""The interface of the training loop to the processes that train a cell together, and its single-process case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from mtlbench.errors import MtlbenchError

T = TypeVar("T")


class Ranks:
    """All ranks have the same model, take the same steps and make the same calls in the same order.

    The base class is a single process.
    """

    rank: int = 0
    """Rank of this process, from 0."""
    size: int = 1
    sharded: bool = False
    """Whether each rank holds only a shard of the backbone, so that all must run every layer at the same time."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which evaluates, writes and logs."""
        return self.rank == 0

    def broadcast_object(self, value: Any) -> Any:
        """The JSON-like ``value`` of rank 0, on all ranks."""
        return value

    def first_then_others(self, make: Callable[[], T], *, digest: Callable[[T], Any]) -> T:
        """The result of ``make``, called by rank 0 and then by the others; its ``digest`` must be the same JSON-like
        value on all ranks."""
        return make()

    def any(self, holds: bool) -> bool:
        """Whether ``holds`` is true on any rank."""
        return holds

    def broadcast_value(self, value: float) -> float:
        """The value of rank 0."""
        return value

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the values of rank 0."""

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        """The values of every rank, in rank order; all give equally many. No device waits for it."""
        return [list(values)]

    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all ranks of tensors of the same shapes, in one message per dtype."""
        return list(tensors)

    def in_step(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, an error on one rank is raised on all, if they are ``sharded``; all must run ``model``."""
        return nullcontext()

    def fail(self, message: str) -> None:
        """Publish the error of this rank; called before the others learn that it failed."""

    def failures(self) -> str:
        """The errors that other ranks published."""
        return ""


ALONE = Ranks()


FINE, NO_MEMORY, FAILED = range(3)
"""Outcome of a forward or backward pass on a rank, best first."""


class OtherFailed(MtlbenchError):
    """Another process of this cell failed."""
