"""Agreement between the ranks of a sharded backbone before every all-gather, so that none waits for a failed one.

If a rank fails inside a step, the others would block in the next all-gather, waiting for its shard. Therefore all ranks
exchange their status before every all-gather and at the end of every :func:`in_step` block; an error of one is raised
on all. This goes over gloo between CPUs: no device waits for it.
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
"""Used instead of a unit's number at the end of a block."""


class OtherNoMemory(MemoryError):
    """Memory ran out on another process of this cell."""


class OutOfStep(RuntimeError):
    """The processes of a cell do not compute the same layers in the same order."""


_KNOWN = (OtherFailed, OtherNoMemory, OutOfStep)
"""Errors that are raised on all ranks at once."""


class AgreedGather:
    """The all-gather of FSDP unit ``number``, after all ranks have agreed."""

    def __init__(self, ranks: Ranks, number: int) -> None:
        self._ranks, self._number = ranks, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer for the gathered weights."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather ``input_tensor`` of all ranks into ``output_tensor``."""
        _agree(self._ranks, self._number)
        # renamed in torch 2.13, where the old name warns
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)


@contextmanager
def in_step(ranks: Ranks, model: nn.Module) -> Iterator[None]:
    """Inside, all ranks run the same layers of ``model`` in the same order; an error of one is raised on all.

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
    statuses = ranks.all_gather([FINE, number])
    worst = max(state for state, _ in statuses)
    if worst != FINE:
        _raise(ranks, worst)
    if any(other != number for _, other in statuses):
        raise OutOfStep(
            f"the processes of this cell run different layers at the same time ({[other for _, other in statuses]}). "
            "The method or the tasks do not behave the same on each process: run without --shard."
        )


def _raise(ranks: Ranks, worst: int) -> None:
    if worst == NO_MEMORY:
        raise OtherNoMemory("out of memory on another device of this cell")
    raise OtherFailed(f"Another process of this cell failed: {ranks.failures()}")


def _reset(model: nn.Module) -> None:
    """Free gathered weights, wherever the block was left."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
