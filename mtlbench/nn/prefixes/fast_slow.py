"""Prompts of tasks as one slow prompt that all share and a fast low-rank part of each (TA-LoRA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.prefixes.inject import StaticTaskPrefixes, prefixes_of_rows
from mtlbench.nn.prefixes.prompts import PromptProjections
from mtlbench.nn.prefixes.slots import GatedPrefix

TINY = 1e-12
"""Keeps the cosine of a task part that is zero at zero."""


class FastSlowPrompts(nn.Module):
    """``P_t = P_0 + scale * B u_t v_t^T`` in every layer, or in a first stage one free prompt for each task.

    With ``split=False`` the low-rank part belongs to its task alone: ``P_0 + scale * B_t A_t``.

    Args:
        projections: What the prompts pass through.
        routing: Gives the task of every row.
        heads: Query heads, which have a gate each; ``None`` for no gate: one softmax over prompt and tokens.
        squash: Gates pass through tanh.
        trained: How many of the first tasks train before :meth:`begin_targets`; the others are targets.
        free: Whether each task has a prompt of its own until :meth:`average`.
        draw: Makes the initial values: prompts N(0, 1), as the inputs of the projections are of that size, slow factors
            N(0, 1/rank), fast left ones N(0, 1), right ones zero, gates zero.
    """

    def __init__(
        self,
        projections: PromptProjections,
        routing: Routing,
        *,
        layers: int,
        tasks: int,
        length: int,
        rank: int,
        scale: float,
        heads: int | None,
        squash: bool,
        split: bool,
        trained: int,
        free: bool,
        draw: torch.Generator,
    ) -> None:
        super().__init__()
        self.projections, self.routing, self.scale, self.squash, self.split = projections, routing, scale, squash, split
        width = projections.width

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=draw))

        self.shared = normal(layers, length, width)
        if split:
            self.slow = nn.Parameter(torch.randn(layers, length, rank, generator=draw) / rank**0.5)
            self.left = normal(tasks, layers, rank)
            self.right = nn.Parameter(torch.zeros(tasks, layers, width))
        else:
            self.left = nn.Parameter(torch.randn(tasks, layers, length, rank, generator=draw) / rank**0.5)
            self.right = nn.Parameter(torch.zeros(tasks, layers, rank, width))
        self.gate = None if heads is None else nn.Parameter(torch.zeros(layers, heads))
        self.free = normal(tasks, layers, length, width) if free else None
        self.trained = trained
        self.present = slice(0, trained)
        """The tasks that train at the moment."""

    def task_parts(self) -> tuple[Tensor, Tensor]:
        """Factors of the low-rank parts: ``[layers, tasks, length, k]`` and ``[layers, tasks, k, width]``."""
        left, right = self.left.transpose(0, 1), self.right.transpose(0, 1)
        if self.split:
            return torch.einsum("lmr,ltr->ltm", self.slow, left).unsqueeze(-1), right.unsqueeze(2)
        return left, right

    def prompts(self) -> Tensor:
        """``[layers, tasks, length, width]``."""
        if self.free is not None:
            return self.free.transpose(0, 1)
        left, right = self.task_parts()
        return self.shared[:, None] + self.scale * left @ right

    def keys_and_values(self) -> Tensor:
        """``[layers, 2, tasks, kv_heads, length, head_dim]``: sums are projected part by part, which costs less."""
        through = self.projections
        if self.free is not None:
            prompts = self.prompts()
            return through.by_head(_by_task(through.linear(prompts.flatten(1, 2), bias=True), prompts))
        left, right = self.task_parts()
        low = _by_task(through.linear(right.flatten(1, 2), bias=False), right)
        high = through.linear(self.shared, bias=True).unsqueeze(2)
        return through.by_head(high + self.scale * left.to(low.dtype).unsqueeze(1) @ low)

    def gates(self) -> Tensor | None:
        """``[layers, heads]``."""
        return torch.tanh(self.gate) if self.squash and self.gate is not None else self.gate

    def forward(self) -> Tensor | GatedPrefix:
        """The prefix of the rows in flight."""
        return prefixes_of_rows(self.keys_and_values(), self.gates(), self.routing)

    def static(self) -> StaticTaskPrefixes:
        """The prefixes of all tasks as constants."""
        gate = self.gates()
        with torch.no_grad():
            kv = self.keys_and_values()
        return StaticTaskPrefixes(kv, self.routing, gate=None if gate is None else gate.detach())

    def slow_parameters(self) -> list[nn.Parameter]:
        """What all tasks share and learn slowly; free prompts learn at the same rate."""
        return [p for p in (self.shared, self.slow if self.split else None, self.free) if p is not None]

    def overlap(self) -> Tensor | None:
        """Mean squared cosine of the low-rank matrices of two tasks, over layers and pairs; ``None`` without pairs."""
        left, right = (p[self.present].transpose(0, 1).flatten(2) for p in (self.left, self.right))
        tasks = left.shape[1]
        if self.free is not None or tasks < 2:
            return None
        gram = right @ right.transpose(1, 2)
        if self.split:
            gram = gram * (left @ left.transpose(1, 2))
        sizes = gram.diagonal(dim1=1, dim2=2)
        cosines = gram.square() / (sizes[:, :, None] * sizes[:, None, :] + TINY)
        return cosines.triu(1).sum() / (len(gram) * tasks * (tasks - 1) / 2)

    @torch.no_grad()
    def average(self, *, fit: bool) -> None:
        """End the first stage: the shared prompt is the mean of the trained free ones, and these are gone.

        ``fit`` gives every task the part that comes closest to its free prompt by least squares, instead of zero.
        """
        assert self.free is not None
        free = self.free[: self.trained].transpose(0, 1)
        self.shared.copy_(free.mean(1))
        if fit:
            self._fit(free - self.shared[:, None])
        self.free = None

    @torch.no_grad()
    def begin_targets(self) -> None:
        """Start the tasks that have not trained from the mean of those that have."""
        for p in (self.left, self.right):
            p[self.trained :] = p[: self.trained].mean(0)
        self.present = slice(self.trained, len(self.left))

    def shrink_to(self, names: set[str]) -> None:
        """Without free prompts where ``names`` has none."""
        if "free" not in names:
            self.free = None

    @torch.no_grad()
    def _fit(self, parts: Tensor) -> None:
        """Set the first tasks' factors so that they come closest to ``parts [layers, tasks, length, width]``."""
        tasks = parts.shape[1]
        if not self.split:
            u, s, v = torch.linalg.svd(parts, full_matrices=False)
            rank = self.left.shape[-1]
            roots = s[..., :rank].sqrt()
            self.left[:tasks] = (u[..., :rank] * roots[..., None, :]).transpose(0, 1)
            self.right[:tasks] = (v[..., :rank, :] * roots[..., None] / self.scale).transpose(0, 1)
            return
        basis, turn = torch.linalg.qr(self.slow)
        u, s, v = torch.linalg.svd(basis.transpose(1, 2)[:, None] @ parts, full_matrices=False)
        left = torch.linalg.solve_triangular(turn, u[..., 0].transpose(1, 2), upper=True).transpose(1, 2)
        self.left[:tasks] = left.transpose(0, 1)
        self.right[:tasks] = (v[..., 0, :] * s[..., :1] / self.scale).transpose(0, 1)


def _by_task(flat: Tensor, like: Tensor) -> Tensor:
    """``[layers, 2, tasks, length, n]`` of ``[layers, 2, tasks * length, n]``."""
    return flat.view(*flat.shape[:2], *like.shape[1:3], flat.shape[-1])
