"""Queries on models with a sharded backbone, and which methods can be attached to them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.backbones.machine import is_out_of_memory
from mtlbench.compat import parameters_of, same_storage
from mtlbench.errors import MtlbenchError

_READS = "it computes with backbone weights when it is attached, and each process has only a shard of them"


class ShardedWeight(NamedTuple):
    """A parameter of a model whose values are a shard."""

    module: nn.Module
    name: str
    parameter: nn.Parameter
    storage: torch.UntypedStorage


def shards_of(model: nn.Module) -> tuple[ShardedWeight, ...]:
    weights: tuple[ShardedWeight, ...] = getattr(model, "_mtlbench_pieces", ())
    return weights


def unfit(model: nn.Module) -> str | None:
    """Why the method attached to a sharded model does not work there; ``None`` when it does."""
    weights = shards_of(model)
    known = {id(weight.parameter) for weight in weights}
    alive = {id(module) for module in model.modules()}
    now = [parameters_of(weight.module).get(weight.name) for weight in weights]
    if any(parameter is not None and parameter.requires_grad for parameter in now):
        return "it trains backbone weights, and each process has only a frozen shard of them"
    for weight, parameter in zip(weights, now, strict=True):
        same = parameter is weight.parameter and same_storage(parameter.untyped_storage(), weight.storage)
        if not same or id(weight.module) not in alive:
            return "it replaces backbone weights, and each process has only a shard of them"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if any(is_shard(tensor) and id(tensor) not in known for _, tensor in tensors):
        return _READS
    return None


def unfit_error(error: Exception) -> str | None:
    """Why attaching raised ``error``, if sharding may be the cause; else ``None``."""
    if isinstance(error, MtlbenchError) or is_out_of_memory(error):
        return None
    return f"{_READS} ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def is_shard(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a shard (a DTensor) that is not gathered now."""
    return hasattr(tensor, "device_mesh")


def is_sharded(model: nn.Module) -> bool:
    """Whether layers of ``model`` are gathered when they run."""
    return bool(shards_of(model))


def scoring(model: nn.Module) -> AbstractContextManager[Any]:
    """A context without gradients: weights first gathered in inference mode could not take part in autograd later."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
