"""Losses of rows as a loss of tasks, and the distance of a student to its teacher token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def task_means(row_losses: Tensor, tasks: Tensor, tasks_count: int, *, weights: Tensor | None = None) -> Tensor:
    """Mean over the tasks present of each task's mean row loss: a scalar (PEML, eq. 4).

    Args:
        row_losses: ``[rows]``.
        tasks: Task ids ``[rows]``.
        tasks_count: Tasks in all.
        weights: Weight of each task ``[tasks]``; the mean is over the weights of the tasks present.
    """
    empty = torch.zeros(tasks_count, dtype=row_losses.dtype, device=row_losses.device)
    counts = empty.index_add(0, tasks, torch.ones_like(row_losses))
    sums = empty.index_add(0, tasks, row_losses)
    means, present = sums / counts.clamp(min=1), counts > 0
    if weights is None:
        return means.sum() / present.sum()
    return (means * weights).sum() / (weights * present).sum()


def routing_report(shares: Tensor, chosen: Tensor) -> Tensor:
    """What :func:`load_balance` reads, for ``Factors.report``: ``[rows, 1 or length, 2 * experts]``.

    Args:
        shares: The router's probabilities of each token, before any are left out ``[rows, 1 or length, experts]``.
        chosen: Numbers of the experts that the token goes to ``[rows, 1 or length, chosen]``.
    """
    counts = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
    return torch.cat([shares, counts], dim=-1)


def load_balance(values: Tensor, tokens: Tensor) -> Tensor:
    """``E sum_e f_e P_e``: a scalar that is 1 for routers that use all experts alike, and ``E`` for one expert alone.

    ``f_e`` is the expert's part of all choices, which has no gradient, and ``P_e`` its mean probability (Fedus et al.
    2022, arXiv:2101.03961, eq. 4 to 6).

    Args:
        values: Sums of :func:`routing_report` over the tokens of each row ``[rows, 2 * experts]``.
        tokens: Tokens of each row ``[rows]``.
    """
    shares, counts = values.sum(0).chunk(2)
    part = counts.detach() / counts.detach().sum().clamp(min=1)
    return len(shares) * (part * shares).sum() / tokens.sum().clamp(min=1)


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)`` of each token ``[tokens]``, from logits ``[tokens, vocabulary]``."""
    own, taught = (_wide(logits).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(own, taught, reduction="none", log_target=True).sum(-1)


def hidden_state_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each token's hidden states ``[tokens]``, from ``[tokens, width]``."""
    return (_wide(student) - _wide(teacher)).square().mean(-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
