"""Skills: an inventory of low-rank updates that a router mixes for every row; and experts with dropout of their own.

A skill tensor is ``[splits, skills, rank, width / splits]``: each of the ``splits`` blocks of a linear's input or
output has its own mixture. Mixing the parameters of all rows is one product per tensor and keeps only the weights for
the backward. Polytropon: Ponti et al. 2022, arXiv:2202.13914; with routing by block: Caccia et al. 2022,
arXiv:2211.03831.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mtlbench.nn.low_rank.layer import FactorsFunction, LowRankLinear
from mtlbench.nn.parameters import kaiming_uniform


@dataclass(frozen=True, kw_only=True)
class SkillRouter:
    """How logits become mixing weights; options of microsoft/mttl@c66b20d:mttl/models/modifiers/poly.py."""

    gumbel: bool = True
    """Gumbel-sigmoid noise of temperature 1 in training; otherwise and in evaluation a sigmoid."""
    straight_through: bool = False
    """Skills are used whole or not at all; gradients pass as if they were not rounded."""
    l2_norm: bool = False
    """The logits divided by their Euclidean norm are the weights; nothing else applies."""
    dropout: float = 0.0
    """Chance in training that a skill is left out of a row's mixture."""
    shared_skill: bool = False
    """The last skill always takes part in full."""
    average_correction: bool = False
    """Scale by ``sqrt(splits / skills)`` instead of dividing by the sum over skills."""


def mixing_weights(logits: Tensor, router: SkillRouter, *, training: bool, noise: Tensor | None = None) -> Tensor:
    """Weights ``[rows, splits, skills]`` from logits of that shape.

    Args:
        noise: Draws from ``(0, 1)`` for the Gumbel-sigmoid, one per row, split and skill; by default from the global
            generator, so that gradient checkpointing replays them.
    """
    if router.l2_norm:
        return nn.functional.normalize(logits, dim=-1)
    if training and router.gumbel:
        uniform = torch.rand_like(logits) if noise is None else noise
        logits = logits + torch.logit(uniform, eps=torch.finfo(uniform.dtype).eps)
    use = torch.sigmoid(logits)
    if router.straight_through:
        use = use + (use.round() - use).detach()
    use = nn.functional.dropout(use, router.dropout, training)
    if router.shared_skill:
        use = torch.cat([use[..., :-1], torch.ones_like(use[..., -1:])], dim=-1)
    if router.average_correction:
        return use * math.sqrt(use.shape[-2] / use.shape[-1])
    return use / (use.sum(-1, keepdim=True) + 1e-12)


def mix_skills(weights: Tensor, skills: Tensor) -> Tensor:
    """The weighted sum of the skills' parameters for each row, ``[rows, rank, width]``.

    Args:
        weights: ``[rows, splits, skills]``.
        skills: ``[splits, skills, rank, width / splits]``.
    """
    splits, _, rank, part = skills.shape
    if splits == 1:
        return (weights.squeeze(1) @ skills.flatten(2).squeeze(0)).view(-1, rank, part)
    mixed = torch.bmm(weights.transpose(0, 1), skills.flatten(2))
    return _join(mixed.view(splits, -1, rank, part))


def select_skills(skills: Tensor, tasks: Tensor, *, each: int) -> Tensor:
    """Every row's own skills, ``[rows, each, rank, width]``; those of other tasks are not read.

    Args:
        skills: ``[splits, tasks * each, rank, width / splits]``, those of a task side by side.
        tasks: Task ids ``[rows]``.
    """
    splits, _, rank, part = skills.shape
    return _join(skills.view(splits, -1, each, rank, part).index_select(1, tasks))


def _join(parts: Tensor) -> Tensor:
    """``[splits, ..., width / splits]`` to ``[..., width]``."""
    return parts.movedim(0, -2).flatten(-2)


