"""A linear whose rows have a direction, changed by a low-rank update, and a learned length.

``y = (m / |V|) * (V x) + b`` with ``V = W + s B A`` and ``|V|`` the norm of each row of ``V``, held constant in the
backward (Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3). ``V`` is never built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from mtlbench.errors import PluginError
from mtlbench.nn.low_rank.dropout import dropout_mask, dropout_seed
from mtlbench.nn.low_rank.export import write_lora
from mtlbench.nn.low_rank.fused import Activation, again
from mtlbench.nn.low_rank.merging import merge_layers


@dataclass(frozen=True)
class DoraFactors:
    """What is learned in one layer."""

    down: Tensor
    """``A [rank, in]``."""
    up: Tensor
    """``B [out, rank]``."""
    magnitude: Tensor
    """``m [out]``."""
    scale: float


@torch.no_grad()
def row_norms(weight: Tensor, parts: DoraFactors, *, squares: Tensor) -> Tensor:
    """``|V|`` by row ``[out]``, in the dtype of ``squares``, without building ``V``.

    ``|V|^2 = |W|^2 + sum_r B * (2 s W A^T + s^2 B A A^T)``. A row of zeros has the smallest positive norm.

    Args:
        squares: ``|W|^2`` by row ``[out]``.
    """
    down, up, scale = parts.down.to(squares.dtype), parts.up.to(squares.dtype), parts.scale
    with torch.autocast(weight.device.type, enabled=False):
        inner = 2 * scale * linear(weight.to(squares.dtype), down) + scale**2 * linear(up, down @ down.t())
        return (squares + (up * inner).sum(1)).clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


@dataclass(frozen=True)
class _Plan:
    """What the function needs besides tensors."""

    scale: float
    dropout: float
    seed: int
    activation: Activation | None
    own_output: bool
    """Whether the output may be kept for the backward: no reader writes into it."""


class _Dora(torch.autograd.Function):
    """Keeps the input, rank-sized tensors, and for the gradient of ``m`` its output, which its reader often keeps too.

    ``V x`` is the output without the length, so ``dm = sum(dy * y) / m``. Where a bias or what dropout left out was
    added, which would cost digits to take away again, ``V x`` is kept instead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        magnitude: Tensor,
        norms: Tensor,
        plan: _Plan,
        gate: Tensor | None,
    ) -> Tensor:
        dropout, scale = plan.dropout, plan.scale
        given = x if plan.activation is None or gate is None else plan.activation(gate) * x
        w = weight.to(x.dtype)
        low = given * _kept(given, plan) if dropout else given
        hidden = linear(low, down.to(x.dtype))
        turned = linear(low, w)
        _flat(turned).addmm_(_flat(hidden), up.to(x.dtype).t(), alpha=scale)
        # the lengths stay in their own dtype: bf16 has none between 1 and 1.008
        y = torch.mul(turned, magnitude / norms, out=torch.empty_like(turned))
        if dropout:
            y += linear(given - low, w)
        if bias is not None:
            y += bias.to(x.dtype)
        ctx.own_output = plan.own_output and not dropout and bias is None
        ctx.save_for_backward(x, weight, down, up, magnitude, norms, hidden, gate, y if ctx.own_output else turned)
        ctx.plan = plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, weight, down, up, magnitude, norms, hidden, gate, seen = ctx.saved_tensors
        need_x, _, _, need_down, need_up, need_magnitude, _, _, need_gate = ctx.needs_input_grad
        grad, w = grad.to(x.dtype), weight.to(x.dtype)
        opened, active = (None, None) if plan.activation is None else again(plan.activation, gate)
        given = x if active is None else active.detach() * x
        keep = _kept(given, plan) if plan.dropout else None
        grad_magnitude = None
        if need_magnitude:
            divisor = magnitude.to(norms.dtype) if ctx.own_output else norms
            grad_magnitude = _flat(grad * seen).sum(0, dtype=norms.dtype).div_(divisor)
            if ctx.own_output:
                # A length of zero comes from a row of zeros, which the product leaves so: its direction never learns.
                grad_magnitude = grad_magnitude.masked_fill_(magnitude == 0, 0.0)
            grad_magnitude = grad_magnitude.to(magnitude.dtype)
        grad_turned = torch.mul(grad, magnitude / norms, out=torch.empty_like(grad))
        narrow = (grad_turned @ up.to(x.dtype)).mul_(plan.scale)
        grad_up = (_flat(grad_turned).t() @ _flat(hidden)).mul_(plan.scale).to(up.dtype) if need_up else None
        grad_down = None
        if need_down:
            low = given if keep is None else given * keep
            grad_down = (_flat(narrow).t() @ _flat(low)).to(down.dtype)
        grad_x = grad_gate = None
        if need_x or need_gate:
            into = (grad_turned if keep is None else grad_turned - grad) @ w
            _flat(into).addmm_(_flat(narrow), down.to(x.dtype))
            grad_given = into if keep is None else (grad @ w).addcmul_(into, keep)
            grad_x = grad_given if active is None else grad_given * active.detach()
            if active is not None and opened is not None:
                grad_gate = torch.autograd.grad(active, opened, grad_given * x)[0]
        return (grad_x, None, None, grad_down, grad_up, grad_magnitude, None, None, grad_gate)


