"""Rules that merge low-rank updates, on plain tensors: several updates of one linear become one of low rank.

All rules are positively homogeneous: updates of ``c`` times the size give ``c`` times the merged one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUPPORT = 1e-5
"""Singular values below this share of the largest belong to no direction that an update uses."""


@dataclass(frozen=True)
class LowRank:
    """``up [out, rank] @ down [rank, in]``."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Rule:
    """How tensors of one shape are merged element by element.

    As huggingface/peft 0.21.2: peft.utils.merge_utils, with weights of 1.
    """

    prune: str | None = None
    """``magnitude`` keeps the largest elements of each tensor, ``random`` a draw of them, divided by the density."""
    elect: bool = False
    """Whether an element is the mean of the values that have the sign of the sum, and not the sum of all."""


RULES = {
    "task_arithmetic": Rule(),
    "ties": Rule(prune="magnitude", elect=True),
    "dare": Rule(prune="random"),
    "dare_ties": Rule(prune="random", elect=True),
    "magnitude": Rule(prune="magnitude"),
}


def combine(rule: Rule, tensors: Sequence[Tensor], *, density: float, draw: torch.Generator) -> Tensor:
    """The tensors merged by ``rule``; ``density`` is the share of elements that pruning keeps, in (0, 1]."""
    import torch

    kept = torch.stack([_pruned(rule.prune, tensor, density=density, draw=draw) for tensor in tensors])
    if not rule.elect:
        return kept.sum(0)
    elected = torch.where(kept.sum(0) >= 0, 1, -1)
    agrees = kept.sign() == elected
    return (kept * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _pruned(how: str | None, tensor: Tensor, *, density: float, draw: torch.Generator) -> Tensor:
    import torch

    if how is None or density >= 1:
        return tensor
    if how == "random":
        mask = torch.bernoulli(torch.full(tensor.shape, density), generator=draw)
        return tensor * mask.to(tensor) / density
    flat = tensor.flatten()
    largest = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, largest, flat[largest]).view_as(tensor)


def average(updates: Sequence[LowRank]) -> LowRank:
    """The mean of the updates, exactly, at the sum of their ranks."""
    summed = total(updates)
    return LowRank(summed.up / len(updates), summed.down)


def total(updates: Sequence[LowRank]) -> LowRank:
    """The sum of the updates, exactly, at the sum of their ranks."""
    import torch

    return LowRank(torch.cat([u.up for u in updates], 1), torch.cat([u.down for u in updates], 0))


def svd(updates: Sequence[LowRank], *, rank: int) -> LowRank:
    """The best approximation of the sum at ``rank``, as ``combination_type="svd"`` of peft's add_weighted_adapter.

    Of the product of the two triangular factors, so that no matrix of the linear's size is decomposed.
    """
    import torch

    summed = total(updates)
    up, down = torch.linalg.qr(summed.up), torch.linalg.qr(summed.down.T)
    core = truncated(up.R @ down.R.T, rank=rank)
    return LowRank(up.Q @ core.up, core.down @ down.Q.T)


def whole(
    updates: Sequence[LowRank], rule: Rule, *, density: float, draw: torch.Generator, rank: int
) -> tuple[LowRank, float]:
    """The updates as matrices merged by ``rule``, at ``rank``, and the share of the squared norm that this keeps."""
    merged = combine(rule, [u.up @ u.down for u in updates], density=density, draw=draw)
    kept = truncated(merged, rank=rank)
    norm = float(merged.square().sum())
    return kept, float((kept.up @ kept.down).square().sum()) / norm if norm else 1.0


def truncated(matrix: Tensor, *, rank: int) -> LowRank:
    """The best approximation of ``matrix`` at ``rank``, the root of the singular values in both factors."""
    import torch

    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return LowRank(u[:, :rank] * root, root.unsqueeze(1) * v[:rank])


def knots(updates: Sequence[LowRank], rule: Rule, *, density: float, draw: torch.Generator) -> LowRank:
    """KnOTS: of ``[D_1 ... D_T] = U S [V_1 ... V_T]`` the parts ``S V_t`` are merged, and ``U`` put before them.

    Stoica et al. 2024, arXiv:2410.19735; gstoica27/KnOTS@01a940c:task_merger.py (``SVDMerger`` with ``s_on_V``). There
    the decomposition is that of matrices of the linear's size; here that of ``R [A_1' ... A_T']``, where
    ``[B_1 ... B_T] = Q R``, which gives the same. Directions below :data:`SUPPORT` are left out; the official code has
    1e-5 itself as the limit. It prunes over the whole model, where here, as in peft, each linear keeps its share.
    """
    import torch

    basis = torch.linalg.qr(torch.cat([u.up for u in updates], 1))
    ranks = [u.up.shape[1] for u in updates]
    inner = [r @ u.down for r, u in zip(basis.R.split(ranks, 1), updates, strict=True)]
    u, s, v = torch.linalg.svd(torch.cat(inner, 1), full_matrices=False)
    used = s > SUPPORT * s.max()
    parts = (s[used].unsqueeze(1) * v[used]).split(inner[0].shape[1], 1)
    return LowRank(basis.Q @ u[:, used], combine(rule, parts, density=density, draw=draw))


def core_space(updates: Sequence[LowRank], rule: Rule, *, density: float, draw: torch.Generator) -> LowRank:
    """Core Space: ``U' B_t A_t V`` are merged, ``U`` the left singular vectors of ``[B_1 ... B_T]``, ``V`` the right
    ones of the stacked ``A_t``; then ``U`` and ``V'`` are put around.

    Panariello et al. 2025, arXiv:2509.17786; apanariello4/core-space-merging@e66f357:task_merger.py
    (``get_core_matrices``).
    """
    import torch

    summed = total(updates)
    left = torch.linalg.svd(summed.up, full_matrices=False)[0]
    right = torch.linalg.svd(summed.down, full_matrices=False)[2]
    cores = [(left.T @ u.up) @ (u.down @ right.T) for u in updates]
    return LowRank(left @ combine(rule, cores, density=density, draw=draw), right)


Aligned = Callable[..., LowRank]
ALIGNED: dict[str, Aligned] = {"knots": knots, "core_space": core_space}
