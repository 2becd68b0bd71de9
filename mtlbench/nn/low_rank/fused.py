"""Linears that share an input, with their low-rank terms, as one autograd function.

``y_j = x W_j^T + b_j + s_j mix_j(x A_j^T) B_j^T`` with ``W_j`` and ``b_j`` frozen. The frozen weights are used straight
in the backward, so beyond the input only rank-sized tensors are kept; the input may itself be ``act(gate) * up``, which
is then computed again in the backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, linear

from mtlbench.nn.low_rank.dropout import dropout_mask, dropout_seed

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factors:
    """What a method's parameters amount to in one layer, for the rows in flight."""

    down: Tensor
    """``A [rank, in]``, or one per row ``[rows, rank, in]``."""
    up: Tensor
    """``B [out, rank_out]``, or one per row ``[rows, out, rank_out]``; ``rank_out`` is ``rank`` without a matrix."""
    gate: Tensor | None = None
    """Scales the rank-sized product by row ``[rows, 1, rank]`` or by token ``[rows, length, rank]``."""
    matrix: Tensor | None = None
    """Maps it by row: ``[rows, rank_out, rank]``. Not together with ``gate``."""
    up_scale: Tensor | None = None
    """Multiplied into ``up [out, rank_out]``, again in the backward instead of kept: ``[out, groups]``, each column for
    the next ``rank_out / groups`` columns."""
    scale: float = 1.0
    report: Tensor | None = None
    """What a method's auxiliary loss gets, by token ``[rows, 1 or length, reported]``; it is no part of the output."""

    def whole_up(self) -> Tensor:
        """``up`` with ``up_scale`` in it."""
        return _scaled_up(self.up, self.up_scale)


@dataclass(frozen=True)
class LowRankBranch:
    """One linear of the group."""

    weight: Tensor | None
    """Frozen, ``[out, in]``; ``None`` where it is quantised and ``product`` multiplies by it."""
    bias: Tensor | None
    factors: Factors
    product: Callable[[Tensor], Tensor] | None = None
    """The frozen linear as a function with a gradient of its input, bias included."""


@dataclass(frozen=True)
class _Plan:
    """What the function needs besides tensors."""

    scales: tuple[float, ...]
    dropout: float
    seed: int
    activation: Activation | None


