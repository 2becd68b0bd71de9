"""Layer norms of a backbone, trained as float32 copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def train_norms(model: nn.Module) -> None:
    """Make the weights and biases of every layer norm trainable; the backbone's own tensors stay as they are.

    What a norm gives stays in the type that it gets, with autocast and without.
    """
    host: Any = model
    host.mtlbench_norms = {}
    for path, module in model.named_modules():
        if not type(module).__name__.endswith("Norm"):
            continue
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = nn.Parameter(p.detach().to(torch.float32, copy=True))
                host.mtlbench_norms[f"{path}.{name}"] = p.dtype
        module.register_forward_hook(_as_given)


def round_norms(model: nn.Module) -> None:
    """Give them the dtypes of the backbone again."""
    host: Any = model
    for name, dtype in getattr(host, "mtlbench_norms", {}).items():
        p = model.get_parameter(name)
        p.data = p.data.to(dtype)


def _as_given(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(args[0].dtype)