def _kept(x: Tensor, plan: _Plan) -> Tensor:
    """The scaled dropout mask of ``x``."""
    return dropout_mask(x, dropout=plan.dropout, seed=plan.seed).mul_(1 / (1 - plan.dropout))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class DoraLinear(nn.Module):
    """A frozen linear with a trainable low-rank direction and length per row.

    Args:
        base: The frozen linear.
        down: Initial ``A [rank, in]``; ``B`` starts at zero and ``m`` at the norms of the rows of ``W``.
        scale: On the low-rank update.
        dropout: On the input of ``V - W`` in training mode only; costs a second product with ``W``.
    """

    squares: Tensor
    reads_input = False
    overwritten = False
    """Whether the block around it writes into its output."""

    def __init__(self, base: nn.Linear, down: Tensor, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.in_features, self.out_features = base.in_features, base.out_features
        like = base.weight
        wide = like.detach().to(torch.promote_types(like.dtype, torch.float32))
        self.register_buffer("squares", wide.square().sum(1), persistent=False)
        self.down = nn.Parameter(down.to(like.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, down.shape[0], dtype=down.dtype, device=like.device))
        self.magnitude = nn.Parameter(self.squares.sqrt())

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def parts(self) -> DoraFactors:
        """What is learned."""
        return DoraFactors(self.down, self.up, self.magnitude, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None, None)

    def gated(self, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        """The same on ``activation(gate) * up``, which is not kept for the backward."""
        return self._run(up, activation, gate)

    def _run(self, x: Tensor, activation: Activation | None, gate: Tensor | None) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        norms = row_norms(self.weight, self.parts, squares=self.squares)
        rate = self.dropout if self.training else 0.0
        run: Callable[..., Tensor] = _Dora.apply
        weights = (self.weight, self.bias, self.down, self.up, self.magnitude, norms)
        plan = _Plan(self.scale, rate, dropout_seed() if rate else 0, activation, not self.overwritten)
        return run(x.to(dtype), *weights, plan, None if gate is None else gate.to(dtype))


class MergedDoraLinear(nn.Linear):
    """The same function as a plain linear with a new weight. ``parts`` keeps what was merged; it is no state."""

    @torch.no_grad()
    def __init__(self, layer: DoraLinear) -> None:
        base = layer.base
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        own = layer.parts
        learned = DoraFactors(own.down.clone(), own.up.clone(), own.magnitude.clone(), own.scale)
        self.parts = learned
        dtype = layer.squares.dtype
        turned = torch.addmm(base.weight.to(dtype), learned.up.to(dtype), learned.down.to(dtype), alpha=layer.scale)
        lengths = learned.magnitude / row_norms(base.weight, learned, squares=layer.squares)
        self.weight = nn.Parameter((lengths[:, None] * turned).to(base.weight.dtype), requires_grad=False)
        if base.bias is not None:
            self.bias = nn.Parameter(base.bias.detach(), requires_grad=False)


def merge_dora(model: nn.Module) -> None:
    """Put a plain linear in the place of every :class:`DoraLinear`."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, DoraLinear)]
    merge_layers(model, layers, MergedDoraLinear)


def export_dora(model: nn.Module, folder: Path, *, dropout: float = 0.0) -> None:
    """Write a DoRA checkpoint that ``peft.PeftModel.from_pretrained`` reads; before or after merging.

    Args:
        dropout: Written to the configuration; it changes no output.

    Raises:
        PluginError: when no layer has such parts.
    """
    parts = {name: m.parts for name, m in model.named_modules() if isinstance(m, DoraLinear | MergedDoraLinear)}
    if not parts:
        raise PluginError("There is no DoRA layer to export.")
    magnitudes = {name: part.magnitude for name, part in parts.items()}
    write_lora(model, folder, parts, dropout=dropout, magnitudes=magnitudes)