def fused_low_rank(
    x: Tensor,
    branches: Sequence[LowRankBranch],
    *,
    dropout: float = 0.0,
    gated: tuple[Activation, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The outputs of all branches on one input.

    Args:
        x: ``[..., in]``; ``[rows, length, in]`` when factors differ by row.
        dropout: Chance that an element of the input is zeroed on its way into the down-projections (and only there).
            All branches see the same mask.
        gated: ``(activation, gate)``: the input is then ``activation(gate) * x`` instead of ``x``.

    Returns:
        For each branch ``[..., out]`` in the dtype of its weight, or of autocast where that is on; where the weight is
        quantised, in that of the input.
    """
    device, first = x.device.type, branches[0].weight
    dtype = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else (x if first is None else first).dtype
    )
    plan = _Plan(
        scales=tuple(branch.factors.scale for branch in branches),
        dropout=dropout,
        seed=dropout_seed() if dropout else 0,
        activation=gated[0] if gated else None,
    )
    tensors: list[Tensor | None] = []
    for branch in branches:
        f = branch.factors
        tensors += [branch.weight, branch.bias, f.down, f.up, f.gate, f.matrix, f.up_scale]
    inputs = plan, x.to(dtype), gated[1].to(dtype) if gated else None
    if not torch.is_grad_enabled():
        outputs = _outputs(*inputs, tensors)[0]
    else:
        run: Callable[..., tuple[Tensor, ...]] = _LowRank.apply
        outputs = run(*inputs, *tensors)
    if all(branch.product is None for branch in branches):
        return outputs
    given = inputs[1] if gated is None or inputs[2] is None else gated_product(gated[0], inputs[2], inputs[1])
    return tuple(
        low if branch.product is None else low + branch.product(given).to(low.dtype)
        for branch, low in zip(branches, outputs, strict=True)
    )


_PER_BRANCH = 7


def _outputs(plan: _Plan, x: Tensor, gate: Any, tensors: Sequence[Tensor | None]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The outputs, and the rank-sized products ``[..., rank of all]``."""
    given = x if plan.activation is None else plan.activation(gate) * x
    low = given * dropout_mask(given, dropout=plan.dropout, seed=plan.seed) if plan.dropout else given
    branches = _branches(tensors)
    hidden = _down(low, _joined(branches, x.dtype))
    if plan.dropout:
        hidden *= 1 / (1 - plan.dropout)
    outputs = []
    parts = torch.split(hidden, [_rank(branch) for branch in branches], dim=-1)
    for (weight, bias, _, up, by, matrix, stretch), part, scale in zip(branches, parts, plan.scales, strict=True):
        mixed, whole = _mix(part, by, matrix), _scaled_up(up, stretch).to(x.dtype)
        if weight is None:
            outputs.append(_up(mixed, whole, scale))
            continue
        y = linear(given, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        _add_up(y, mixed, whole, scale)
        outputs.append(y)
    return tuple(outputs), hidden


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, gate: Any, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, hidden = _outputs(plan, x, gate, tensors)
        ctx.plan = plan
        ctx.save_for_backward(x, gate, hidden, *tensors)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, gate, hidden, *tensors = ctx.saved_tensors
        branches = _branches(tensors)
        needs = ctx.needs_input_grad
        need_input = needs[1] or needs[2]
        opened, active = (None, None) if plan.activation is None else again(plan.activation, gate)
        given = x if active is None else active.detach() * x
        sizes = [_rank(branch) for branch in branches]
        narrow = torch.empty_like(hidden)
        grad_given: Tensor | None = None
        wanted: list[Tensor | None] = [None] * len(tensors)
        for j, (branch, part, into) in enumerate(
            zip(branches, torch.split(hidden, sizes, dim=-1), torch.split(narrow, sizes, dim=-1), strict=True)
        ):
            weight, _, _, up, by, matrix, stretch = branch
            grad, scale = grads[j].to(x.dtype), plan.scales[j]
            need_up, need_by, need_matrix, need_stretch = needs[6 + j * _PER_BRANCH : 3 + (j + 1) * _PER_BRANCH]
            grad_mixed = _back_up(grad, _scaled_up(up, stretch).to(x.dtype)).mul_(scale)
            at = j * _PER_BRANCH
            if need_by:
                full = grad_mixed * part
                wanted[at + 4] = (full.sum(1, keepdim=True) if by.shape[1] == 1 else full).to(by.dtype)
            if need_matrix:
                wanted[at + 5] = torch.bmm(grad_mixed.transpose(1, 2), part).to(matrix.dtype)
            if need_up or need_stretch:
                grad_up = _outer(grad, _mix(part, by, matrix), up).mul_(scale).to(up.dtype)
                if need_stretch:
                    wanted[at + 6] = (grad_up * up).reshape(*stretch.shape, -1).sum(-1)
                wanted[at + 3] = _scaled_up(grad_up, stretch)
            into.copy_(_mix(grad_mixed, by, None if matrix is None else matrix.transpose(1, 2)))
            if need_input and weight is not None:
                grad_given = _back_weight(grad, weight.to(x.dtype), grad_given)
        if plan.dropout:
            narrow *= 1 / (1 - plan.dropout)
        keep = dropout_mask(given, dropout=plan.dropout, seed=plan.seed) if plan.dropout else None
        if any(needs[3 + j * _PER_BRANCH + 2] for j in range(len(branches))):
            downs = _outer(narrow, given if keep is None else given * keep, branches[0][2])
            for j, grad_down in enumerate(torch.split(downs, sizes, dim=-2)):
                wanted[j * _PER_BRANCH + 2] = grad_down.to(branches[j][2].dtype)
        grad_x = grad_gate = None
        if need_input:
            grad_given = torch.zeros_like(given) if grad_given is None else grad_given
            _add_down(grad_given, narrow, _joined(branches, x.dtype), keep)
            grad_x = grad_given if active is None else grad_given * active.detach()
            if active is not None and opened is not None:
                grad_gate = torch.autograd.grad(active, opened, grad_given * x)[0]
        return (None, grad_x, grad_gate, *wanted)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        opened, active = again(ctx.activation, gate)
        return None, torch.autograd.grad(active, opened, grad * up)[0], grad * active.detach()


def gated_product(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """``activation(gate) * up``, of which only ``gate`` and ``up`` are kept for the backward."""
    run: Callable[..., Tensor] = _Product.apply
    return run(activation, gate, up)


_ONE_KERNEL: Mapping[str, Activation] = {"NewGELUActivation": partial(gelu, approximate="tanh")}
"""The same function in one kernel for activations that transformers writes out in eight."""


def again(activation: Activation, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The activation once more, so that it can be differentiated."""
    function = _ONE_KERNEL.get(type(activation).__name__, activation)
    with torch.enable_grad():
        opened = gate.detach().requires_grad_()
        return opened, function(opened)


def _branches(tensors: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [tuple(tensors[at : at + _PER_BRANCH]) for at in range(0, len(tensors), _PER_BRANCH)]


def _scaled_up(up: Tensor, stretch: Tensor | None) -> Tensor:
    return up if stretch is None else (up.reshape(*stretch.shape, -1) * stretch.unsqueeze(-1)).view_as(up)


def _rank(branch: tuple[Any, ...]) -> int:
    return int(branch[2].shape[-2])


def _joined(branches: Sequence[tuple[Any, ...]], dtype: torch.dtype) -> Tensor:
    """All down-projections as one: a wide product costs less than several narrow ones."""
    if len(branches) == 1:
        down: Tensor = branches[0][2].to(dtype)
        return down
    return torch.cat([branch[2] for branch in branches], dim=-2).to(dtype)


def _down(x: Tensor, down: Tensor) -> Tensor:
    return linear(x, down) if down.dim() == 2 else torch.bmm(x, down.transpose(1, 2))


def _mix(hidden: Tensor, by: Tensor | None, matrix: Tensor | None) -> Tensor:
    if by is not None:
        return hidden * by.to(hidden.dtype)
    return hidden if matrix is None else torch.bmm(hidden, matrix.to(hidden.dtype).transpose(1, 2))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _up(mixed: Tensor, up: Tensor, scale: float) -> Tensor:
    return (linear(mixed, up) if up.dim() == 2 else torch.bmm(mixed, up.transpose(1, 2))).mul_(scale)


def _add_up(y: Tensor, mixed: Tensor, up: Tensor, scale: float) -> None:
    if up.dim() == 2:
        y.view(-1, y.shape[-1]).addmm_(_flat(mixed), up.t(), alpha=scale)
    else:
        y.baddbmm_(mixed, up.transpose(1, 2), alpha=scale)


def _back_up(grad: Tensor, up: Tensor) -> Tensor:
    return grad @ up if up.dim() == 2 else torch.bmm(grad, up)


def _outer(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """Sum of outer products over all tokens, or over the tokens of each row where ``like`` has one factor per row."""
    if like.dim() == 2:
        return _flat(left).t() @ _flat(right)
    return torch.bmm(left.transpose(1, 2), right)


def _back_weight(grad: Tensor, weight: Tensor, total: Tensor | None) -> Tensor:
    if total is None:
        return grad @ weight
    total.view(-1, total.shape[-1]).addmm_(_flat(grad), weight)
    return total


def _add_down(grad: Tensor, narrow: Tensor, down: Tensor, keep: Tensor | None) -> None:
    if keep is not None:
        grad.addcmul_(narrow @ down if down.dim() == 2 else torch.bmm(narrow, down), keep)
    elif down.dim() == 2:
        grad.view(-1, grad.shape[-1]).addmm_(_flat(narrow), down)
    else:
        grad.baddbmm_(narrow, down)
