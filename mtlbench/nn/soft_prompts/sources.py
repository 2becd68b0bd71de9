"""What makes soft prompts: tables of them, products of a shared one with factors by task, mixtures by row, and tables
whose targets start from sources (SPoT, Vu et al. 2022, arXiv:2110.07904, section 4).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.parameters import kaiming_uniform
from mtlbench.nn.soft_prompts.prompt import PromptInput, PromptSource


class TablePrompts(PromptSource):
    """One prompt for all rows, or one for each task.

    Args:
        start: ``[1 or tasks, length, width]``.
        routing: Of the rows; ``None`` with one prompt for all.
    """

    def __init__(self, start: Tensor, routing: Routing | None = None) -> None:
        super().__init__()
        self.length = start.shape[1]
        self.routing = routing
        self.prompts = nn.Parameter(start)

    def forward(self, text: PromptInput) -> Tensor:
        """``[1 or rows, length, width]``."""
        if self.routing is None:
            return self.prompts
        return self.prompts.index_select(0, self.routing.ids(text.rows))

    def of(self, task: int | None) -> Tensor:
        """The prompt ``[length, width]`` that rows of ``task`` see."""
        return self.prompts.detach()[0 if self.routing is None or task is None else task]


class StaticPrompts(PromptSource):
    """Fixed prompts by task ``[tasks, length, width]``, kept as a buffer."""

    prompts: Tensor

    def __init__(self, prompts: Tensor, routing: Routing) -> None:
        super().__init__()
        self.length = prompts.shape[1]
        self.routing = routing
        self.register_buffer("prompts", prompts)

    def forward(self, text: PromptInput) -> Tensor:
        """``[rows, length, width]``."""
        return self.prompts.index_select(0, self.routing.ids(text.rows))

    def of(self, task: int) -> Tensor:
        """The prompt ``[length, width]`` of ``task``."""
        return self.prompts[task]


class FactoredPrompts(PromptSource):
    """A shared prompt times a low-rank matrix of each task, element by element (multitask prompt tuning).

    ``P_t = P * (U_t V_t)`` (Wang et al. 2023, arXiv:2303.02861, eq. 2 with rank 1; peft's
    ``MultitaskPromptEmbedding`` with any rank).

    Args:
        start: The shared prompt ``[length, width]``.
        rows: ``U [tasks, length, rank]``.
        columns: ``V [tasks, rank, width]``.
        teachers: Prompts of the first tasks to learn from ``[teachers, length, width]``; they go after training.

    Attributes:
        teaching: Rows see the teachers.
    """

    def __init__(
        self, start: Tensor, rows: Tensor, columns: Tensor, routing: Routing, teachers: Tensor | None = None
    ) -> None:
        super().__init__()
        self.length = start.shape[0]
        self.routing = routing
        self.shared = nn.Parameter(start)
        self.rows, self.columns = nn.Parameter(rows), nn.Parameter(columns)
        self.teachers = None if teachers is None else nn.Parameter(teachers)
        self.teaching = False

    def forward(self, text: PromptInput) -> Tensor:
        """``[rows, length, width]``."""
        ids = self.routing.ids(text.rows)
        if self.teaching and self.teachers is not None:
            return self.teachers.index_select(0, ids)
        with torch.autocast(self.shared.device.type, enabled=False):
            factors = self.rows.index_select(0, ids) @ self.columns.index_select(0, ids)
            return self.shared * factors

    @torch.no_grad()
    def static(self) -> StaticPrompts:
        """The prompts of all tasks as constants."""
        return StaticPrompts(self.shared * (self.rows @ self.columns), self.routing)

    def shrink_to(self, names: Collection[str]) -> None:
        """Drop the teachers where they are not among ``names``: ready to load what was trained."""
        if "teachers" not in names:
            self.teachers = None

    def temporary_parameters(self) -> int:
        """Parameters that go after training."""
        return 0 if self.teachers is None else self.teachers.numel()

    @torch.no_grad()
    def start_from(self, sources: slice, targets: slice) -> None:
        """Give the targets the mean factors of the sources, as peft's ``AVERAGE_SOURCE_TASKS``."""
        for factors in (self.rows, self.columns):
            factors[targets] = factors[sources].mean(0)


