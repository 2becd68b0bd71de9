"""Initial values of parameters, and their optimizer groups."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.backbones.machine import axis_seed


def seeded_generator(seed: int, layer: str) -> torch.Generator:
    """Draws the initial values of one layer: the same numbers whatever the global random state."""
    return torch.Generator().manual_seed(axis_seed(seed, f"init/{layer}"))


def kaiming_uniform(shape: tuple[int, ...], fan_in: int, draw: torch.Generator) -> Tensor:
    """Uniform in ``±1/sqrt(fan_in)``: Kaiming's with ``a = sqrt(5)``, as peft draws the down-projection."""
    return torch.rand(shape, generator=draw).mul_(2).sub_(1).div_(math.sqrt(fan_in))


def optimizer_groups(model: nn.Module, learning_rate: float, *, no_decay: Collection[str]) -> list[dict[str, Any]]:
    """Two groups of the trained parameters: those whose name ends in one of ``no_decay`` have no weight decay.

    Decay would pull tables by task towards the same row, and gates and scales away from their start.

    Args:
        no_decay: Last parts of names, such as ``("gate", "tasks")``.
    """
    named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if name not in no_decay]
    others = [p for name, p in named if name in no_decay]
    return [{"params": decayed, "lr": learning_rate}, {"params": others, "lr": learning_rate, "weight_decay": 0.0}]
