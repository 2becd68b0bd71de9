"""Poly, multi-head routing and C-Poly: every row mixes its own matrices, as peft 0.21.2 and TaoSunVoyage/peft@fde7b65."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference.layer import Reference


class Poly(Reference):
    """``B_t A_t x`` with ``A_t`` and ``B_t`` mixed from skills, block by block of the input and the output.

    ``A [splits, skills, in / splits, rank]``, ``B [splits, skills, rank, out / splits]``, ``z [tasks, splits * skills]``
    with the splits outside. One split is Poly, several are multi-head routing.

    Args:
        gumbel: Noise on the logits in training, drawn for every row and layer.
        noise: Uniform draws ``[rows, splits, skills]`` to use instead of new ones.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        *,
        gumbel: bool = True,
        noise: Tensor | None = None,
        **given: Any,
    ) -> None:
        super().__init__(base, parameters, **given)
        self.gumbel, self.noise = gumbel, noise

    def common_weights(self, tasks: Tensor) -> Tensor:
        """Normalised (Gumbel-)sigmoids ``[rows, splits, skills]``."""
        logits = self.z.index_select(0, tasks).unflatten(1, (self.A.shape[0], -1))
        if self.training and self.gumbel:
            u = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7) if self.noise is None else self.noise
            logits = logits + u.log() - (-u).log1p()
        use = torch.sigmoid(logits)
        return use / (use.sum(dim=-1, keepdim=True) + 1e-12)

    def weights(self, tasks: Tensor) -> Tensor:
        """Of all skills, ``[rows, splits, skills]``."""
        return self.common_weights(tasks)

    def term(self, x: Tensor) -> Tensor:
        weights = self.weights(self.tasks(x))
        down = torch.einsum("bqk,qkir->bqir", weights, self.A).flatten(1, 2)
        up = torch.einsum("bqk,qkro->brqo", weights, self.B).flatten(2)
        return torch.bmm(torch.bmm(x, down), up)


class CPoly(Poly):
    """Poly whose last skills belong to the tasks, weighted by the raw rows of ``c [tasks, private skills]``.

    Without ``c`` every task uses its own private skill in full and no other.
    """

    def private_weights(self, tasks: Tensor) -> Tensor:
        """``[rows, private skills]``."""
        if hasattr(self, "c"):
            return self.c.index_select(0, tasks)
        return torch.eye(len(self.z), dtype=self.z.dtype, device=self.z.device).index_select(0, tasks)

    def weights(self, tasks: Tensor) -> Tensor:
        common = self.common_weights(tasks)
        private = self.private_weights(tasks).unsqueeze(1).expand(-1, common.shape[1], -1)
        return torch.cat([common, private], dim=-1)


class CPolyOutputs(CPoly):
    """C-Poly as its paper's equation has it: the outputs of the skills are mixed. One split only."""

    def term(self, x: Tensor) -> Tensor:
        weights = self.weights(self.tasks(x))[:, 0]
        return sum(
            (x @ a @ b) * weights[:, k, None, None] for k, (a, b) in enumerate(zip(self.A[0], self.B[0], strict=True))
        )
