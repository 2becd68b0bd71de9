"""The processes that train a cell together, as the training loop sees them; here the one that is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from mtlbench.errors import MtlbenchError

T = TypeVar("T")


class Ranks:
    """All have the same model, take the same steps and come by the same calls in the same order.

    The base class is a process that is alone: what it asks for is what it has.
    """

    rank: int = 0
    """Of this process, from 0."""
    size: int = 1
    sharded: bool = False
    """Whether each keeps only a part of the backbone, so that all must run every layer at the same time."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that evaluates, writes and logs."""
        return self.rank == 0

    def broadcast_object(self, value: Any) -> Any:
        """The first process's plain ``value``, on all."""
        return value

    def first_then_others(self, make: Callable[[], T], *, digest: Callable[[T], Any]) -> T:
        """What ``make`` gives, called by the first process and then by the others; ``digest`` must be the same plain
        value on all."""
        return make()

    def any(self, holds: bool) -> bool:
        """Whether it holds on any process."""
        return holds

    def broadcast_value(self, value: float) -> float:
        """The first process's value."""
        return value

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the first process's values."""

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        """The values of every process, by rank: as many from each. No device waits for it."""
        return [list(values)]

    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes of tensors of the same shapes, in one message for each dtype."""
        return list(tensors)

    def in_step(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, what one process fails in, all do, where they are ``sharded`` and ``model`` runs on all."""
        return nullcontext()

    def fail(self, words: str) -> None:
        """Leave word of what this process failed in; called before the others learn that it did."""

    def failures(self) -> str:
        """What the others said that they failed in."""
        return ""


ALONE = Ranks()


FINE, NO_MEMORY, FAILED = range(3)
"""How a part of a step ended on a process, best first."""


class OtherFailed(MtlbenchError):
    """Another process of this cell failed."""
