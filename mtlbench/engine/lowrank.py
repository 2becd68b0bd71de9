"""The one low-rank layer that every method of the LoRA family maps its parameters onto.

``y = x W^T + b + s * ((x A^T) mix) B^T`` with ``W`` and ``b`` frozen. A method gives a pure function from its own
parameters to :class:`Factors`; nothing else differs between the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtlbench.engine.linears import replace
from mtlbench.engine.routing import Routing
from mtlbench.engine.seeds import axis_seed


@dataclass(frozen=True)
class Factors:
    """What a method's parameters amount to in one layer."""

    down: Tensor
    """``A [rank, in]``."""
    up: Tensor
    """``B [out, rank]``, or ``[out, rank_out]`` with a matrix mix."""
    mix: Tensor | None = None
    """Between the two, by task: a gate ``[tasks, rank]`` or a matrix ``[tasks, rank_out, rank]``."""
    scale: float = 1.0


FactorsOf = Callable[[Mapping[str, Tensor]], Factors]


def low_rank(
    x: Tensor,
    base: nn.Linear,
    down: Tensor,
    up: Tensor,
    *,
    mix: Tensor | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """The frozen linear ``base`` plus a low-rank term.

    Args:
        x: ``[..., in]``; ``[rows, length, in]`` when there is a mix.
        mix: Per row: a gate ``[rows, rank]`` or a matrix ``[rows, rank_out, rank]``.
        dropout: Chance that an element of ``x`` is zeroed on its way into ``down`` (and only there).

    Returns:
        ``[..., out]`` in the dtype of ``base``, or of autocast where that is on. Kept for the backward are ``x``, the
        factors, ``x A^T`` and, with dropout, one byte per element of ``x``.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
    keep = _draw_keep(x, dropout) if dropout else None
    run: Callable[..., Tensor] = _LowRank.apply
    return run(x.to(dtype), base.weight, base.bias, down, up, mix, keep, scale, 1 / (1 - dropout))


class _LowRank(torch.autograd.Function):
    """Uses the frozen weight straight in the backward, so that nothing as wide as the output is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        mix: Tensor | None,
        keep: Tensor | None,
        scale: float,
        kept_scale: float,
    ) -> Tensor:
        a, b = down.to(x.dtype), up.to(x.dtype)
        y = nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        hidden = nn.functional.linear(x if keep is None else x * keep, a)
        if keep is not None:
            hidden *= kept_scale
        mixed = hidden if mix is None else _mix(hidden, mix.to(x.dtype))
        y.view(-1, y.shape[-1]).addmm_(mixed.reshape(-1, mixed.shape[-1]), b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, down, up, mix, keep, hidden)
        ctx.scale, ctx.kept_scale = scale, kept_scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, mix, keep, hidden = ctx.saved_tensors
        need_x, _, _, need_down, need_up, need_mix, *_ = ctx.needs_input_grad
        a, b, grad = down.to(x.dtype), up.to(x.dtype), grad.to(x.dtype)
        m = None if mix is None else mix.to(x.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        grad_mixed = (grad @ b).mul_(ctx.scale)
        grad_hidden, grad_mix = grad_mixed, None
        if m is not None:
            grad_hidden = _mix(grad_mixed, m if m.dim() == 2 else m.transpose(1, 2))
            if need_mix:
                grad_mix = (
                    (grad_mixed * hidden).sum(1) if m.dim() == 2 else torch.bmm(grad_mixed.transpose(1, 2), hidden)
                ).to(mix.dtype)
        grad_up = None
        if need_up:
            mixed = hidden if m is None else _mix(hidden, m)
            grad_up = (flat.t() @ mixed.reshape(-1, mixed.shape[-1])).mul_(ctx.scale).to(up.dtype)
        if keep is not None:
            grad_hidden = grad_hidden * ctx.kept_scale
        narrow = grad_hidden.reshape(-1, grad_hidden.shape[-1])
        grad_down = None
        if need_down:
            low = x if keep is None else x * keep
            grad_down = (narrow.t() @ low.reshape(-1, low.shape[-1])).to(down.dtype)
        grad_x = None
        if need_x:
            grad_x = grad @ weight.to(x.dtype)
            if keep is None:
                grad_x.view(-1, grad_x.shape[-1]).addmm_(narrow, a)
            else:
                grad_x.addcmul_(grad_hidden @ a, keep.to(x.dtype))
        return grad_x, None, None, grad_down, grad_up, grad_mix, None, None, None


def _draw_keep(x: Tensor, dropout: float) -> Tensor:
    """Which elements of ``x`` are kept, drawn from the global generator.

    Four 16-bit numbers come from one draw of 64 bits: a fifth of the time of ``bernoulli_`` on a processor.
    """
    count = x.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] >= round(dropout * 2**16) - 2**15).view(x.shape)