def init_skills(splits: int, skills: int, rank: int, width: int, *, bound: str, draw: torch.Generator) -> Tensor:
    """Down-projections ``[splits, skills, rank, width / splits]``, uniform.

    Args:
        bound: ``peft`` for ``±sqrt(splits / width)``, ``mttl`` for ``±1 / sqrt(3 width)``.
    """
    fan_in = width // splits if bound == "peft" else 3 * width
    return kaiming_uniform((splits, skills, rank, width // splits), fan_in, draw)


def init_router_logits(tasks: int, splits: int, skills: int, *, draw: torch.Generator) -> Tensor:
    """Logits ``[tasks, splits, skills]`` in ``±0.001``: all mixtures start near the uniform one."""
    return torch.rand((tasks, splits, skills), generator=draw).mul_(2e-3).sub_(1e-3)


def router_name(name: str, granularity: str) -> str:
    """What names the router of the linear ``name``: the same for all linears that share one.

    Shared as in microsoft/mttl@c66b20d:mttl/models/modifiers/routing.py on T5, whose names that code is written for.

    Args:
        granularity: ``finegrained`` for one router per linear, ``layerwise`` per attention or feed-forward block,
            ``blockwise`` per transformer block, ``coderwise`` for the encoder and the decoder, ``coarsegrained`` for
            all.

    Raises:
        ValueError: for another granularity.
    """
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    match granularity:
        case "finegrained":
            return name
        case "layerwise":
            return ".".join(parts[:-1])
        case "blockwise":
            return ".".join(parts[: number + 1])
        case "coderwise":
            return ".".join(parts[:number])
        case "coarsegrained":
            return ""
    raise ValueError(f"granularity {granularity!r} is not known")


class SkillUsage(nn.Module):
    """Tells the record what one task uses; holds no parameters.

    Args:
        layers: The linears with skills.
        router: How their ``logits [tasks, splits, skills]`` are read.
        tasks: Names of the tasks by id.
        active: Parameters that serve one task: the skills it mixes at the start, and its rows of the router.
    """

    def __init__(
        self, layers: Iterable[LowRankLinear], *, router: SkillRouter, tasks: Sequence[str], active: int
    ) -> None:
        super().__init__()
        self._layers = tuple(layers)  # in a tuple, so that they are not registered twice
        self._router, self._tasks, self._active = router, tuple(tasks), active

    @torch.no_grad()
    def notes(self) -> Mapping[str, Any]:
        """``active_parameters``, and per task the mixing weights from large to small, averaged over layers and splits.

        Skills have no order across layers, so the averages are by rank: all equal is a uniform mixture, ``[1, 0, ...]``
        the choice of one skill.
        """
        weights = [
            mixing_weights(layer.get_parameter("logits"), self._router, training=False) for layer in self._layers
        ]
        ranked = [w.sort(-1, descending=True).values.mean(1).cpu() for w in weights]
        mean = torch.stack(ranked).mean(0)
        mixtures = {name: [round(v, 4) for v in row] for name, row in zip(self._tasks, mean.tolist(), strict=True)}
        return {"active_parameters": self._active, "mixtures": mixtures}


class ExpertDropoutLinear(LowRankLinear):
    """A low-rank linear whose rank is split evenly over experts with a dropout mask each.

    A dropped copy of the input is kept for every expert, as the published loops do. Without dropout, and in
    evaluation, it is its base class.

    Args:
        experts: Divides the rank; the factors must have no matrix and no factor per row.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        factors: FactorsFunction,
        *,
        experts: int,
        **options: Any,
    ) -> None:
        super().__init__(base, parameters, factors, **options, reads_input=True)
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate:
            return super().forward(x)
        f = self.branch(x).factors
        seen = dropout(x.unsqueeze(1).expand(-1, self.experts, -1, -1), self.rate)  # [rows, experts, length, in]
        down = f.down.reshape(self.experts, -1, self.in_features).to(x.dtype)
        hidden = (seen @ down.transpose(1, 2)).transpose(1, 2).flatten(2)  # [rows, length, rank]
        if f.gate is not None:
            hidden = hidden * f.gate.to(hidden.dtype)
        y: Tensor = self.base(x) + f.scale * linear(hidden, f.up.to(hidden.dtype))
        return y