class MixedPrompts(PromptSource):
    """The prompt of a row's task plus a mixture of source prompts and itself, weighted by attention to the row's text.

    ``z = LN(W_up silu(W_down max_i E(x_i)))``, ``a = softmax_j(z . max_l P_j[l] / tau)`` over sources and target,
    ``P = P_target + sum_j a_j P_j`` (Asai et al. 2022, arXiv:2205.11961, eq. 1 to 3; AkariAsai/ATTEMPT@b5121e5).

    Args:
        sources: ``[sources, length, width]``; task s < sources is the one of source s.
        targets: ``[targets, length, width]``, of the last tasks; as many as tasks where every task is both.
        hidden: Width between ``W_down`` and ``W_up``.
        temperature: ``tau``.
        mix_target: Whether the target's own prompt takes part in the mixture.
        draw: Makes the initial values of both matrices.

    Attributes:
        mixing: When false, rows see the prompt of their source alone.
    """

    reads_text = True

    def __init__(
        self,
        sources: Tensor,
        targets: Tensor,
        routing: Routing,
        *,
        tasks: int,
        hidden: int,
        temperature: float,
        mix_target: bool,
        draw: torch.Generator,
    ) -> None:
        super().__init__()
        _, self.length, width = sources.shape
        self.routing, self.temperature, self.mix_target, self.mixing = routing, temperature, mix_target, True
        self.first_target = tasks - targets.shape[0]
        self.sources, self.targets = nn.Parameter(sources), nn.Parameter(targets)
        self.down = nn.Parameter(kaiming_uniform((hidden, width), width, draw))
        self.up = nn.Parameter(kaiming_uniform((width, hidden), hidden, draw))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, text: PromptInput) -> Tensor:
        """``[rows, length, width]``."""
        ids = self.routing.ids(text.rows)
        with torch.autocast(self.down.device.type, enabled=False):
            if not self.mixing:
                return self.sources.index_select(0, ids)
            target = self.targets.index_select(0, (ids - self.first_target).clamp(min=0))
            # The sources were trained before.
            mixed = self.mixture(self.sources.detach(), target, self.query(text))
            if not self.first_target:
                return mixed
            own = self.sources.detach().index_select(0, ids.clamp(max=self.sources.shape[0] - 1))
            return torch.where((ids < self.first_target)[:, None, None], own, mixed)

    def query(self, text: PromptInput) -> Tensor:
        """What the text asks for, ``z [rows, width]``."""
        tokens = text.embeddings.to(self.down.dtype)
        if text.question_mask is not None:
            tokens = tokens.masked_fill(~text.question_mask[:, :, None], torch.finfo(tokens.dtype).min)
        inner = F.linear(F.silu(F.linear(tokens.amax(1), self.down)), self.up)
        return F.layer_norm(inner, inner.shape[-1:], self.norm_weight, self.norm_bias)

    def mixture(self, sources: Tensor, target: Tensor, query: Tensor) -> Tensor:
        """The prompts ``[rows, length, width]`` of rows with these ``target`` prompts and queries."""
        scores = query @ sources.amax(1).T
        if self.mix_target:
            scores = torch.cat([scores, (query * target.amax(1)).sum(1, keepdim=True)], dim=1)
        weights = (scores / self.temperature).softmax(1)
        count = sources.shape[0]
        mixed = target + torch.einsum("rs,slw->rlw", weights[:, :count], sources)
        return mixed + weights[:, count:, None] * target if self.mix_target else mixed

    @torch.no_grad()
    def start_targets(self) -> None:
        """Give each target its own source's prompt, or the first source's where sources are other tasks."""
        self.targets.copy_(self.sources[:1].expand_as(self.targets) if self.first_target else self.sources)


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
