"""MultiLoRA as pUmpKin-Co/MTL-LoRA@7848a70:src/adapter/multilora.py writes it, without that code's random bias."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from reference.layer import Reference


class MultiLora(Reference):
    """``sum_j s_j * (B_j A_j x)``: ``A [parallel, rank, in]``, ``B [parallel, out, rank]``, ``s [parallel, out]``."""

    def term(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        return sum(linear(linear(x, a), b) * s for a, b, s in zip(self.A, self.B, self.s, strict=True))
