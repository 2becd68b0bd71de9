"""Losses per row and their mean over tasks, without a loop over rows or tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlbench.engine.batches import Batch
from mtlbench.engine.head import picked_rows
from mtlbench.engine.routing import Routing


def row_losses(model: nn.Module, batch: Batch, routing: Routing) -> Tensor:
    """Mean token cross entropy of each row, float32 ``[rows]``; logits are computed only where there are labels.

    A backward of the result must run inside ``routing.of(batch.tasks)`` too where the model recomputes layers.
    """
    with routing.of(batch.tasks), picked_rows(model, batch.label_index):
        logits = model(**batch.inputs, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.float(), batch.label_ids, reduction="none")
    sums = torch.zeros(batch.rows, dtype=losses.dtype, device=losses.device)
    return sums.index_add(0, batch.label_rows, losses * batch.label_weights)


def task_means(row_losses: Tensor, tasks: Tensor, tasks_count: int) -> Tensor:
    """Mean over the tasks present of each task's mean row loss: a scalar (PEML, eq. 4).

    Args:
        row_losses: ``[rows]``.
        tasks: Task ids ``[rows]``.
        tasks_count: Tasks in all.
    """
    empty = torch.zeros(tasks_count, dtype=row_losses.dtype, device=row_losses.device)
    counts = empty.index_add(0, tasks, torch.ones_like(row_losses))
    sums = empty.index_add(0, tasks, row_losses)
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum()
