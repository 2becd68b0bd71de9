"""LoRA and DoRA as peft 0.21.2 writes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from reference.layer import Reference


class Lora(Reference):
    """``B A x`` with ``A [rank, in]`` and ``B [out, rank]`` (peft.tuners.lora)."""

    def term(self, x: Tensor) -> Tensor:
        return linear(linear(self.dropout(x), self.A), self.B)


class Dora(Reference):
    """``m / |V| * V x`` with ``V = W + scale B A``, ``|V|`` per output and detached, ``m [out]`` (peft.tuners.lora.dora).

    The product ``B A`` is formed through an identity matrix. With dropout the frozen linear runs a second time, on the
    dropped input; without it, its output is used again.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        dropped = self.dropout(x.to(self.A.dtype))
        ratio = self.m / self.norm()
        if self.training and self.dropout.p:
            frozen = linear(dropped, self.base.weight.to(dropped.dtype))
        else:
            frozen = y if self.base.bias is None else y - self.base.bias
        low = linear(linear(dropped, self.A), self.B)
        return (y + (ratio - 1) * frozen + ratio * low * self.scale).to(y.dtype)

    def norm(self) -> Tensor:
        """``|V| [out]``, without a gradient."""
        eye = torch.eye(self.base.in_features, dtype=self.A.dtype, device=self.A.device)
        update = linear(linear(eye, self.A), self.B).t().detach()
        return torch.linalg.vector_norm(self.base.weight.to(self.A.dtype) + self.scale * update, dim=1)
