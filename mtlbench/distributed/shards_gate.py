"""What processes that share a backbone agree on before weights move, so that none waits for one that failed.

Where a process fails inside a step, the others are on their way to gather the next layer and would wait for its part.
So all say how they are before every gathering, and at the end of every block of :func:`in_step`; what one reports there
is raised on all. That goes over gloo between processors: no device waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mtlbench.backbones.machine import is_out_of_memory
from mtlbench.distributed.ranks import FAILED, FINE, NO_MEMORY, OtherFailed, Ranks

END = -1
"""In the place of a unit's number, at the end of a block."""


class OtherNoMemory(MemoryError):
    """Memory ran out on another process of this cell."""


class OutOfStep(RuntimeError):
    """The processes of a cell do not compute the same layers in the same order."""


_KNOWN = (OtherFailed, OtherNoMemory, OutOfStep)
"""Raised on all processes at once."""


class AgreedGather:
    """How FSDP gathers the unit ``number``: once all processes are there."""

    def __init__(self, ranks: Ranks, number: int) -> None:
        self._ranks, self._number = ranks, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for the gathered weights."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather ``input_tensor`` of all into ``output_tensor``."""
        _agree(self._ranks, self._number)
        # renamed in torch 2.13, where the old name warns
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)


@contextmanager
def in_step(ranks: Ranks, model: nn.Module) -> Iterator[None]:
    """Inside, all compute the same layers of ``model`` in the same order; what one fails in, all do.

    Raises:
        OtherNoMemory: memory ran out on another process.
        OtherFailed: another process failed.
        OutOfStep: they do not compute the same layers.
    """
    try:
        yield
    except _KNOWN:
        _reset(model)
        raise
    except Exception as error:
        outcome = NO_MEMORY if is_out_of_memory(error) else FAILED
        if outcome == FAILED:
            ranks.fail(f"{type(error).__name__}: {error}")
        worst = max(state for state, _ in ranks.all_gather([outcome, END]))
        _reset(model)
        if worst > outcome:
            _raise(ranks, worst)
        raise
    try:
        _agree(ranks, END)
    except _KNOWN:
        _reset(model)
        raise


def _agree(ranks: Ranks, number: int) -> None:
    told = ranks.all_gather([FINE, number])
    worst = max(state for state, _ in told)
    if worst != FINE:
        _raise(ranks, worst)
    if any(other != number for _, other in told):
        raise OutOfStep(
            f"the processes of this cell compute different layers at the same time ({[other for _, other in told]}). "
            "Its method or its tasks do something else on each process: run it without --shard."
        )


def _raise(ranks: Ranks, worst: int) -> None:
    if worst == NO_MEMORY:
        raise OtherNoMemory("out of memory on another device of this cell")
    raise OtherFailed(f"Another process of this cell failed: {ranks.failures()}")


def _reset(model: nn.Module) -> None:
    """Give back what is gathered, wherever the block was left."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