def _mix(hidden: Tensor, mix: Tensor) -> Tensor:
    """``hidden [rows, length, rank]`` through a gate ``[rows, rank]`` or a matrix ``[rows, rank_out, rank]``."""
    return hidden * mix.unsqueeze(1) if mix.dim() == 2 else torch.bmm(hidden, mix.transpose(1, 2))


class LowRankLinear(nn.Module):
    """A frozen linear with a trainable low-rank part in float32.

    Attributes of the wrapped linear that models read (``weight``, ``bias``, ``in_features``, ``out_features``) are
    those of ``base``.

    Args:
        base: The frozen linear.
        parameters: Initial values of the trainable parameters by name.
        factors: Pure function of those parameters.
        routing: Needed when the factors have a mix.
        dropout: On the input of the low-rank path, in training mode only.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        factors: FactorsOf,
        *,
        routing: Routing | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.factors_of = factors
        self.routing = routing
        self.dropout = dropout
        self.in_features, self.out_features = base.in_features, base.out_features
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.to(base.weight.device)))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def factors(self) -> Factors:
        """The factors of the present parameters."""
        return self.factors_of({name: p for name, p in self._parameters.items() if p is not None})

    def forward(self, x: Tensor) -> Tensor:
        f = self.factors()
        mix = None
        if f.mix is not None:
            if self.routing is None:
                raise RuntimeError("factors with a mix by task need a routing")
            mix = f.mix.index_select(0, self.routing.ids(x.shape[0]))
        dropout = self.dropout if self.training else 0.0
        return low_rank(x, self.base, f.down, f.up, mix=mix, scale=f.scale, dropout=dropout)

    def merged(self) -> MergedLinear:
        """The same function as a plain linear with a new weight.

        Raises:
            ValueError: when the factors depend on the task.
        """
        return MergedLinear(self.base, self.factors())


class MergedLinear(nn.Linear):
    """A linear into which a low-rank part was merged. ``factors`` keeps what was merged; it is no part of the state."""

    @torch.no_grad()
    def __init__(self, base: nn.Linear, factors: Factors) -> None:
        if factors.mix is not None:
            raise ValueError("factors that depend on the task cannot be merged into one weight")
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        down, up = factors.down.detach().clone(), factors.up.detach().clone()
        wide = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        weight = torch.addmm(wide, up.to(wide.dtype), down.to(wide.dtype), alpha=factors.scale)
        self.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
        if base.bias is not None:
            self.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
        self.factors = Factors(down, up, None, factors.scale)


def adapt(model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Linear], nn.Module]) -> None:
    """Put ``make(name, linear)`` in the place of every named linear."""
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{name} is a {type(linear).__name__}, not a linear that can be adapted")
        replace(model, name, make(name, linear))


def merge(model: nn.Module) -> None:
    """Put a plain linear in the place of every :class:`LowRankLinear`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear):
            replace(model, name, module.merged())


def generator(seed: int, layer: str) -> torch.Generator:
    """Draws the initial values of one layer: the same numbers whatever the global random state."""
    return torch.Generator().manual_seed(axis_seed(seed, f"init/{layer}"))


def kaiming(shape: tuple[int, ...], fan_in: int, draw: torch.Generator) -> Tensor:
    """Uniform in ``±1/sqrt(fan_in)``: Kaiming's with ``a = sqrt(5)``, as peft draws the down-projection."""
    return torch.rand(shape, generator=draw).mul_(2).sub_(1).div_(math.sqrt(fan_in))
