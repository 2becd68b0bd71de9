"""The layers of a loaded backbone as methods expect them, and what of them no method reaches."""

from __future__ import annotations

import torch
from torch import nn


def linears_for_conv1d(model: nn.Module) -> None:
    """Put a linear in the place of every ``Conv1D`` of transformers, which is one with its weight transposed (GPT-2).

    Everything that is known of linears then holds: adapters, merging, the size of a step.
    """
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, _linear(child))


def conv1d_weights(model: nn.Module) -> set[str]:
    """Names of the weights that are transposed in a stock ``model``."""
    from transformers.pytorch_utils import Conv1D

    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}


def _linear(conv: nn.Module) -> nn.Linear:
    weight = conv.get_parameter("weight").detach()
    with torch.device("meta"):
        linear = nn.Linear(*weight.shape)
    linear.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(conv.get_parameter("bias").detach(), requires_grad=False)
    return linear.train(conv.training)


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the experts of mixture-of-experts layers by name: of all of a layer in one tensor, or linears each.

    An expert sees some tokens of a batch, which is neither a row nor a part of one, so no method here adapts them.
    """
    return {name: p for name, p in model.named_parameters() if p.dim() >= 2 and "experts" in name.split(".")[:-1]}
