"""Which source prompts a target starts from (SPoT, Vu et al. 2022, arXiv:2110.07904, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlbench.api.routing import Routing
from mtlbench.nn.soft_prompts.prompt import PromptInput
from mtlbench.nn.soft_prompts.sources import TablePrompts

SIMILARITIES = ("tokens", "mean")


def prompt_similarity(sources: Tensor, targets: Tensor, how: str) -> Tensor:
    """Cosines of prompts ``[sources, targets]``.

    Args:
        sources: ``[sources, length, width]``.
        targets: ``[targets, length, width]``.
        how: ``tokens``, the mean over all pairs of vectors of their cosine; ``mean``, the cosine of mean vectors.
    """
    if how == "mean":
        return F.normalize(sources.mean(1), dim=-1) @ F.normalize(targets.mean(1), dim=-1).T
    return F.normalize(sources, dim=-1).mean(1) @ F.normalize(targets, dim=-1).mean(1).T


def transfer_weights(alike: Tensor, top: int) -> Tensor:
    """What each target takes of each source ``[sources, targets]``: the ``top`` most similar by their similarity.

    Negative similarities count as nothing. The most similar source alone is taken where none is positive.
    """
    best = alike.topk(min(top, alike.shape[0]), dim=0)
    weights = best.values.clamp(min=0)
    weights[0] = torch.where(weights.sum(0) > 0, weights[0], 1.0)
    return torch.zeros_like(alike).scatter(0, best.indices, weights / weights.sum(0))


class TransferPrompts(TablePrompts):
    """A prompt for each task, that can start from those of others.

    Args:
        start: ``[tasks, length, width]``.
        names: Of the tasks.

    Attributes:
        joint: All rows see the first prompt.
    """

    routing: Routing

    def __init__(self, start: Tensor, routing: Routing, names: tuple[str, ...]) -> None:
        super().__init__(start, routing)
        self.names, self.joint = names, False
        self._taken: dict[str, dict[str, float]] = {}

    def forward(self, text: PromptInput) -> Tensor:
        """``[1 or rows, length, width]``."""
        return self.prompts[:1] if self.joint else super().forward(text)

    @torch.no_grad()
    def spread_first(self, targets: slice) -> None:
        """Start the targets from the first prompt."""
        self.prompts[targets] = self.prompts[:1].clone()
        self._taken = {name: {"all sources": 1.0} for name in self.names[targets]}

    @torch.no_grad()
    def transfer(self, sources: slice, targets: slice, weights: Tensor) -> None:
        """Start the targets from sources in the shares ``weights [sources, targets]``."""
        self.prompts[targets] = torch.einsum("st,slw->tlw", weights.to(self.prompts), self.prompts[sources])
        for name, column in zip(self.names[targets], weights.T.tolist(), strict=True):
            own = zip(self.names[sources], column, strict=True)
            self._taken[name] = {source: round(share, 4) for source, share in own if share}

    @torch.no_grad()
    def alike(self, sources: slice, targets: slice, how: str) -> Tensor:
        """:func:`prompt_similarity` of prompts as they are; a task is not alike itself."""
        found = prompt_similarity(self.prompts[sources], self.prompts[targets], how)
        every = torch.arange(len(self.names), device=found.device)
        return found.masked_fill(every[sources][:, None] == every[targets], -2.0)

    def notes(self) -> dict[str, object]:
        """What each target started from."""
        return {"prompts_from": self._taken} if self._taken else {}
